"""What a training tells the world while it runs: frozen events, and who listens.

A callback receives events and nothing else. To end a training, anyone may call ``RunDirectory.request_stop``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fundamentallm.runs import Metrics, RunDirectory
from fundamentallm.runs.heartbeat import StatusWriter

EndReason = Literal["max_steps", "max_epochs", "max_minutes", "early_stopping", "target_val_loss", "stopped"]


@dataclass(frozen=True)
class Working:
    """Something long goes on besides training: the text is prepared, the model compiled, the result measured."""

    description: str
    progress: float | None
    """Share that is done, 0 to 1; None when it cannot be known."""


@dataclass(frozen=True)
class TrainingStarted:
    """The first step is about to be taken."""

    run: Path
    step: int
    """0, or the step from which a resumed training goes on."""
    max_steps: int | None
    """None when only time ends the training."""
    parameters: int
    vocab_size: int
    train_tokens: int
    validation_tokens: int
    tokens_per_step: int
    device: str
    """One phrase: device and arithmetic."""


@dataclass(frozen=True)
class StepLogged:
    """A point of the curves."""

    metrics: Metrics
    max_steps: int | None
    progress: float
    """Share of the training that is done, 0 to 1."""
    remaining_seconds: float | None


@dataclass(frozen=True)
class Evaluated:
    """The validation loss was measured (nats per token)."""

    step: int
    val_loss: float
    best_val_loss: float
    is_best: bool


@dataclass(frozen=True)
class Sampled:
    """The model continued the prompt."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class CheckpointSaved:
    """The work up to ``step`` is safe in ``path``."""

    step: int
    path: Path
    is_best: bool


@dataclass(frozen=True)
class TrainingEnded:
    """The last step was taken and saved; unless it was stopped, the best checkpoint is measured next."""

    reason: EndReason
    step: int
    best_step: int
    best_val_loss: float | None
    elapsed_seconds: float
    message: str
    """One sentence: why it ended, and what comes next."""


Event = Working | TrainingStarted | StepLogged | Evaluated | Sampled | CheckpointSaved | TrainingEnded


class BaseCallback:
    """Listens to a training; override what is of interest. An exception raised here ends the training."""

    def on_working(self, event: Working) -> None:
        """Something long besides training goes on."""

    def on_training_started(self, event: TrainingStarted) -> None:
        """The first step is about to be taken."""

    def on_step_logged(self, event: StepLogged) -> None:
        """A point of the curves was measured."""

    def on_evaluated(self, event: Evaluated) -> None:
        """The validation loss was measured."""

    def on_sampled(self, event: Sampled) -> None:
        """The model wrote something."""

    def on_checkpoint_saved(self, event: CheckpointSaved) -> None:
        """A checkpoint was written."""

    def on_training_ended(self, event: TrainingEnded) -> None:
        """The last step was taken and saved."""


def notify(callbacks: Iterable[BaseCallback], event: Event) -> None:
    """Tell every callback, in order."""
    for callback in callbacks:
        match event:
            case Working():
                callback.on_working(event)
            case TrainingStarted():
                callback.on_training_started(event)
            case StepLogged():
                callback.on_step_logged(event)
            case Evaluated():
                callback.on_evaluated(event)
            case Sampled():
                callback.on_sampled(event)
            case CheckpointSaved():
                callback.on_checkpoint_saved(event)
            case TrainingEnded():
                callback.on_training_ended(event)


class RunRecorder(BaseCallback):
    """Writes a training into its run directory: curves, samples, status."""

    def __init__(self, run: RunDirectory, status: StatusWriter) -> None:
        self._run = run
        self._status = status

    def on_working(self, event: Working) -> None:
        """Show what goes on in the status."""
        percent = "" if event.progress is None else f" {event.progress:.0%}"
        self._status.update(message=f"{event.description}{percent}")

    def on_training_started(self, event: TrainingStarted) -> None:
        """The run is running from here on."""
        self._status.update(state="running", step=event.step, max_steps=event.max_steps, message=event.device)

    def on_step_logged(self, event: StepLogged) -> None:
        """Append the point and refresh the status."""
        metrics = event.metrics
        self._run.append_metrics(metrics)
        self._status.update(
            step=metrics.step,
            progress=event.progress,
            elapsed_seconds=metrics.elapsed_seconds,
            remaining_seconds=event.remaining_seconds,
            tokens_per_second=metrics.tokens_per_second or self._status.status.tokens_per_second,
            train_loss=metrics.train_loss if metrics.train_loss is not None else self._status.status.train_loss,
        )

    def on_evaluated(self, event: Evaluated) -> None:
        """Refresh the validation losses."""
        self._status.update(step=event.step, val_loss=event.val_loss, best_val_loss=event.best_val_loss)

    def on_sampled(self, event: Sampled) -> None:
        """Keep the text."""
        self._run.append_sample(event.step, event.prompt, event.text)

    def on_training_ended(self, event: TrainingEnded) -> None:
        """What follows is measuring."""
        self._status.update(step=event.step, remaining_seconds=None, elapsed_seconds=event.elapsed_seconds)
