"""Killed, stopped, full: whatever happens to a training, what was saved is intact and goes on exactly."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from on_device import DEVICE
from safetensors.torch import load_file

from fundamentallm.config import Config
from fundamentallm.data.corpus import text_corpus
from fundamentallm.errors import CheckpointError, RunError, TrainingError
from fundamentallm.runs import RunDirectory
from fundamentallm.training.callbacks import BaseCallback, CheckpointSaved, StepLogged, TrainingStarted
from fundamentallm.training.session import run_training

TEXT = "".join(chr(97 + (i * i + i // 7) % 23) for i in range(4000))

# A training in a process of its own that dies by SIGKILL in the middle of step 61: after step 50 was saved, and after
# rows that no checkpoint covers were written.
KILLED = """
import os, signal, sys
from fundamentallm.config import load_config
from fundamentallm.data.corpus import text_corpus
from fundamentallm.runs import RunDirectory
from fundamentallm.training.session import run_training
from fundamentallm.training.trainer import Trainer

real = Trainer._update_weights
def update(self):
    if self.counters.step == 60:
        os.kill(os.getpid(), signal.SIGKILL)
    real(self)
Trainer._update_weights = update
run = RunDirectory.open(sys.argv[1])
run_training(run.config(), text_corpus(open(sys.argv[2]).read()), run)
"""


def configuration(**training: object) -> Config:
    return Config().with_values(
        # dropout, so that the random numbers must be restored too
        model={"d_model": 32, "num_heads": 2, "num_layers": 2, "sequence_length": 16, "dropout": 0.1},
        training={
            "batch_size": 4,
            "max_steps": 100,
            "eval_every_n_steps": 25,
            "save_every_n_steps": 50,
            "device": DEVICE,
            **training,
        },
        generation={"max_tokens": 8},
    )


def run_in(tmp_path: Path, name: str, config: Config) -> RunDirectory:
    return RunDirectory.create_at(tmp_path / name, config=config)


def weights(run: RunDirectory, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint(which) / "model.safetensors")


def assert_equal(a: RunDirectory, b: RunDirectory) -> None:
    """Weights bit for bit, every loss digit for digit, and the same texts."""
    if DEVICE != "cpu":  # a GPU adds in any order
        assert [row["step"] for row in a.metrics()] == [row["step"] for row in b.metrics()]
        assert a.metrics()[-1]["val_loss"] == pytest.approx(b.metrics()[-1]["val_loss"], rel=0.01)
        return
    for name, tensor in weights(a).items():
        assert torch.equal(tensor, weights(b)[name]), name
    timing = {"elapsed_seconds", "tokens_per_second"}
    rows = [[{k: v for k, v in row.items() if k not in timing} for row in run.metrics()] for run in (a, b)]
    assert rows[0] == rows[1]
    assert a.samples() == b.samples()
    assert a.evaluation() == b.evaluation()
    assert a.checkpoint("best").name == b.checkpoint("best").name


def test_killed_and_resumed_equals_never_interrupted(tmp_path: Path) -> None:
    config = configuration()
    whole = run_in(tmp_path, "whole", config)
    run_training(config, text_corpus(TEXT), whole)

    killed = run_in(tmp_path, "killed", config)
    (tmp_path / "text").write_text(TEXT)
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(killed.path), str(tmp_path / "text")], timeout=120, check=False
    )
    assert process.returncode == -signal.SIGKILL
    status = killed.status()
    assert status.state == "failed"
    assert status.message.startswith("Training stopped unexpectedly at step ")
    assert status.message.endswith("; resume continues from step 50.")
    assert killed.metrics()[-1]["step"] == 60

    started: list[TrainingStarted] = []

    class Keeps(BaseCallback):
        def on_training_started(self, event: TrainingStarted) -> None:
            started.append(event)

    before = killed.metrics_path.read_bytes()
    run_training(killed.config(), None, killed, [Keeps()], resume=True)
    assert started[0].step == 50
    assert killed.metrics_path.read_bytes().startswith(before)  # appended, never rewritten
    assert killed.status().state == "finished"
    assert_equal(whole, killed)
    elapsed = [row["elapsed_seconds"] for row in killed.metrics()]
    assert elapsed == sorted(elapsed)


def test_stopped_and_resumed_equals_never_interrupted(tmp_path: Path) -> None:
    config = configuration(optimizer="adamw")
    whole = run_in(tmp_path, "whole", config)
    run_training(config, text_corpus(TEXT), whole)
    stopped = run_in(tmp_path, "stopped", config)

    class Asks(BaseCallback):
        def on_step_logged(self, event: StepLogged) -> None:
            if event.metrics.step == 25:
                stopped.request_stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fundamentallm.training.stopping._POLL_SECONDS", 0.0)
        run_training(config, text_corpus(TEXT), stopped, [Asks()])
    assert stopped.status().state == "stopped" and stopped.status().step == 26
    run_training(config, None, stopped, resume=True)  # the old request to stop does not count
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(stopped)[name]), name
    assert stopped.status().state == "finished"


def test_killed_before_the_first_checkpoint_starts_again_on_the_same_text(tmp_path: Path) -> None:
    config = configuration(max_steps=30)
    whole, run = run_in(tmp_path, "whole", config), run_in(tmp_path, "run", config)
    run_training(config, text_corpus(TEXT), whole)
    run_training(config, text_corpus(TEXT), run)
    shutil.rmtree(run.checkpoints_path)
    run.checkpoints_path.mkdir()
    run_training(config, None, run, resume=True)
    assert_equal(whole, run)


def test_a_finished_run_goes_on_with_a_larger_limit(tmp_path: Path) -> None:
    config = configuration(max_steps=25)
    run = run_in(tmp_path, "run", config)
    run_training(config, text_corpus(TEXT), run)
    evaluation = run.evaluation()
    with pytest.raises(TrainingError, match=r"used up its training\.max_steps of 25 .*larger limit"):
        run_training(config, None, run, resume=True)
    # a refused resume takes nothing away
    assert run.status().state == "finished" and "larger limit" in run.status().message
    assert run.evaluation() == evaluation is not None
    run_training(config.with_values(training={"max_steps": 40}), None, run, resume=True)
    assert run.status().state == "finished" and run.status().step == run.status().max_steps == 40
    assert run.config().training.max_steps == 40
    assert [row["step"] for row in run.metrics()] == list(range(0, 41, 5))


def test_a_run_that_lost_its_patience_gets_a_new_one(tmp_path: Path) -> None:
    config = configuration(max_steps=300, eval_every_n_steps=5, early_stopping_patience=1)
    run = run_in(tmp_path, "run", config)
    text = "ab" * 1500 + "aabb" * 100
    run_training(config, text_corpus(text), run)
    step = run.status().step
    assert step < 300
    run_training(config, None, run, resume=True)
    assert run.status().step > step


def test_what_a_resume_cannot_change(tmp_path: Path) -> None:
    config = configuration(max_steps=2)
    run = run_in(tmp_path, "run", config)
    run_training(config, text_corpus(TEXT), run)
    for changes, named in [
        ({"model": {"d_model": 64}}, "model.d_model from 32 to 64"),
        ({"data": {"tokenizer": "bpe"}}, "data.tokenizer from 'character' to 'bpe'"),
        ({"training": {"optimizer": "sgd"}}, "optimizer from 'muon'"),
    ]:
        with pytest.raises(RunError, match=named):
            run_training(config.with_values(**changes), None, run, resume=True)
    assert run.config() == config.with_values(model={"vocab_size": run.config().model.vocab_size})


def test_the_learning_rate_may_change_on_resume(tmp_path: Path) -> None:
    config = configuration(max_steps=5, lr_scheduler="constant")
    run = run_in(tmp_path, "run", config)
    run_training(config, text_corpus(TEXT), run)
    slower = config.with_values(training={"learning_rate": 1e-4, "max_steps": 10})
    run_training(slower, None, run, resume=True)
    assert [row["learning_rate"] for row in run.metrics()[-2:]] == [config.training.learning_rate, 1e-4]


def test_a_damaged_trainer_state_is_one_sentence(tmp_path: Path) -> None:
    config = configuration(max_steps=2)
    run = run_in(tmp_path, "run", config)
    run_training(config, text_corpus(TEXT), run)
    state = run.checkpoint("last") / "trainer_state.pt"
    longer = config.with_values(training={"max_steps": 4})
    for content in (b"garbage", state.read_bytes()[:1000]):
        state.write_bytes(content)
        with pytest.raises(CheckpointError):
            run_training(longer, None, run, resume=True)
    torch.save({"counters": {"step": "x"}, "optimizers": []}, state)
    with pytest.raises(CheckpointError, match="does not fit"):
        run_training(longer, None, run, resume=True)


def test_leftovers_of_a_kill_while_saving_are_cleaned(tmp_path: Path) -> None:
    config = configuration(max_steps=2)
    run = run_in(tmp_path, "run", config)
    run_training(config, text_corpus(TEXT), run)
    leftover = run.checkpoints_path / ".step-000004.tmp-1"
    shutil.copytree(run.checkpoint("last"), leftover)
    run_training(config.with_values(training={"max_steps": 4}), None, run, resume=True)
    assert not leftover.exists()


FULL_DISK = """
import resource, sys
from fundamentallm.config import load_config
from fundamentallm.data.corpus import text_corpus
from fundamentallm.errors import TrainingError
from fundamentallm.runs import RunDirectory
from fundamentallm.training.callbacks import BaseCallback
from fundamentallm.training.session import run_training

class Fills(BaseCallback):
    def on_checkpoint_saved(self, event):
        # from now on no file may grow beyond this: what a full disk does to a large file, for an ordinary user
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

run = RunDirectory.open(sys.argv[1])
try:
    run_training(run.config(), text_corpus(open(sys.argv[2]).read()), run, [Fills()])
except TrainingError as error:
    print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX's")
def test_disk_full_while_saving(tmp_path: Path) -> None:
    config = configuration(eval_every_n_steps=1000)
    run = run_in(tmp_path, "run", config)
    (tmp_path / "text").write_text(TEXT)
    command = [sys.executable, "-c", FULL_DISK, str(run.path), str(tmp_path / "text")]
    output = subprocess.run(command, timeout=120, capture_output=True, text=True, check=True).stdout
    status = run.status()
    assert status.state == "failed"
    assert status.message == output.strip()
    assert "step 100" in status.message and "is full; step-000050 is intact" in status.message
    assert status.message.count("\n") == 0
    assert [path.name for path in run.checkpoints] == ["step-000050"]
    assert not list(run.checkpoints_path.glob(".*"))  # nothing half-written remains
    run_training(run.config(), None, run, resume=True)  # with room again it goes on
    assert run.status().state == "finished" and run.status().step == 100


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine forbids mounting")
    try:
        config = configuration(eval_every_n_steps=1000, keep_last_n_checkpoints=5, save_every_n_steps=10)
        run = RunDirectory.create_at(disk / "run", config=config)
        with pytest.raises(TrainingError, match=r"is full; step-0000\d0 is intact"):
            run_training(config, text_corpus(TEXT), run)
        assert run.status().state == "failed" and "is full" in run.status().message
        assert load_file(run.checkpoint("last") / "model.safetensors")
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # the error may still hold an open file


def test_launched_survives_its_parent_and_stops_when_asked(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    config = configuration(max_steps=1_000_000, save_every_n_steps=1_000_000)
    run = run_in(tmp_path, "run", config)
    parent = """
        import sys
        from fundamentallm.runs import RunDirectory, launcher
        run = RunDirectory.open(sys.argv[1])
        settings = {"model.d_model": 32, "model.num_heads": 2, "model.num_layers": 1, "model.sequence_length": 16,
                    "training.max_steps": 1_000_000, "training.batch_size": 4, "training.device": "auto"}
        print(launcher.start(launcher.train_command([sys.argv[2]], overrides=settings), run))
    """
    command = [sys.executable, "-c", textwrap.dedent(parent), str(run.path), str(tmp_path / "text.txt")]
    pid = int(subprocess.run(command, timeout=60, capture_output=True, text=True, check=True).stdout)
    assert run.status().pid == pid and run.status().is_active  # and the parent is gone
    log = run.log_path
    try:
        wait_for(lambda: run.status().state == "running" and run.status().step > 0, log)
        run.request_stop()
        wait_for(lambda: not run.status().is_active, log)
    finally:
        if run.status().is_active:
            os.kill(pid, signal.SIGKILL)
    assert run.status().state == "stopped"
    assert run.has_checkpoint and json.loads(run.status_path.read_text())["pid"] == pid


def wait_for(condition: object, log: Path, seconds: float = 90.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_saving_does_not_keep_old_checkpoints_beyond_the_limit(tmp_path: Path) -> None:
    config = configuration(max_steps=40, save_every_n_steps=5, keep_last_n_checkpoints=1)
    run = run_in(tmp_path, "run", config)
    counts: list[int] = []

    class Counts(BaseCallback):
        def on_checkpoint_saved(self, event: CheckpointSaved) -> None:
            counts.append(len(run.checkpoints))

    run_training(config, text_corpus(TEXT), run, [Counts()])
    assert max(counts) <= 2  # the last, and the best if that is another one
