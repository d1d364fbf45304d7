"""The line of trainings that wait for a place, and that it needs no memory."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from fundamentallm.config import load_config
from fundamentallm.runs import launcher, waiting_line
from fundamentallm.runs.run_directory import RunDirectory, RunStatus, list_runs

TINY = [
    *("arithmetic", "--preset", "small", "--max-steps", "5"),
    *("--set", "model.num_layers=1", "--set", "model.d_model=16", "--set", "model.num_heads=2"),
    *("--set", "model.sequence_length=16", "--set", "data.source=[arithmetic]"),
]


def make_run(parent, name: str, status: RunStatus | None = None, minutes: float = 2.0) -> RunDirectory:
    config = load_config(preset="small", values={"training": {"max_minutes": minutes}})
    run = RunDirectory.create(parent, name, config=config)
    if status is not None:
        run.write_status(status)
    return run


def at_work(parent, name: str, remaining: float | None = None) -> RunDirectory:
    return make_run(parent, name, RunStatus("starting", heartbeat=time.time(), remaining_seconds=remaining))


def test_first_come_first_served(tmp_path):
    names = ["third", "first", "second", "fourth"]
    runs = {name: make_run(tmp_path, name) for name in sorted(names)}
    for name in ("first", "second", "third", "fourth"):
        waiting_line.join(runs[name], [], 60.0)
    line = waiting_line.waiting_runs(tmp_path)
    assert [run.id for run in line] == [runs[n].id for n in ("first", "second", "third", "fourth")]
    assert {run.status().state for run in line} == {"waiting"}
    waiting_line.leave(runs["second"])
    assert runs["second"].status().state == "stopped" and "Resume" in runs["second"].status().message
    waiting_line.join(runs["second"], [], 60.0)
    line = waiting_line.waiting_runs(tmp_path)
    assert [run.id for run in line] == [runs[n].id for n in ("first", "third", "fourth", "second")]
    place = waiting_line.place_of(runs["fourth"], 1)
    assert (place.number, place.waiting) == (3, 4)
    assert waiting_line.place_of(at_work(tmp_path, "other"), 1) is None


def test_a_run_waits_however_long_and_whatever_it_was_before(tmp_path):
    new = make_run(tmp_path, "new", RunStatus("starting", heartbeat=time.time() - 10_000))
    stopped = make_run(tmp_path, "old", RunStatus("stopped", pid=2**22 + 1, step=7, val_loss=2.0, message="Stopped."))
    for run in (new, stopped):
        waiting_line.join(run, [], None)
        # A fresh look, as after a restart.
        assert RunDirectory(run.path).status().state == "waiting"
    assert stopped.status().step == 7 and stopped.status().message == ""
    assert not stopped.status().is_active
    waiting_line.leave(at_work(tmp_path, "at work"))
    assert [run.status().state for run in list_runs(tmp_path)].count("starting") == 1, "it was not in the line"


def test_how_long_it_takes(tmp_path):
    at_work(tmp_path, "one", 50.0)
    at_work(tmp_path, "two", 300.0)
    waiting = [make_run(tmp_path, name) for name in ("a", "b", "c")]
    for run in waiting:
        waiting_line.join(run, [], 100.0)
    around = waiting_line._SECONDS_AROUND_A_TRAINING
    seconds = [waiting_line.place_of(run, 2).seconds for run in waiting]
    assert seconds == pytest.approx([50, 150 + around, 250 + 2 * around])
    assert waiting_line.place_of(waiting[0], 3).seconds == 0
    assert waiting_line.place_of(waiting[0], 1).seconds == pytest.approx(300), "one of two must end, and then another"
    assert waiting_line.place_of(waiting[0], None).seconds == 0


def test_a_training_that_has_not_said_yet_how_long_it_takes(tmp_path):
    at_work(tmp_path, "one")
    run = make_run(tmp_path, "a")
    waiting_line.join(run, [], 100.0)
    around = waiting_line._SECONDS_AROUND_A_TRAINING
    assert waiting_line.place_of(run, 1).seconds == pytest.approx(120 + around)
    endless = make_run(tmp_path, "b")
    waiting_line.join(endless, [], None)
    last = make_run(tmp_path, "c")
    waiting_line.join(last, [], 1.0)
    place = waiting_line.place_of(last, 1)
    assert place.seconds is None and place.phrase == "place 3 of 3"
    assert "place 3 of 3." in place.sentence


def test_the_next_one_starts_when_there_is_a_place(tmp_path):
    busy = at_work(tmp_path, "busy", 10.0)
    first, second = make_run(tmp_path, "first"), make_run(tmp_path, "second")
    for run in (first, second):
        waiting_line.join(run, TINY, 100.0)
    assert waiting_line.start_next(tmp_path, 1) == []
    busy.write_status(replace(busy.status(), state="finished"))
    try:
        assert [run.id for run in waiting_line.start_next(tmp_path, 1)] == [first.id]
        assert first.status().is_active and not first.waiting_path.exists()
        assert second.status().state == "waiting"
        assert waiting_line.start_next(tmp_path, 1) == []
        deadline = time.monotonic() + 60
        while first.status().is_active and time.monotonic() < deadline:
            time.sleep(0.2)
        assert first.status().state == "finished", first.log_path.read_text()
        waiting_line.leave(second)
        assert waiting_line.start_next(tmp_path, 1) == []
    finally:
        launcher.stop(first, kill_after_seconds=5)


def test_a_server_killed_between_starting_a_training_and_taking_it_out_of_the_line(tmp_path):
    """The training is at work, whatever still lies in its directory, and is not started twice."""
    run = make_run(tmp_path, "run", RunStatus("running", pid=1, heartbeat=time.time()))
    waiting_line.join(run, ["--no-such-option"], 100.0)
    assert run.status().state == "running"
    assert waiting_line.start_next(tmp_path, 5) == []
    assert run.status().state == "running" and not run.waiting_path.exists()


def test_a_damaged_ticket_fails_instead_of_blocking_the_line(tmp_path):
    run = make_run(tmp_path, "run")
    waiting_line.join(run, TINY, 100.0)
    run.waiting_path.write_text("{")
    assert waiting_line.place_of(run, 1).number == 1
    waiting_line.start_next(tmp_path, 1)
    deadline = time.monotonic() + 60
    while run.status().is_active and time.monotonic() < deadline:
        time.sleep(0.2)
    assert run.status().state == "failed"
    assert not run.waiting_path.exists()
