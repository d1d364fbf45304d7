"""A training from the text to the measured model: the one path for Python, the command line and the playground."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from fundamentallm.checkpoint import Checkpoint, load_checkpoint, load_trainer_state
from fundamentallm.config import Config
from fundamentallm.data.corpus import Corpus, open_corpus
from fundamentallm.data.token_store import PreparedData, open_prepared, prepare
from fundamentallm.data.tokenizers import BaseTokenizer
from fundamentallm.devices import resolve_device
from fundamentallm.errors import FundamentaLLMError, RunError, TrainingError
from fundamentallm.evaluation.evaluator import EvaluationStopped, evaluate_held_out
from fundamentallm.models import build_model
from fundamentallm.runs import RunDirectory, RunState, RunStatus
from fundamentallm.runs.heartbeat import StatusWriter
from fundamentallm.training.callbacks import BaseCallback, RunRecorder, TrainingEnded, Working, notify
from fundamentallm.training.estimate import require_memory
from fundamentallm.training.further import copy_weights, starting_point
from fundamentallm.training.stopping import StopFlag, stop_on_signals
from fundamentallm.training.trainer import Trainer


class _StoppedEarly(TrainingError):
    """Somebody asked to stop before there was anything to save."""


def run_training(
    config: Config,
    corpus: Corpus | None,
    run: RunDirectory,
    callbacks: Sequence[BaseCallback] = (),
    resume: bool = False,
    tokenizer: BaseTokenizer | None = None,
    initial: Checkpoint | None = None,
) -> Checkpoint:
    """Prepare the text, train a model on it, and measure the best checkpoint on the whole held-out part.

    Ctrl-C, SIGTERM and ``run.request_stop()`` make it save and return early, without the measurement.

    Args:
        config: The configuration; on resume it may differ from the run's in the section ``training``.
        corpus: What to train on; on resume None means the text the run was started with.
        run: Created for this training, or to be resumed.
        callbacks: Told of everything.
        resume: Go on from the run's last checkpoint; from the beginning if it has none.
        tokenizer: Use this one instead of training one.
        initial: Start from its weights and vocabulary; what ``config.training.from_checkpoint`` names, when not given.

    Returns:
        The best checkpoint.

    Raises:
        FundamentaLLMError: One sentence; the run's status carries the same one.
    """
    with run.lock():
        run.withdraw_stale_stop()
        run.remove_leftovers()
        stop = StopFlag(run)
        status = _first_status(run, config, resume)
        with StatusWriter(run, status) as writer, _accounting(run, writer, resume), stop_on_signals(stop):
            listeners = (RunRecorder(run, writer), *callbacks)
            if resume:
                _require_same_model(config, run)
            start = config.training.from_checkpoint
            if initial is None and start is not None and not run.has_checkpoint:
                initial = starting_point(start)
            if initial is not None:
                tokenizer = initial.tokenizer
            data = _prepared(config, corpus, run, listeners, stop, tokenizer, resume)
            if initial is None and start is None:  # published models often have room for more tokens than they use
                config = config.with_values(model={"vocab_size": data.tokenizer.vocab_size})
            trainer = _trainer(config, data, run, listeners, stop, initial)
            run.write_config(config)
            run.evaluation_path.unlink(missing_ok=True)  # of what the model was before it went on
            ended = trainer.train()
            checkpoint = load_checkpoint(run.checkpoint("best"), trainer.device)
            if ended.reason != "stopped":
                _measure(checkpoint, data, run, listeners, stop)
            state = "stopped" if ended.reason == "stopped" else "finished"
            writer.update(state=state, message=ended.message, remaining_seconds=None, **_final_progress(ended))
            return checkpoint


def _first_status(run: RunDirectory, config: Config, resume: bool) -> RunStatus:
    if not resume:
        return RunStatus("starting", max_steps=config.training.max_steps)
    return replace(run.status(), state="starting", remaining_seconds=None, tokens_per_second=None, message="")


def _require_same_model(config: Config, run: RunDirectory) -> None:
    """What the checkpoint was made with cannot be changed by resuming it."""
    before = run.config()
    for section, free in (("model", "vocab_size"), ("data", "source")):
        old, new = (tree.model_dump()[section] for tree in (before, config))
        changed = [name for name in old if name != free and old[name] != new[name]]
        if changed:
            raise RunError(
                f"Resuming cannot change {section}.{changed[0]} from {old[changed[0]]!r} to {new[changed[0]]!r}: "
                "start a new run for that."
            )
    if before.training.optimizer != config.training.optimizer:
        raise RunError(f"Resuming cannot change the optimizer from {before.training.optimizer!r}: start a new run.")


def _prepared(
    config: Config,
    corpus: Corpus | None,
    run: RunDirectory,
    callbacks: Sequence[BaseCallback],
    stop: StopFlag,
    tokenizer: BaseTokenizer | None,
    resume: bool,
) -> PreparedData:
    if run.has_checkpoint or (resume and run.corpus_path.exists()):  # the last file that preparing writes
        return open_prepared(run.path)

    def report(description: str, share: float) -> None:
        if stop.is_set():
            raise _StoppedEarly("Training was stopped while the text was being prepared: start it again.")
        notify(callbacks, Working(description, share))

    return prepare(
        corpus if corpus is not None else open_corpus(config.data.source),
        config.data,
        run.path,
        sequence_length=config.model.sequence_length,
        tokenizer=tokenizer,
        progress=report,
    )


def _trainer(
    config: Config,
    data: PreparedData,
    run: RunDirectory,
    callbacks: Sequence[BaseCallback],
    stop: StopFlag,
    initial: Checkpoint | None,
) -> Trainer:
    device = resolve_device(config.training.device)
    require_memory(config, device)
    torch.manual_seed(config.training.seed)
    if not run.has_checkpoint:
        model = build_model(config.model)
        if initial is not None:
            copy_weights(model, initial)
        return Trainer(config, model.to(device), data, run, callbacks, stop)
    folder = run.checkpoint("last")
    trainer = Trainer(config, load_checkpoint(folder, device).model.train(), data, run, callbacks, stop)
    trainer.load_state_dict(load_trainer_state(folder))
    _require_something_left(trainer)
    return trainer


def _require_something_left(trainer: Trainer) -> None:
    """Refuse to resume a training that is at its limit; one that lost its patience gets a new one."""
    counters, settings = trainer.counters, trainer.config.training
    trainer.budget.start(counters.elapsed_seconds)
    limit = trainer.budget.used_up(counters.step)
    if limit is not None:
        raise TrainingError(
            f"This run has already used up its training.{limit} of {settings.model_dump()[limit]:g} "
            f"(it is at step {counters.step}): resume it with a larger limit."
        )
    patience = settings.early_stopping_patience
    if patience is not None and counters.stale_evaluations >= patience:
        counters.stale_evaluations = 0


def _measure(
    checkpoint: Checkpoint, data: PreparedData, run: RunDirectory, callbacks: Sequence[BaseCallback], stop: StopFlag
) -> None:
    """Score the whole held-out part with the best checkpoint; a stop leaves the run without these numbers."""

    def report(share: float) -> None:
        notify(callbacks, Working("Measuring the best model on the held-out part", share))

    try:
        evaluation = evaluate_held_out(checkpoint.model, data, progress=report, cancelled=stop.is_set)
    except EvaluationStopped:
        return
    run.write_evaluation(evaluation.as_dict() | {"step": checkpoint.step})


def _final_progress(ended: TrainingEnded) -> dict[str, Any]:
    return {} if ended.reason == "stopped" else {"progress": 1.0}


@contextmanager
def _accounting(run: RunDirectory, writer: StatusWriter, resume: bool) -> Iterator[None]:
    """Whatever ends a training, the status says so in one sentence."""
    try:
        yield
    except _StoppedEarly as error:
        writer.update(state="stopped", message=str(error))
        raise
    except FundamentaLLMError as error:
        refused = resume and run.has_checkpoint and writer.status.state == "starting"
        writer.update(state=_state_at_rest(run) if refused else "failed", message=str(error))
        raise
    except KeyboardInterrupt:
        writer.update(state="stopped", message=f"Interrupted at step {writer.status.step}{_way_on(run)}")
        raise
    except BaseException as error:
        sentence = _sentence_for(error)
        if sentence is None:
            name = type(error).__name__
            writer.update(state="failed", message=f"Training failed with {name}: {error}; see {run.log_path.name}.")
            raise
        writer.update(state="failed", message=sentence + _way_on(run))
        raise TrainingError(sentence + _way_on(run)) from error


def _state_at_rest(run: RunDirectory) -> RunState:
    """What a run with checkpoints is while nobody trains it: a refused resume takes nothing away from it."""
    return "finished" if run.evaluation_path.exists() else "stopped"


def _sentence_for(error: BaseException) -> str | None:
    """What a user can do something about, although no code of ours said so: the machine is too small."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "The disk is full: free some space"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "There is not enough memory: lower training.batch_size, model.sequence_length or model.d_model"
    return None


def _way_on(run: RunDirectory) -> str:
    return f"; resume continues from {run.checkpoint('last').name}." if run.has_checkpoint else "; start it again."
