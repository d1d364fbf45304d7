from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundamentallm.config import Config
from fundamentallm.errors import RunError
from fundamentallm.runs import Metrics, RunDirectory, RunStatus, launcher, list_runs
from fundamentallm.runs.files import point_to, write_atomically
from fundamentallm.runs.heartbeat import StatusWriter


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path, config=Config())


def metrics(step: int, loss: float = 1.0) -> Metrics:
    return Metrics(step, step * 64, step * 0.1, loss, None, 1e-3, 0.5, 1000.0)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_each_run_has_its_own_directory(tmp_path: Path) -> None:
    runs = [RunDirectory.create(tmp_path, "My Text!", config=Config(), command=["a", "b c"]) for _ in range(3)]
    assert len({run.path for run in runs}) == 3
    assert all("my-text" in run.id for run in runs)
    assert runs[0].config() == Config()
    assert runs[0].command == ["a", "b c"]
    assert [run.id for run in list_runs(tmp_path)] == [run.id for run in reversed(runs)]
    assert list_runs(tmp_path / "missing") == []


def test_two_processes_never_get_one_directory(tmp_path: Path) -> None:
    created: list[str] = []
    threads = [
        threading.Thread(target=lambda: created.append(RunDirectory.create(tmp_path, "x", config=Config()).id))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(created)) == 8


def test_create_at_refuses_what_is_there(tmp_path: Path, run: RunDirectory) -> None:
    assert RunDirectory.create_at(run.path, config=Config()).id == run.id  # created, never trained
    run.write_status(RunStatus("finished"))
    with pytest.raises(RunError, match="already holds a run"):
        RunDirectory.create_at(run.path, config=Config())
    other = tmp_path / "other"
    other.mkdir()
    assert RunDirectory.create_at(other, config=Config()).exists
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.doc").touch()
    with pytest.raises(RunError, match="not an empty directory"):
        RunDirectory.create_at(full, config=Config())
    with pytest.raises(RunError):
        RunDirectory.create_at(full / "thesis.doc", config=Config())
    assert (full / "thesis.doc").exists()
    with pytest.raises(RunError, match="no run at"):
        RunDirectory.open(full)


def test_metrics_are_appended_and_tailed(run: RunDirectory) -> None:
    assert run.metrics() == [] and run.tail_metrics(0) == ([], 0)
    for step in (1, 2):
        run.append_metrics(metrics(step))
    rows, offset = run.tail_metrics(0)
    assert [row["step"] for row in rows] == [1, 2]
    assert run.tail_metrics(offset) == ([], offset)
    run.append_metrics(metrics(3, math.nan))
    rows, _ = run.tail_metrics(offset)
    assert rows[0]["step"] == 3 and rows[0]["train_loss"] is None
    assert [row["step"] for row in run.metrics(after_line=1, limit=1)] == [2]


def test_half_a_line_is_skipped_and_closed(run: RunDirectory) -> None:
    run.append_metrics(metrics(1))
    with run.metrics_path.open("ab") as file:
        file.write(b'{"step": 2, "trai')  # killed while writing
    rows, offset = run.tail_metrics(0)
    assert [row["step"] for row in rows] == [1]
    run.append_metrics(metrics(2))
    assert [row["step"] for row in run.tail_metrics(offset)[0]] == [2]
    assert [row["step"] for row in run.metrics()] == [1, 2]


@given(st.lists(st.integers(0, 20), max_size=30))
def test_repeated_steps_supersede_earlier_rows(steps: list[int]) -> None:
    from fundamentallm.runs.run_directory import _without_superseded

    kept = [row["n"] for row in _without_superseded([{"step": step, "n": n} for n, step in enumerate(steps)])]
    # What is kept: a row that no later row's step reaches down to.
    assert kept == [n for n, step in enumerate(steps) if all(later > step for later in steps[n + 1 :])]


def test_samples(run: RunDirectory) -> None:
    run.append_sample(0, "", "<script>\nα")
    run.append_sample(50, "", "b")
    run.append_sample(50, "", "c")
    assert [(s["step"], s["text"]) for s in run.samples()] == [(0, "<script>\nα"), (50, "c")]


def test_status_of_a_dead_process(run: RunDirectory) -> None:
    run.write_status(RunStatus("running", pid=dead_pid(), pid_created=time.time(), step=7))
    status = run.status()
    assert status.state == "failed"
    assert status.message == "Training stopped unexpectedly at step 7, before its first checkpoint: start it again."
    (run.checkpoints_path / "step-000005").mkdir()
    assert "resume continues from step 5" in run.status().message
    # another process has got the same id since
    run.write_status(RunStatus("running", pid=os.getpid(), pid_created=psutil.Process().create_time() - 60))
    assert run.status().state == "failed"


def test_status_of_a_zombie(run: RunDirectory) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    created = psutil.Process(process.pid).create_time()
    run.write_status(RunStatus("running", pid=process.pid, pid_created=created))
    deadline = time.monotonic() + 5
    while run.status().state != "failed" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert run.status().state == "failed"
    process.wait()


def test_status_of_a_process_that_never_came(run: RunDirectory) -> None:
    assert run.status().state == "starting" and run.status().is_active
    run.write_status(RunStatus("starting", heartbeat=time.time() - 1000))
    assert run.status().state == "failed"
    run.status_path.write_text("{")
    assert run.status().state == "failed"


def test_stop_is_asked_for_and_withdrawn(run: RunDirectory) -> None:
    mine = RunStatus("running", pid=os.getpid(), pid_created=psutil.Process().create_time())
    run.write_status(mine)
    assert not run.stop_requested()
    run.request_stop()
    assert run.stop_requested() and run.status().state == "stopping"
    run.withdraw_stale_stop()  # meant for this very process: it stays
    assert run.stop_requested()
    run.write_status(RunStatus("stopped", pid=os.getpid()))
    run.withdraw_stale_stop()
    assert not run.stop_requested()


def test_one_trainer_at_a_time(run: RunDirectory) -> None:
    with run.lock(), pytest.raises(RunError, match="already being trained"), run.lock():
        pass
    with run.lock():
        pass


def test_checkpoints_best_last_and_pruning(run: RunDirectory) -> None:
    with pytest.raises(RunError, match="no checkpoint yet"):
        run.checkpoint("best")
    for step in (100, 200, 300, 400, 1_000_000):
        run.checkpoint_path(step).mkdir()
        (run.checkpoint_path(step) / "config.json").write_text(str(step))
        run.mark_checkpoint("last", step)
        if step == 200:
            run.mark_checkpoint("best", step)
        run.prune_checkpoints(keep=2)
    assert [path.name for path in run.checkpoints] == ["step-000200", "step-000400", "step-1000000"]
    assert run.checkpoint("best").name == "step-000200"
    assert run.checkpoint("last").name == "step-1000000"
    assert (run.checkpoints_path / "last" / "config.json").read_text() == "1000000"
    assert not os.path.isabs(os.readlink(run.checkpoints_path / "best"))
    assert run.checkpoint("step-000400").is_dir()
    with pytest.raises(RunError, match="choose one of best, last"):
        run.checkpoint("step-000300")


def test_links_become_copies_where_there_are_no_symlinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("symbolic link privilege not held")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        point_to(tmp_path / "best", tmp_path / name)
        assert (tmp_path / "best" / "file").read_text() == name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "best"]


def test_leftovers_of_a_killed_trainer_are_removed(run: RunDirectory) -> None:
    (run.checkpoints_path / ".step-000005.tmp-123").mkdir()
    (run.checkpoints_path / ".step-000005.tmp-123" / "model.safetensors").touch()
    (run.path / ".status.json.tmp-123").touch()
    run.remove_leftovers()
    assert list(run.checkpoints_path.iterdir()) == []
    assert not (run.path / ".status.json.tmp-123").exists()


def test_a_full_disk_can_still_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    path.write_text("a longer text than the new one")

    def no_room(self: Path, *args: object, **kwargs: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", no_room)
    write_atomically(path, "{}")
    assert path.read_text() == "{}"
    with pytest.raises(OSError):
        write_atomically(tmp_path / "new.json", "{}")


def test_heartbeat_beats_while_the_trainer_is_busy(run: RunDirectory) -> None:
    with StatusWriter(run, RunStatus("running")) as writer:
        first = run.status()
        assert first.pid == os.getpid() and first.state == "running"
        writer.update(step=3)
        deadline = time.monotonic() + 5
        while run.status().step != 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert run.status().step == 3
        assert run.status().heartbeat > first.heartbeat
        writer.update(state="finished", message="done")
        assert run.status().state == "finished"  # at once


@pytest.mark.parametrize("text", ["plain", "on", "1e3", "a: b", "", "null", "it's"])
def test_command_overrides_are_read_back(text: str) -> None:
    from fundamentallm.config import load_config

    values = {
        "training.sample_prompt": text,
        "training.early_stopping_patience": 3,
        "training.muon_learning_rate": 0.02,
        "model.num_kv_heads": None,
        "model.tie_embeddings": False,
    }
    arguments = launcher.train_command(["a b.txt", "-odd"], preset="small", minutes=0.5, overrides=values)
    assert arguments[:2] == ["a b.txt", "./-odd"]
    assert "--minutes" in arguments and arguments[arguments.index("--minutes") + 1] == "0.5"
    overrides = [arguments[i + 1] for i, argument in enumerate(arguments) if argument == "--set"]
    config = load_config(overrides=overrides, environment=False)
    for path, value in values.items():
        section, field = path.split(".")
        assert config.model_dump()[section][field] == value


def test_launching_is_detached_reaped_and_without_tokens(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    program = "import os,json,sys;print(json.dumps([sys.argv,os.getsid(0)==os.getpid(),'HF_TOKEN' in os.environ]))"
    commands: list[list[str]] = []
    real = subprocess.Popen

    def popen(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        commands.append(command)
        assert options["stdin"] == subprocess.DEVNULL
        return real([sys.executable, "-c", program, *command[5:]], **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(subprocess, "Popen", popen)
    pid = launcher.start(["text.txt"], run)
    assert commands[0][1:5] == ["-P", "-m", "fundamentallm", "train"]
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not psutil.pid_exists(pid)  # reaped: not even a zombie is left
    arguments, is_session_leader, has_token = json.loads(run.log_path.read_text())
    assert arguments[1:] == ["text.txt", "--run-dir", str(run.path)]
    assert is_session_leader and not has_token
    assert run.status().state == "failed"  # it ended without a word
    assert not launcher.is_running(run)


def test_stop_ends_a_process_that_does_not_listen(run: RunDirectory) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    created = psutil.Process(process.pid).create_time()
    run.write_status(RunStatus("running", pid=process.pid, pid_created=created))
    assert launcher.is_running(run)
    with pytest.raises(RunError, match="already being trained"):
        launcher.start([], run)
    launcher.stop(run, kill_after_seconds=0.2)
    assert not launcher.is_running(run)
    assert process.wait(timeout=5) != 0
    launcher.stop(run)  # nothing left to stop: nothing happens
