"""How a training shows itself: as a progress bar at a terminal, as lines in a log, as JSON for a program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from fundamentallm.cli.output import duration, message_console, number, printable
from fundamentallm.training.callbacks import (
    BaseCallback,
    CheckpointSaved,
    Evaluated,
    Event,
    Sampled,
    StepLogged,
    TrainingEnded,
    TrainingStarted,
    Working,
)

_SAMPLE_CHARACTERS = 160  # about two lines of a terminal: enough to see it learn, not so much that the bar runs away


class TrainingDisplay(BaseCallback):
    """A callback that is open while the training runs.

    Whoever looks may leave (``| head``), and the disk that holds the log may be full: then the display goes dark and
    the training goes on.
    """

    def show(self, line: str, *, to_errors: bool = True) -> None:
        """Print a line, if anybody still reads it."""
        with suppress(OSError):
            click.echo(line, err=to_errors)

    def close(self) -> None:
        """Leave the screen in order."""


class LogDisplay(TrainingDisplay):
    """One line on standard error for whatever happens, for a log or a pipe."""

    def __init__(self) -> None:
        self._working = ""
        self._last: StepLogged | None = None

    def on_working(self, event: Working) -> None:
        """Say once what goes on."""
        if event.description != self._working:
            self._working = event.description
            self.show(event.description)

    def on_training_started(self, event: TrainingStarted) -> None:
        """Say what is trained on what."""
        self.show(_headline(event))

    def on_step_logged(self, event: StepLogged) -> None:
        """Remember the point for the next line."""
        self._last = event

    def on_evaluated(self, event: Evaluated) -> None:
        """The one line per measurement."""
        parts = [f"step {number(event.step)}"]
        if self._last is not None:
            parts += _figures(self._last)
        parts.append(f"validation loss {event.val_loss:.4f}{' (best)' if event.is_best else ''}")
        if self._last is not None:
            parts += _time_left(self._last)
        self.show(" · ".join(parts))

    def on_training_ended(self, event: TrainingEnded) -> None:
        """Say why it ended."""
        self.show(event.message)


class BarDisplay(TrainingDisplay):
    """A progress bar on standard error, the losses beside it, and above it what the model writes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("Starting", total=None, figures="")
        self._validation = ""
        self._bar.start()

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()

    def on_working(self, event: Working) -> None:
        """Show the share of what goes on."""
        total = None if event.progress is None else 1.0
        self._bar.update(
            self._task, description=event.description, total=total, completed=event.progress or 0.0, figures=""
        )

    def on_training_started(self, event: TrainingStarted) -> None:
        """Say what is trained on what."""
        self._console.print(_headline(event))
        self._bar.update(self._task, description="Training", total=1.0, completed=0.0)

    def on_step_logged(self, event: StepLogged) -> None:
        """Move the bar."""
        steps = number(event.metrics.step) + (f"/{number(event.max_steps)}" if event.max_steps is not None else "")
        validation = [self._validation] if self._validation else []
        figures = " · ".join([f"step {steps}", *_figures(event), *validation, *_time_left(event)])
        self._bar.update(self._task, description="Training", total=1.0, completed=event.progress, figures=figures)

    def on_evaluated(self, event: Evaluated) -> None:
        """Show the validation loss from now on."""
        self._validation = f"validation {event.val_loss:.4f}"

    def on_sampled(self, event: Sampled) -> None:
        """Show what the model writes by now."""
        written = " ".join((event.prompt + event.text).split())[:_SAMPLE_CHARACTERS]
        self._console.print(Text(f"{event.step:>6}  {printable(written, always=True)}", style="dim"))

    def on_training_ended(self, event: TrainingEnded) -> None:
        """Say why it ended."""
        self._console.print(event.message)


class JsonDisplay(TrainingDisplay):
    """One JSON object per event on standard output."""

    def _print(self, name: str, event: Event) -> None:
        self.show(json_line({"event": name} | asdict(event)), to_errors=False)

    def on_working(self, event: Working) -> None:
        """Print the event."""
        self._print("working", event)

    def on_training_started(self, event: TrainingStarted) -> None:
        """Print the event."""
        self._print("training_started", event)

    def on_step_logged(self, event: StepLogged) -> None:
        """Print the event."""
        self._print("step_logged", event)

    def on_evaluated(self, event: Evaluated) -> None:
        """Print the event."""
        self._print("evaluated", event)

    def on_sampled(self, event: Sampled) -> None:
        """Print the event."""
        self._print("sampled", event)

    def on_checkpoint_saved(self, event: CheckpointSaved) -> None:
        """Print the event."""
        self._print("checkpoint_saved", event)

    def on_training_ended(self, event: TrainingEnded) -> None:
        """Print the event."""
        self._print("training_ended", event)


def display(*, quiet: bool, as_json: bool) -> TrainingDisplay:
    """The display that was asked for, or that suits standard error."""
    if as_json:
        return JsonDisplay()
    if quiet:
        return TrainingDisplay()
    console = message_console()
    return BarDisplay(console) if console.is_terminal else LogDisplay()


def json_line(values: dict[str, object]) -> str:
    """One JSON object on one line."""
    return json.dumps(values, ensure_ascii=False, default=_plain)


def _plain(value: object) -> str:
    assert isinstance(value, Path)
    return str(value)


def _headline(event: TrainingStarted) -> str:
    parts: Sequence[str] = (
        f"{number(event.parameters)} parameters",
        f"vocabulary of {number(event.vocab_size)}",
        f"{number(event.train_tokens)} tokens to learn from, {number(event.validation_tokens)} held out",
        event.device,
    )
    begin = f"Resuming at step {number(event.step)}: " if event.step else ""
    return begin + " · ".join(parts)


def _figures(event: StepLogged) -> list[str]:
    metrics = event.metrics
    parts = [] if metrics.train_loss is None else [f"loss {metrics.train_loss:.4f}"]
    if metrics.tokens_per_second is not None:
        parts.append(f"{number(round(metrics.tokens_per_second))} tokens/s")
    return parts


def _time_left(event: StepLogged) -> list[str]:
    return [f"{duration(event.remaining_seconds)} left"] if event.remaining_seconds else []
