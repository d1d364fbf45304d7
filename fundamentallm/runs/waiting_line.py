"""Trainings that wait for a place: first come, first served.

A run waits as long as ``waiting.json`` lies in its directory. It holds the run's number in the line, how long the
training may take, and how to start it. So the line needs no memory: it survives a restart of whatever serves it.

Whoever calls these functions from several threads holds one lock around the calls that change the line.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fundamentallm.errors import FundamentaLLMError
from fundamentallm.runs import launcher
from fundamentallm.runs.files import json_line, read_json, write_atomically
from fundamentallm.runs.run_directory import RunDirectory, list_runs

# Loading PyTorch, reading the text, and measuring the model at the end.
_SECONDS_AROUND_A_TRAINING = 15.0


@dataclass(frozen=True)
class Place:
    """Where a run stands in the line."""

    number: int
    """1 for the next."""
    waiting: int
    """How many wait in all."""
    seconds: float | None
    """Until it starts, roughly; None when that cannot be told."""

    @property
    def phrase(self) -> str:
        """The place in a few words."""
        return f"place {self.number} of {self.waiting}{self._when}"

    @property
    def sentence(self) -> str:
        """The place, and what happens next."""
        return (
            f"All places for trainings are taken, so this one waits: {self.phrase}. "
            "It starts by itself; you may close this page and come back."
        )

    @property
    def _when(self) -> str:
        if self.seconds is None:
            return ""
        return ", about a minute" if self.seconds < 90 else f", about {self.seconds / 60:.0f} minutes"


def join(run: RunDirectory, arguments: Sequence[str], seconds: float | None) -> None:
    """Let a run wait behind all others.

    Args:
        run: Not being trained.
        arguments: For ``launcher.start`` when its turn comes.
        seconds: The longest it may train, for the others to know how long they wait.
    """
    number = 1 + max((_ticket(other)["number"] for other in waiting_runs(run.path.parent)), default=0)
    ticket = {"number": number, "seconds": seconds, "arguments": list(arguments)}
    write_atomically(run.waiting_path, json_line(ticket))


def leave(run: RunDirectory) -> None:
    """Let a run wait no longer; it can be resumed like one that was stopped."""
    status = run.status()
    if status.state != "waiting":
        return
    sentence = "It left the waiting line: Resume lets it wait again."
    run.write_status(replace(status, state="stopped", pid=None, pid_created=None, message=sentence))
    run.waiting_path.unlink(missing_ok=True)


def waiting_runs(parent: Path) -> list[RunDirectory]:
    """The runs in ``parent`` that wait, the next one first."""
    runs = [RunDirectory(path.parent) for path in parent.glob("[!.]*/waiting.json")]
    return sorted((run for run in runs if run.exists), key=lambda run: (_ticket(run)["number"], run.id))


def place_of(run: RunDirectory, places: int | None) -> Place | None:
    """Where a run stands in the line, when ``places`` trainings may be at work at once; None when it does not wait."""
    line = waiting_runs(run.path.parent)
    index = next((index for index, other in enumerate(line) if other.id == run.id), None)
    if index is None:
        return None
    ahead = [_ticket(other)["seconds"] for other in line[:index]]
    at_work = [_seconds_left(other) for other in list_runs(run.path.parent) if other.status().is_active]
    return Place(index + 1, len(line), _seconds_to_wait(at_work, ahead, places))


def start_next(parent: Path, places: int | None, *, threads: int | None = None) -> list[RunDirectory]:
    """Start the runs at the front of the line for which there is a place; returns them.

    Args:
        parent: Where the runs are.
        places: How many trainings may be at work at once; any number when None.
        threads: See ``launcher.start``.
    """
    started: list[RunDirectory] = []
    line = waiting_runs(parent)
    if not line:
        return started
    at_work = sum(run.status().is_active for run in list_runs(parent))
    for run in line:
        if places is not None and at_work >= places:
            break
        if run.status().state == "waiting":
            try:
                launcher.start(_ticket(run)["arguments"], run, threads=threads)
            except FundamentaLLMError as error:
                run.write_status(replace(run.status(), state="failed", message=str(error)))
            else:
                started.append(run)
                at_work += 1
        # Last: killed before this, whoever serves the line next finds the training at work, or starts it.
        run.waiting_path.unlink(missing_ok=True)
    return started


def _ticket(run: RunDirectory) -> dict[str, Any]:
    """What ``waiting.json`` says; a damaged one waits in front, and fails when its turn comes."""
    stored = read_json(run.waiting_path) or {}
    number, seconds, arguments = (stored.get(name) for name in ("number", "seconds", "arguments"))
    return {
        "number": number if isinstance(number, int) else 0,
        "seconds": float(seconds) if isinstance(seconds, int | float) else None,
        "arguments": [str(part) for part in arguments] if isinstance(arguments, list) else [],
    }


def _seconds_left(run: RunDirectory) -> float | None:
    """How long a training at work still takes, roughly."""
    status = run.status()
    left = status.remaining_seconds
    if left is None and status.progress < 1:  # it has not said so yet
        try:
            minutes = run.config().training.max_minutes
        except FundamentaLLMError:
            return None
        return None if minutes is None else 60 * minutes + _SECONDS_AROUND_A_TRAINING
    return _SECONDS_AROUND_A_TRAINING if left is None else left


def _seconds_to_wait(
    at_work: Sequence[float | None], ahead: Sequence[float | None], places: int | None
) -> float | None:
    """When the first place becomes free after everyone ahead has had theirs."""
    if places is None:
        return 0.0
    known = [seconds for seconds in (*at_work, *ahead) if seconds is not None]
    if len(known) < len(at_work) + len(ahead):
        return None
    free = sorted(known[: len(at_work)])[-places:] + [0.0] * (places - len(at_work))
    heapq.heapify(free)
    for seconds in known[len(at_work) :]:
        heapq.heapreplace(free, free[0] + seconds + _SECONDS_AROUND_A_TRAINING)
    return free[0]
