"""Clean-up by age on a public page: real files with set times."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fundamentallm.config import load_config
from fundamentallm.playground import caretaker
from fundamentallm.playground.settings import PUBLIC_LIMITS, PlaygroundSettings, Visitor
from fundamentallm.runs import waiting_line
from fundamentallm.runs.run_directory import RunDirectory, RunStatus

HOURS = PUBLIC_LIMITS.run_hours


@pytest.fixture
def public(tmp_path, monkeypatch) -> PlaygroundSettings:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    (tmp_path / "uploads").mkdir()
    return PlaygroundSettings(tmp_path / "runs", True, PUBLIC_LIMITS)


def make_run(settings, name: str, hours: float, status: RunStatus | None = None, secret: str | None = "x" * 20):
    run = RunDirectory.create(settings.runs_directory, name, config=load_config(preset="small"))
    run.write_status(status or RunStatus("finished"))
    settings.claim(run, Visitor.of(secret))
    (run.checkpoints_path / "step-000001").mkdir()
    (run.checkpoints_path / "step-000001" / "model.safetensors").write_bytes(bytes(1000))
    (run.checkpoints_path / "best").symlink_to("step-000001")
    make_older(run.path, hours)
    return run


def make_older(path: Path, hours: float) -> None:
    then = time.time() - 3600 * hours
    for inside in (*path.rglob("*"), path):
        os.utime(inside, (then, then), follow_symlinks=False)


def test_old_runs_are_removed_and_young_ones_stay(public):
    old, young = make_run(public, "old", HOURS + 1), make_run(public, "young", HOURS - 1)
    failed = make_run(public, "failed", HOURS + 1, RunStatus("running", pid=2**22 + 1))
    removed = caretaker.remove_old(public)
    assert set(removed) == {old.path, failed.path}
    assert sorted(public.runs_directory.iterdir()) == [young.path]
    assert caretaker.remove_old(public) == []


def test_a_run_at_work_or_waiting_or_of_the_host_is_never_removed(public):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        at_work = make_run(public, "at-work", 2 * HOURS, RunStatus("running", pid=process.pid))
        waiting = make_run(public, "waiting", 2 * HOURS)
        waiting_line.join(waiting, [], 60.0)
        hosts = make_run(public, "hosts", 2 * HOURS, secret=None)
        (public.runs_directory / "something-else").mkdir()
        make_older(public.runs_directory / "something-else", 2 * HOURS)
        assert caretaker.remove_old(public) == []
        assert all(run.path.exists() for run in (at_work, waiting, hosts))
        process.kill()
    assert caretaker.remove_old(public) == [at_work.path]
    assert (public.runs_directory / "something-else").exists()


def test_what_a_killed_clean_up_left_is_removed_by_the_next_and_seen_by_nobody(public):
    run = make_run(public, "half", HOURS + 1)
    leaving = run.path.rename(run.path.with_name(f".removed-{run.id}"))
    assert public.visible_runs(Visitor.of("x" * 20)) == []
    caretaker.remove_old(public)
    assert not leaving.exists()


def test_old_uploads_are_removed(public, tmp_path):
    for name, hours in (("old", HOURS + 1), ("young", HOURS - 1), ("both", HOURS + 1)):
        folder = tmp_path / "uploads" / name
        folder.mkdir()
        (folder / "text.txt").write_text("private")
        make_older(folder, hours)
    (tmp_path / "uploads" / "both" / "new.txt").write_text("private")
    make_older(tmp_path / "uploads", HOURS + 1)
    os.utime(tmp_path / "uploads" / "both" / "new.txt")
    for name in ("young",):
        make_older(tmp_path / "uploads" / name, HOURS - 1)
    caretaker.remove_old(public)
    assert sorted(path.name for path in (tmp_path / "uploads").iterdir()) == ["both", "young"]


def test_local_runs_are_kept_for_ever(tmp_path, public):
    local = PlaygroundSettings(tmp_path / "runs")
    run = make_run(local, "old", 100_000)
    assert caretaker.remove_old(local) == []
    assert run.path.exists()


def test_the_caretaker_begins_at_once_and_goes_on_after_an_error(public, caplog):
    """What cannot be done is in the log, and the next look is taken all the same."""
    old = make_run(public, "old", HOURS + 1)
    ended = caretaker.start(public)
    try:
        wait_until(lambda: not old.path.exists())
        run = make_run(public, "broken", 0)
        run.waiting_path.mkdir()
        wait_until(lambda: "could not be looked after" in caplog.text)
        run.waiting_path.rmdir()
        waiting = make_run(public, "waiting", 0)
        waiting_line.join(waiting, ["--no-such-option"], 60.0)
        wait_until(lambda: waiting.status().state == "failed")
    finally:
        ended.set()


def wait_until(condition, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
