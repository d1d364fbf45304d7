"""A run is a directory, and the directory is the truth: training writes it, everything else reads it."""

from fundamentallm.runs.run_directory import (
    DEFAULT_RUNS_DIRECTORY,
    Metrics,
    RunDirectory,
    RunState,
    RunStatus,
    list_runs,
)

__all__ = ["DEFAULT_RUNS_DIRECTORY", "Metrics", "RunDirectory", "RunState", "RunStatus", "list_runs"]
