from __future__ import annotations

import itertools
import json
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from on_device import DEVICE

from fundamentallm.checkpoint import load_checkpoint
from fundamentallm.config import Config
from fundamentallm.data.corpus import text_corpus
from fundamentallm.errors import FundamentaLLMError, RunError, TrainingError
from fundamentallm.evaluation.evaluator import mean_loss
from fundamentallm.runs import RunDirectory
from fundamentallm.training import session
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
from fundamentallm.training.session import run_training
from fundamentallm.training.trainer import Trainer

PERIODIC = "abcdefg\n" * 600
VARIED = "".join(chr(97 + (i * i + i // 7) % 23) for i in range(6000))


def configuration(**training: object) -> Config:
    return Config().with_values(
        model={"d_model": 32, "num_heads": 2, "num_layers": 2, "sequence_length": 16},
        training={
            "batch_size": 8,
            "max_steps": 60,
            "log_every_n_steps": 5,
            "eval_every_n_steps": 20,
            "save_every_n_steps": 20,
            "device": DEVICE,
            **training,
        },
        generation={"max_tokens": 12},
    )


def new_run(tmp_path: Path, config: Config) -> RunDirectory:
    return RunDirectory.create(tmp_path, "test", config=config)


class Recorder(BaseCallback):
    def __init__(self) -> None:
        self.events: list[Event] = []
        for name in [n for n in dir(self) if n.startswith("on_")]:
            setattr(self, name, self.events.append)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def test_learns_a_periodic_text_and_tells_everything(tmp_path: Path) -> None:
    config = configuration(max_steps=120)
    run, recorder = new_run(tmp_path, config), Recorder()
    checkpoint = run_training(config, text_corpus(PERIODIC), run, [recorder])
    evaluation = run.evaluation()
    assert evaluation is not None and evaluation["loss"] < 0.05 and evaluation["accuracy"] > 0.98
    assert evaluation["step"] == checkpoint.step

    rows = run.metrics()
    assert [row["step"] for row in rows] == list(range(0, 121, 5))
    assert rows[0]["val_loss"] == pytest.approx(math.log(12), abs=0.3) and rows[0]["train_loss"] is None
    assert all(row["val_loss"] is not None for row in rows if row["step"] % 20 == 0)
    assert all(row["val_loss"] is None for row in rows if row["step"] % 20)
    assert all(row["train_loss"] < 4 and row["tokens_per_second"] > 0 and row["grad_norm"] > 0 for row in rows[1:])
    assert [row["tokens"] for row in rows] == [step * 8 * 16 for step in range(0, 121, 5)]
    assert all(a["elapsed_seconds"] <= b["elapsed_seconds"] for a, b in itertools.pairwise(rows))
    assert rows[-1]["learning_rate"] < 0.01 * config.training.learning_rate

    status = run.status()
    assert (status.state, status.step, status.max_steps, status.progress) == ("finished", 120, 120, 1.0)
    assert status.message == "Finished 120 steps."
    assert status.val_loss == rows[-1]["val_loss"]

    samples = run.samples()
    assert [sample["step"] for sample in samples] == list(range(0, 121, 20))
    assert samples[-1]["text"] == "abcdefg\nabcd" and samples[-1]["prompt"] == ""

    (started,) = recorder.of(TrainingStarted)
    assert started.step == 0 and started.max_steps == 120 and started.tokens_per_step == 128
    assert started.parameters == checkpoint.model.num_parameters()
    assert [event.metrics.step for event in recorder.of(StepLogged)] == list(range(0, 121, 5))
    assert recorder.of(StepLogged)[-1].progress == 1.0 and recorder.of(StepLogged)[-1].remaining_seconds == 0.0
    assert len(recorder.of(Evaluated)) == len(recorder.of(Sampled)) == 7
    assert recorder.of(CheckpointSaved)[-1].step == 120
    (ended,) = recorder.of(TrainingEnded)
    assert ended.reason == "max_steps" and ended.best_val_loss == status.best_val_loss
    assert any(event.description.startswith("Measuring") for event in recorder.of(Working))

    assert run.config().model.vocab_size == checkpoint.tokenizer.vocab_size == 12
    assert len(run.checkpoints) <= 3
    assert (run.checkpoints_path / "last").resolve() == run.checkpoint("last").resolve()
    with pytest.raises(RunError, match="already holds a run"):
        RunDirectory.create_at(run.path, config=config)


def test_prompt_of_the_samples(tmp_path: Path) -> None:
    config = configuration(sample_prompt="cde", max_steps=1)
    run = new_run(tmp_path, config)
    run_training(config, text_corpus("abcde" * 300), run)  # and a text without a newline
    assert all(sample["prompt"] == "cde" for sample in run.samples())
    config = configuration(max_steps=1)
    run_training(config, text_corpus("abcde" * 300), new_run(tmp_path, config))


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_other_optimizers_learn(tmp_path: Path, optimizer: str) -> None:
    rate = 0.3 if optimizer == "sgd" else 0.01
    config = configuration(optimizer=optimizer, learning_rate=rate, weight_decay=0.0)
    run = new_run(tmp_path, config)
    run_training(config, text_corpus(PERIODIC), run)
    assert run.metrics()[-1]["val_loss"] < 1.5 < run.metrics()[0]["val_loss"]


def trainer_for(tmp_path: Path, config: Config, text: str = VARIED) -> Trainer:
    """A trainer with nothing around it, one step in."""
    run = new_run(tmp_path, config)
    with pytest.MonkeyPatch.context() as patch:
        made: list[Trainer] = []

        def keep(self: Trainer) -> None:
            made.append(self)
            raise KeyboardInterrupt

        patch.setattr(Trainer, "train", keep)
        with pytest.raises(KeyboardInterrupt):
            run_training(config, text_corpus(text), run)
    made[0].budget.start()
    return made[0]


def test_accumulating_two_batches_equals_one_of_twice_the_size(tmp_path: Path) -> None:
    # AdamW's division by the gradient's own size would blow rounding up; SGD shows the gradient as it is.
    settings = {"optimizer": "sgd", "learning_rate": 0.1, "max_steps": 3, "precision": "fp32"}
    twice = trainer_for(tmp_path, configuration(batch_size=4, gradient_accumulation_steps=2, **settings))
    once = trainer_for(tmp_path, configuration(batch_size=8, **settings))
    assert twice.tokens_per_step == once.tokens_per_step and twice.steps_per_epoch == once.steps_per_epoch
    for _ in range(3):
        twice.train_step()
        once.train_step()
    assert twice._mean_train_loss() == pytest.approx(once._mean_train_loss(), rel=1e-5)
    for a, b in zip(twice.model.parameters(), once.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped(tmp_path: Path) -> None:
    settings = {"optimizer": "sgd", "learning_rate": 1.0, "lr_scheduler": "constant", "warmup_steps": 0}
    moved = []
    for limit in (0.01, None):
        trainer = trainer_for(tmp_path, configuration(gradient_clip_norm=limit, weight_decay=0.0, **settings))
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.train_step()
        after = [p.detach() for p in trainer.model.parameters()]
        moved.append(math.dist(torch.cat([p.flatten() for p in before]), torch.cat([p.flatten() for p in after])))
    # Nesterov's first step is 1 + momentum times the gradient.
    assert moved[0] == pytest.approx(0.01 * 1.9, rel=1e-3) and moved[1] > 10 * moved[0]


def test_stop_request_saves_and_stops(tmp_path: Path) -> None:
    config = configuration(max_steps=100_000, eval_every_n_steps=100_000, save_every_n_steps=100_000)
    run = new_run(tmp_path, config)

    class Asks(BaseCallback):
        def on_step_logged(self, event: StepLogged) -> None:
            if event.metrics.step >= 15 and not run.stop_requested():
                run.request_stop()

    checkpoint = run_training(config, text_corpus(VARIED), run, [Asks()])
    status = run.status()
    assert status.state == "stopped" and "resume continues" in status.message
    assert 15 <= status.step < 2000 and status.progress < 1
    assert checkpoint.step == status.step  # measured when it stopped, so it is the best
    assert run.checkpoint("last").name == f"step-{status.step:06d}"
    assert run.evaluation() is None
    assert run.metrics()[-1]["step"] == status.step and run.metrics()[-1]["val_loss"] is not None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_saves_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    config = configuration(max_steps=100_000)
    run, before = new_run(tmp_path, config), signal.getsignal(number)

    class Signals(BaseCallback):
        def on_step_logged(self, event: StepLogged) -> None:
            if event.metrics.step == 10:
                os.kill(os.getpid(), number)

    run_training(config, text_corpus(VARIED), run, [Signals()])
    assert run.status().state == "stopped" and run.checkpoint("last").name == "step-000011"
    assert signal.getsignal(number) is before


def test_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    config = configuration(max_steps=100_000)
    run = new_run(tmp_path, config)

    class Signals(BaseCallback):
        def on_step_logged(self, event: StepLogged) -> None:
            if event.metrics.step == 25:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.2)  # of two signals sent at once the system may deliver one
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.2)

    with pytest.raises(KeyboardInterrupt):
        run_training(config, text_corpus(VARIED), run, [Signals()])
    assert run.status().state == "stopped"
    assert run.status().message == "Interrupted at step 25; resume continues from step-000020."


def test_trains_outside_the_main_thread(tmp_path: Path) -> None:
    config = configuration(max_steps=2)
    run = new_run(tmp_path, config)
    thread = threading.Thread(target=run_training, args=(config, text_corpus(VARIED), run))
    thread.start()
    thread.join()
    assert run.status().state == "finished"


def test_a_stop_while_preparing(tmp_path: Path) -> None:
    config = configuration()
    run = new_run(tmp_path, config)

    class Asks(BaseCallback):
        def on_working(self, event: Working) -> None:
            run.request_stop()

    with pytest.raises(TrainingError, match="stopped while"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("fundamentallm.training.stopping._POLL_SECONDS", 0.0)
        run_training(config, text_corpus(VARIED), run, [Asks()])
    assert run.status().state == "stopped" and not run.has_checkpoint


def test_a_loss_that_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration()
    run = new_run(tmp_path, config)
    real = Trainer.train_step

    def poisoned(self: Trainer) -> None:
        if self.counters.step == 30:
            next(self.model.parameters()).data.fill_(math.nan)
        real(self)

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    with pytest.raises(TrainingError, match="infinite or not a number by step 35: train again with a lower"):
        run_training(config, text_corpus(VARIED), run)
    assert run.status().state == "failed" and "lower learning rate" in run.status().message
    assert run.checkpoint("last").name == "step-000020"
    assert all(p.isfinite().all() for p in load_checkpoint(run.path).model.parameters())
    assert "NaN" not in run.metrics_path.read_text()


def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path) -> None:
    config = configuration(learning_rate=1e30, optimizer="sgd", gradient_clip_norm=None)
    run = new_run(tmp_path, config)
    with pytest.raises(TrainingError, match="lower learning rate"):
        run_training(config, text_corpus(VARIED), run)
    assert not run.has_checkpoint


def test_early_stopping(tmp_path: Path) -> None:
    # Held out is what the training part never shows, so the validation loss only rises.
    config = configuration(max_steps=1000, eval_every_n_steps=10, early_stopping_patience=3, max_minutes=1)
    run, recorder = new_run(tmp_path, config), Recorder()
    checkpoint = run_training(config, text_corpus("ab" * 2500 + "ba" * 5 + "aabb" * 150), run, [recorder])
    (ended,) = recorder.of(TrainingEnded)
    assert ended.reason == "early_stopping" and ended.step < 1000
    assert ended.step == ended.best_step + 30
    assert checkpoint.step == ended.best_step
    assert run.checkpoint("best").name == f"step-{ended.best_step:06d}"
    assert run.status().state == "finished" and run.status().progress == 1.0


def test_target_validation_loss_is_confirmed_on_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []

    def spy(*args: Any, **options: Any) -> float:
        asked.append(options["max_tokens"])
        return mean_loss(*args, **options)

    monkeypatch.setattr("fundamentallm.training.trainer.mean_loss", spy)
    config = configuration(max_steps=1000, target_val_loss=0.5, eval_tokens=64)
    run, recorder = new_run(tmp_path, config), Recorder()
    run_training(config, text_corpus(PERIODIC), run, [recorder])
    assert recorder.of(TrainingEnded)[0].reason == "target_val_loss"
    assert asked[-1] is None and asked[0] == 64


@pytest.mark.parametrize(("part", "whole", "reached"), [(1.01, 0.99, True), (0.99, 1.01, False), (1.03, 0.9, False)])
def test_near_the_target_only_the_whole_held_out_part_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: float, whole: float, reached: bool
) -> None:
    monkeypatch.setattr(Trainer, "_validation_loss", lambda self, max_tokens: whole if max_tokens is None else part)
    config = configuration(max_steps=20, eval_every_n_steps=10, target_val_loss=1.0, eval_tokens=64)
    run, recorder = new_run(tmp_path, config), Recorder()
    run_training(config, text_corpus(PERIODIC), run, [recorder])
    (ended,) = recorder.of(TrainingEnded)
    assert (ended.reason, ended.step) == (("target_val_loss", 10) if reached else ("max_steps", 20))


def test_keeps_the_newest_checkpoints_and_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 2.0, *[2.5] * 20])
    monkeypatch.setattr(Trainer, "_validation_loss", lambda self, max_tokens: next(losses))
    config = configuration(max_steps=70, eval_every_n_steps=10, save_every_n_steps=10, keep_last_n_checkpoints=3)
    run = new_run(tmp_path, config)
    checkpoint = run_training(config, text_corpus(VARIED), run)
    assert [path.name[-2:] for path in run.checkpoints] == ["10", "50", "60", "70"]
    assert checkpoint.step == 10


def test_a_time_budget_finishes_the_decay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that moves whenever somebody looks at it: how busy the machine is says nothing here.
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: 0.01 * next(ticks))
    config = configuration(max_minutes=3 / 60, max_steps=None)
    run, recorder = new_run(tmp_path, config), Recorder()
    run_training(config, text_corpus(VARIED), run, [recorder])
    (ended,) = recorder.of(TrainingEnded)
    assert ended.reason == "max_minutes"
    last = run.metrics()[-1]
    assert last["learning_rate"] < 0.1 * config.training.learning_rate
    assert recorder.of(TrainingStarted)[0].max_steps is None
    assert run.status().message.startswith("The time is up")


def test_epochs_and_a_batch_larger_than_the_text(tmp_path: Path) -> None:
    config = configuration(max_steps=None, max_epochs=2.0, batch_size=64)
    run, recorder = new_run(tmp_path, config), Recorder()
    run_training(config, text_corpus(VARIED[:1000]), run, [recorder])
    (ended,) = recorder.of(TrainingEnded)
    # 900 characters are 55 windows of 16 and a phase, less than a batch: two epochs end in the second step
    assert ended.reason == "max_epochs" and ended.step == 2


def test_bf16_and_compile_are_asked_for_through_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    config = configuration(max_steps=2, precision="bf16", compile=True)
    run = new_run(tmp_path, config)
    checkpoint = run_training(config, text_corpus(VARIED), run)
    assert len(compiled) == 1
    assert {p.dtype for p in checkpoint.model.parameters()} == {torch.float32}


def test_two_trainers_never_share_a_run(tmp_path: Path) -> None:
    config = configuration(max_steps=2)
    run = new_run(tmp_path, config)
    with run.lock(), pytest.raises(RunError, match="already being trained"):
        run_training(config, text_corpus(VARIED), run)


def test_an_unexpected_error_is_in_the_status_and_raised(tmp_path: Path) -> None:
    config = configuration()
    run = new_run(tmp_path, config)

    class Breaks(BaseCallback):
        def on_step_logged(self, event: StepLogged) -> None:
            raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        run_training(config, text_corpus(VARIED), run, [Breaks()])
    assert run.status().state == "failed"
    assert run.status().message == "Training failed with ZeroDivisionError: a bug; see train.log."


def test_a_text_too_short_fails_in_one_sentence(tmp_path: Path) -> None:
    config = configuration()
    run = new_run(tmp_path, config)
    with pytest.raises(FundamentaLLMError) as error:
        run_training(config, text_corpus("short"), run)
    assert run.status().state == "failed" and run.status().message == str(error.value)


def test_a_model_that_cannot_fit_is_refused_before_training(tmp_path: Path) -> None:
    config = configuration().with_values(model={"d_model": 65536, "num_layers": 100})
    run = new_run(tmp_path, config)
    with pytest.raises(TrainingError, match="would fit"):
        run_training(config, text_corpus(VARIED), run)
    assert run.status().state == "failed"


def test_memory_running_out_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(self: Trainer) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    config = configuration()
    run = new_run(tmp_path, config)
    monkeypatch.setattr(Trainer, "train_step", no_memory)
    with pytest.raises(TrainingError, match="not enough memory: lower"):
        run_training(config, text_corpus(VARIED), run)


def test_metrics_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: RunDirectory, metrics: object) -> None:
        raise OSError(28, "No space left on device")

    config = configuration()
    run = new_run(tmp_path, config)
    monkeypatch.setattr(RunDirectory, "append_metrics", full)
    with pytest.raises(TrainingError, match="The disk is full"):
        run_training(config, text_corpus(VARIED), run)
    assert run.status().state == "failed"


def test_no_measurement_after_a_stop_during_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration(max_steps=2)
    run = new_run(tmp_path, config)
    real = session._measure

    def stopped(checkpoint: Any, data: Any, run: Any, callbacks: Any, stop: Any) -> None:
        stop.set()
        real(checkpoint, data, run, callbacks, stop)

    monkeypatch.setattr(session, "_measure", stopped)
    run_training(config, text_corpus(VARIED), run)
    assert run.evaluation() is None and run.status().state == "finished"
    assert json.loads(run.status_path.read_text())["state"] == "finished"
