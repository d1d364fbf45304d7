"""The whole path as a user walks it, each command a process of its own."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from fundamentallm.cli.commands import cli

TINY = [
    argument
    for setting in (
        "model.d_model=16", "model.num_heads=2", "model.num_layers=1", "model.sequence_length=16",
        "training.eval_every_n_steps=10", "training.save_every_n_steps=10", "training.log_every_n_steps=5",
        "training.eval_tokens=256",
    )
    for argument in ("--set", setting)
]  # fmt: skip
COMMAND = [sys.executable, "-m", "fundamentallm"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def call(*arguments, directory, check=0, **options):
    result = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=directory,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )
    assert result.returncode == check, result.stderr
    assert "Traceback" not in result.stderr
    return result


def call_here(*arguments, check=0):
    """The same within this process, which need not load torch again."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == check, result.output
    return result


def start(*arguments, directory, **options):
    return subprocess.Popen([*COMMAND, *map(str, arguments)], cwd=directory, env=ENVIRONMENT, text=True, **options)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with a text and one finished run, whose output is kept."""
    directory = tmp_path_factory.mktemp("home")
    (directory / "my text.txt").write_text("the cat sat on the mat. " * 200, encoding="utf-8")
    result = call("train", "my text.txt", *TINY, "--max-steps", 20, directory=directory)
    (directory / "stdout").write_text(result.stdout)
    (directory / "stderr").write_text(result.stderr)
    return directory


@pytest.fixture(scope="module")
def run(home):
    (run,) = (home / "runs").iterdir()
    return run


def test_training_tells_its_story_in_lines(home, run):
    log = (home / "stderr").read_text()
    assert "\x1b" not in log
    assert "parameters" in log
    assert log.count("validation loss") >= 2
    shown = (home / "stdout").read_text()
    assert "bits per byte" in shown
    assert f"fundamentallm generate runs/{run.name}" in shown


def test_then_evaluate_generate_info_runs(home, run, monkeypatch):
    numbers = json.loads(call("evaluate", run, "--json", directory=home).stdout)
    assert numbers["characters"] == 480
    stored = json.loads((run / "evaluation.json").read_text())
    assert numbers["loss"] == pytest.approx(stored["loss"], rel=1e-5)
    monkeypatch.chdir(home)
    settings = ["--prompt", "the", "--max-tokens", "20", "--seed", "1"]
    text = call_here("generate", run, *settings).stdout
    assert text.startswith("the")
    assert call_here("generate", run.name, *settings).stdout == text
    assert "Best validation loss" in call_here("info", run.name).stdout
    listed = call_here("runs").stdout
    assert run.name in listed
    assert "finished" in listed


def test_resume_goes_on_with_more_steps(home, run, monkeypatch):
    monkeypatch.chdir(home)
    result = call_here("train", "--resume", run.name, "--max-steps", 30)
    assert "Resuming at step 20" in result.stderr
    assert len(list((home / "runs").iterdir())) == 1
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 30)
    for wrong in (("--set", "model.num_layers=2"), ("--max-steps", 30)):
        refused = call_here("train", "--resume", run.name, *wrong, check=2)
        assert len(refused.stderr.splitlines()) == 1


def test_json_prints_events_and_nothing_else(home):
    source = (home / "my text.txt").read_text()
    result = call("train", "-", *TINY, "--max-steps", 10, "--run-dir", "chosen", "--json", directory=home, input=source)
    assert result.stderr == ""
    events = [json.loads(line) for line in result.stdout.splitlines()]
    names = [event["event"] for event in events]
    assert names[-1] == "finished"
    assert {"training_started", "step_logged", "evaluated", "checkpoint_saved", "training_ended"} <= set(names)
    assert events[-1]["run"] == "chosen"
    assert events[-1]["state"] == "finished"
    assert events[-1]["evaluation"]["tokens"] == 480
    assert (home / "chosen" / "checkpoints" / "best").exists()
    again = call("train", "my text.txt", "--run-dir", "chosen", directory=home, check=2)
    assert "chosen" in again.stderr


def test_a_run_made_by_the_launcher_is_used(home):
    from fundamentallm.config import Config
    from fundamentallm.runs import RunDirectory

    made = RunDirectory.create(home / "launched", "mine", config=Config())
    quiet = call("train", "my text.txt", *TINY, "--max-steps", 2, "--run-dir", made.path, "--quiet", directory=home)
    assert (quiet.stdout, quiet.stderr) == ("", "")
    assert made.status().state == "finished"
    failing = RunDirectory.create(home / "launched", "failing", config=Config())
    result = call("train", "missing.txt", "--run-dir", failing.path, directory=home, check=2)
    assert failing.status().state == "failed"
    assert failing.status().message == result.stderr.strip()


def test_ctrl_c_saves_says_how_to_resume_and_resume_works(home):
    process = start(
        "train", "my text.txt", *TINY, "--max-steps", 1_000_000, "--run-dir", "interrupted", directory=home,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 10 "):
            break
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    assert "fundamentallm train --resume interrupted" in stdout
    status = json.loads((home / "interrupted" / "status.json").read_text())
    assert status["state"] == "stopped"
    step = status["step"]
    assert step >= 10
    resumed = call("train", "--resume", "interrupted", "--max-steps", step + 5, directory=home)
    assert f"Resuming at step {step:,}" in resumed.stderr
    assert json.loads((home / "interrupted" / "status.json").read_text())["step"] == step + 5


def test_ctrl_c_before_the_first_step_leaves_nothing(home):
    before = sorted((home / "runs").iterdir())
    process = start("train", "-", *TINY, directory=home, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(1.5)  # it is importing, or waiting for its standard input
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert sorted((home / "runs").iterdir()) == before


def test_a_reader_that_closes_the_pipe_is_no_error(home, run):
    process = start(
        "generate", run, "--prompt", "the", "--max-tokens", 3000, directory=home,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(3) == "the"
    process.stdout.close()
    assert process.stderr is not None
    stderr = process.stderr.read()
    assert process.wait(60) == 0
    assert stderr == ""


def test_a_conversation_at_a_terminal(home, run):
    screen = _at_a_terminal(
        ["generate", str(run), "--interactive", "--max-tokens", "8", "--seed", "1"],
        home,
        [("/help", "the cat\r"), ("\n", "\x04")],
    )
    assert "the cat" in screen
    assert "Traceback" not in screen


def test_training_at_a_terminal_shows_a_bar(home):
    screen = _at_a_terminal(
        ["train", "my text.txt", *TINY, "--max-steps", "30", "--run-dir", "bar"], home, [("The run is in", "")]
    )
    assert "━" in screen
    assert "tokens/s" in screen
    assert "Traceback" not in screen


def _at_a_terminal(arguments: list[str], directory: Path, dialogue: list[tuple[str, str]]) -> str:
    """Everything shown while, for each pair, the first is awaited and then the second typed."""
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=directory,
        env=ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "160"},
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    )
    os.close(inside)
    screen, seen, last, end = "", 0, "", time.monotonic() + 60
    typed = time.monotonic()
    while time.monotonic() < end:
        if dialogue and dialogue[0][0] in screen[seen:]:
            seen = len(screen)
            time.sleep(0.3)  # prompt_toolkit has to have drawn its line
            last, typed = dialogue.pop(0)[1], time.monotonic()
            os.write(terminal, last.encode())
        elif not dialogue and last and time.monotonic() > typed + 3:
            typed = time.monotonic()  # what is typed before the prompt is drawn can get lost: a person types it again
            os.write(terminal, last.encode())
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                screen += os.read(terminal, 1 << 16).decode(errors="replace")
            except OSError:  # the other side is closed
                break
        elif process.poll() is not None:
            break
    os.close(terminal)
    assert process.wait(10) == 0, screen
    assert not dialogue, screen
    return screen
