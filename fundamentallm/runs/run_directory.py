"""A run directory: the names of its files, and how each is written and read.

```
<run>/config.yaml  command.json (creation time, command)  tokenizer.json  corpus.json  tokens/{train,val}.bin
<run>/metrics.jsonl    one object per logged step, appended, never rewritten
<run>/samples.jsonl    step, prompt, text
<run>/status.json      RunStatus, replaced atomically
<run>/control.json     the only thing a reader writes: {"request": "stop"}
<run>/evaluation.json  the final numbers
<run>/waiting.json     while the run waits for a place to train in; see waiting_line.py
<run>/train.log        stdout and stderr of the trainer
<run>/checkpoints/step-000500/  a Hugging Face folder and trainer_state.pt; `last` and `best` point to one of them
```

A run that was killed and resumed repeats the steps since its last checkpoint. In ``metrics.jsonl`` and
``samples.jsonl`` a row therefore supersedes every earlier row whose step is not smaller; ``metrics()`` and
``samples()`` drop those, and a reader of ``tail_metrics()`` drops points at or after a row's step when it adds it.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

import psutil

from fundamentallm.config import Config, load_config
from fundamentallm.errors import RunError
from fundamentallm.runs.files import (
    append_line,
    complete_lines,
    exclusive_lock,
    json_line,
    point_to,
    read_json,
    remove_leftovers,
    remove_tree,
    write_atomically,
)

DEFAULT_RUNS_DIRECTORY = Path("runs")
RunState = Literal["waiting", "starting", "running", "stopping", "finished", "stopped", "failed"]
ACTIVE_STATES: tuple[RunState, ...] = ("starting", "running", "stopping")
PENDING_STATES: tuple[RunState, ...] = ("waiting", *ACTIVE_STATES)
# A created run whose process has not shown up after this long never will: importing torch takes seconds, not minutes.
_START_UP_SECONDS = 120.0
_CHECKPOINT_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class RunStatus:
    """What a run is doing. Times in seconds, ``heartbeat`` and ``pid_created`` in seconds since 1970."""

    state: RunState
    pid: int | None = None
    pid_created: float | None = None
    heartbeat: float = 0.0
    step: int = 0
    max_steps: int | None = None
    progress: float = 0.0
    elapsed_seconds: float = 0.0
    remaining_seconds: float | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    best_val_loss: float | None = None
    tokens_per_second: float | None = None
    message: str = ""

    @property
    def is_active(self) -> bool:
        """Whether a process is at work, or about to be."""
        return self.state in ACTIVE_STATES

    @property
    def is_pending(self) -> bool:
        """Whether it is at work, or waits to be."""
        return self.state in PENDING_STATES

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Metrics:
    """One point of the curves. Losses in nats per token; a loss not measured at this step is None."""

    step: int
    tokens: int
    elapsed_seconds: float
    train_loss: float | None
    val_loss: float | None
    learning_rate: float
    grad_norm: float | None
    tokens_per_second: float | None


class RunDirectory:
    """One run on disk. Constructing it touches nothing; see ``create``, ``create_at`` and ``open``."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.yaml"
        self.command_path = self.path / "command.json"
        self.corpus_path = self.path / "corpus.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.samples_path = self.path / "samples.jsonl"
        self.status_path = self.path / "status.json"
        self.control_path = self.path / "control.json"
        self.evaluation_path = self.path / "evaluation.json"
        self.waiting_path = self.path / "waiting.json"
        self.log_path = self.path / "train.log"
        self.checkpoints_path = self.path / "checkpoints"

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    @property
    def id(self) -> str:
        """The directory's name."""
        return self.path.name

    # Creating and opening

    @classmethod
    def create(
        cls, parent: str | Path, name: str | None = None, *, config: Config, command: Sequence[str] = ()
    ) -> Self:
        """Make a new directory ``<date>_<time>-<name>`` in ``parent``; never an old one.

        Args:
            parent: Where runs are kept; made when missing.
            name: What the run is about; the corpus's name when not given.
            config: Saved as ``config.yaml``.
            command: The command line that trains it, for display.
        """
        label = _slug(name or Path(config.data.source[0]).stem)
        stem = f"{time.strftime('%Y-%m-%d_%H%M%S')}-{label}"
        for number in range(1, 10_000):
            path = Path(parent) / (stem if number == 1 else f"{stem}-{number}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise RunError(f"No run can be created in {str(parent)!r}: {error.strerror}.") from None
            return cls(path)._initialise(config, command)
        raise AssertionError("ten thousand runs within one second")

    @classmethod
    def create_at(cls, path: str | Path, *, config: Config, command: Sequence[str] = ()) -> Self:
        """Make exactly this directory a new run, or take one that ``create`` made and nobody trained yet.

        Raises:
            RunError: The directory already holds a run or other files.
        """
        run = cls(path)
        if run.exists and not run.was_started:
            run.write_config(config)
            return run
        if run.exists:
            raise RunError(f"{str(path)!r} already holds a run: resume it, or choose a new directory.")
        if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
            raise RunError(f"{str(path)!r} is not an empty directory: choose a new one.")
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"The run directory {str(path)!r} cannot be created: {error.strerror}.") from None
        return run._initialise(config, command)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """An existing run; raises RunError when there is none at ``path``."""
        run = cls(path)
        if not run.exists:
            raise RunError(f"There is no run at {str(path)!r}: check the path, or list runs with `fundamentallm runs`.")
        return run

    def _initialise(self, config: Config, command: Sequence[str]) -> Self:
        self.checkpoints_path.mkdir()
        self.write_config(config)
        write_atomically(self.command_path, json_line({"created": time.time(), "command": list(command)}))
        self.write_status(RunStatus("starting", heartbeat=time.time(), max_steps=config.training.max_steps))
        return self

    @property
    def exists(self) -> bool:
        """Whether there is a run here."""
        return self.status_path.is_file()

    @property
    def was_started(self) -> bool:
        """Whether a trainer ever began here."""
        stored = self._stored_status()
        return stored.state != "starting" or self.corpus_path.exists() or self.has_checkpoint

    @property
    def created(self) -> float:
        """When the run was created, in seconds since 1970."""
        stored = read_json(self.command_path) or {}
        created = stored.get("created")
        return float(created) if isinstance(created, int | float) else self.path.stat().st_mtime

    @property
    def command(self) -> list[str]:
        """The command line that trains this run."""
        command = (read_json(self.command_path) or {}).get("command")
        return [str(part) for part in command] if isinstance(command, list) else []

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only trainer of this run.

        Raises:
            RunError: Another one is at work.
        """
        with exclusive_lock(self.path / ".lock") as acquired:
            if not acquired:
                raise RunError(f"The run {self.id} is already being trained: stop it first, or start a new run.")
            yield

    # Configuration

    def write_config(self, config: Config) -> None:
        """Save the resolved configuration."""
        write_atomically(self.config_path, config.to_yaml())

    def config(self) -> Config:
        """The run's configuration; raises ConfigError when it is damaged."""
        return load_config(file=self.config_path, environment=False)

    def corpus(self) -> dict[str, Any] | None:
        """What ``corpus.json`` says about the text; None before it is prepared."""
        return read_json(self.corpus_path)

    # Metrics and samples

    def append_metrics(self, metrics: Metrics) -> None:
        """Add a point to the curves."""
        append_line(self.metrics_path, json_line(asdict(metrics)))

    def metrics(self, after_line: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
        """The rows of the curve in order of step, from row ``after_line`` on, at most ``limit``."""
        rows = _without_superseded(complete_lines(self.metrics_path, 0)[0])[after_line:]
        return rows if limit is None else rows[:limit]

    def tail_metrics(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """The rows written since byte ``offset``, as they were written, and the next offset."""
        return complete_lines(self.metrics_path, offset)

    def append_sample(self, step: int, prompt: str, text: str) -> None:
        """Keep a text the model wrote at ``step``."""
        append_line(self.samples_path, json_line({"step": step, "prompt": prompt, "text": text}))

    def samples(self) -> list[dict[str, Any]]:
        """The texts the model wrote while it learned, oldest first: ``step``, ``prompt``, ``text``."""
        return _without_superseded(complete_lines(self.samples_path, 0)[0])

    def write_evaluation(self, evaluation: Mapping[str, object]) -> None:
        """Keep the final numbers."""
        write_atomically(self.evaluation_path, json_line(evaluation))

    def evaluation(self) -> dict[str, Any] | None:
        """The final numbers; None before they are measured."""
        return read_json(self.evaluation_path)

    # Status and stopping

    def write_status(self, status: RunStatus) -> None:
        """Replace the status."""
        write_atomically(self.status_path, json_line(status.as_dict()))

    def status(self) -> RunStatus:
        """What the run is doing now; a run whose process is gone says so, whatever it wrote last."""
        status = self._stored_status()
        if self.waiting_path.is_file() and (status.pid is None or not process_is_alive(status.pid, status.pid_created)):
            return replace(status, state="waiting", message="")
        if not status.is_active:
            return status
        if status.pid is None:
            if time.time() - status.heartbeat < _START_UP_SECONDS:
                return status
            return replace(status, state="failed", message="Training never started: start it again.")
        if not process_is_alive(status.pid, status.pid_created):
            return replace(status, state="failed", remaining_seconds=None, message=self._sudden_end(status.step))
        is_stopping = status.state == "running" and self.stop_requested()
        return replace(status, state="stopping") if is_stopping else status

    def _stored_status(self) -> RunStatus:
        stored = read_json(self.status_path)
        known = {field.name for field in fields(RunStatus)}
        try:
            return RunStatus(**{key: value for key, value in (stored or {}).items() if key in known})
        except TypeError:
            return RunStatus("failed", message="The status of this run cannot be read: resume it, or start a new one.")

    def _sudden_end(self, step: int) -> str:
        reached = f"Training stopped unexpectedly at step {step}"
        if self.has_checkpoint:
            return f"{reached}; resume continues from step {checkpoint_step(self.checkpoint('last'))}."
        return f"{reached}, before its first checkpoint: start it again."

    def request_stop(self) -> None:
        """Ask the trainer to save and stop; the only thing a reader ever writes."""
        write_atomically(self.control_path, json_line({"request": "stop"}))

    def stop_requested(self) -> bool:
        """Whether somebody asked this run to stop."""
        return (read_json(self.control_path) or {}).get("request") == "stop"

    def withdraw_stale_stop(self) -> None:
        """Forget a stop that was meant for an earlier process; called by a trainer when it begins."""
        stored = self._stored_status()
        if not stored.is_active or stored.pid not in (None, os.getpid()):
            self.control_path.unlink(missing_ok=True)

    # Checkpoints

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoint folders ``step-000500``, in order of step. Each is complete: it got its name by a rename."""
        if not self.checkpoints_path.is_dir():
            return []
        folders = [p for p in self.checkpoints_path.iterdir() if _CHECKPOINT_NAME.fullmatch(p.name) and p.is_dir()]
        return sorted(folders, key=checkpoint_step)

    @property
    def has_checkpoint(self) -> bool:
        """Whether anything was saved yet."""
        return bool(self.checkpoints)

    def checkpoint(self, which: str = "best") -> Path:
        """The folder of the ``best`` or ``last`` checkpoint, or of one named ``step-000500``.

        Without a validation yet, the best is the last.

        Raises:
            RunError: There is no such checkpoint.
        """
        folders = self.checkpoints
        if which in ("best", "last"):
            if not folders:
                raise RunError(f"The run {self.id} has no checkpoint yet: wait for the first one, or train it again.")
            best = (self.checkpoints_path / "best").resolve()
            return self.checkpoints_path / best.name if which == "best" and best.is_dir() else folders[-1]
        for folder in folders:
            if folder.name == which:
                return folder
        names = ", ".join(["best", "last", *(folder.name for folder in folders)])
        raise RunError(f"The run {self.id} has no checkpoint {which!r}: choose one of {names}.")

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of ``step`` is kept."""
        return self.checkpoints_path / f"step-{step:06d}"

    def mark_checkpoint(self, which: Literal["best", "last"], step: int) -> None:
        """Let ``best`` or ``last`` point to the checkpoint of ``step``."""
        point_to(self.checkpoints_path / which, self.checkpoint_path(step))

    def prune_checkpoints(self, keep: int) -> None:
        """Delete all but the newest ``keep`` checkpoints; the best and the last always stay."""
        kept = {self.checkpoint("best").name} if self.has_checkpoint else set()
        for folder in self.checkpoints[:-keep]:
            if folder.name not in kept:
                remove_tree(folder)

    def remove_leftovers(self) -> None:
        """Delete what a trainer that was killed while writing left behind."""
        for directory in (self.path, self.checkpoints_path):
            remove_leftovers(directory)


def list_runs(parent: str | Path = DEFAULT_RUNS_DIRECTORY) -> list[RunDirectory]:
    """The runs in ``parent``, newest first; none when the directory is missing."""
    if not Path(parent).is_dir():
        return []
    runs = [RunDirectory(path) for path in Path(parent).iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted((run for run in runs if run.exists), key=lambda run: (run.created, run.id), reverse=True)


def checkpoint_step(folder: Path) -> int:
    """The step in a checkpoint folder's name; 0 for a folder with another name."""
    match = _CHECKPOINT_NAME.fullmatch(folder.name)
    return int(match[1]) if match else 0


def process_is_alive(pid: int, created: float | None) -> bool:
    """Whether the process that had this id then still runs; a reused id or a zombie counts as dead."""
    try:
        process = psutil.Process(pid)
        # Clock adjustments may move a start time by a fraction of a second.
        same = created is None or abs(process.create_time() - created) < 1.0
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _without_superseded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = []
    for row in rows:
        while result and result[-1].get("step", 0) >= row.get("step", 0):
            result.pop()
        result.append(row)
    return result


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "run"
