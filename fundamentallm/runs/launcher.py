"""Training as a process of its own: the command, starting it detached, and ending it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

import fundamentallm
from fundamentallm.errors import RunError
from fundamentallm.runs.run_directory import RunDirectory, RunStatus, process_is_alive

# What the command line offers by a name of its own; everything else is `--set section.field=value`.
_OPTIONS = {
    "training.max_epochs": "--epochs",
    "training.max_steps": "--max-steps",
    "training.max_minutes": "--minutes",
    "training.batch_size": "--batch-size",
    "training.learning_rate": "--learning-rate",
    "training.device": "--device",
    "training.seed": "--seed",
}
# A training needs no credentials, so it gets none.
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "OAUTH_CLIENT_SECRET")


def train_command(
    sources: Sequence[str | Path] = (),
    *,
    preset: str | None = None,
    minutes: float | None = None,
    overrides: Mapping[str, object] | None = None,
    resume: str | Path | None = None,
) -> list[str]:
    """The arguments after ``fundamentallm train`` that do this; for showing and for ``start`` alike.

    Args:
        sources: Files, folders, or names of built-in corpora.
        preset: Name of a preset.
        minutes: Time budget; the same as the override ``training.max_minutes``.
        overrides: Settings by path, ``{"model.d_model": 64}``.
        resume: A run to go on with, instead of ``sources``.
    """
    arguments = [_not_an_option(str(source)) for source in sources]
    if resume is not None:
        arguments += ["--resume", str(resume)]
    if preset is not None:
        arguments += ["--preset", preset]
    settings = dict(overrides or {})
    if minutes is not None:
        settings.setdefault("training.max_minutes", minutes)
    for path, value in settings.items():
        if path in _OPTIONS and value is not None:
            arguments += [_OPTIONS[path], _as_text(value)]
        else:
            arguments += ["--set", f"{path}={_as_text(value)}"]
    return arguments


def start(arguments: Sequence[str], run: RunDirectory, *, threads: int | None = None) -> int:
    """Train ``run`` in a process of its own, which outlives this one.

    Args:
        arguments: What follows ``fundamentallm train``; ``--run-dir`` is added unless they resume.
        run: Created and not yet trained, or to be resumed.
        threads: How many it computes with, unless ``OMP_NUM_THREADS`` says so already; all there are when not given.

    Returns:
        The process id.

    Raises:
        RunError: The run is being trained already, or the process cannot be started.
    """
    before = run.status()
    if before.is_active and before.pid is not None:
        raise RunError(f"The run {run.id} is already being trained: stop it first, or start a new run.")
    run.control_path.unlink(missing_ok=True)
    # -P: a file named torch.py in the working directory must not take torch's place.
    command = [sys.executable, "-P", "-m", "fundamentallm", "train", *arguments]
    if "--resume" not in arguments:
        command += ["--run-dir", str(run.path)]
    try:
        with run.log_path.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(threads),
                close_fds=True,
                **_detached(),
            )
    except OSError as error:
        raise RunError(f"The training process cannot be started: {error.strerror}.") from None
    created = None
    with contextlib.suppress(psutil.Error):
        created = psutil.Process(process.pid).create_time()
    if run.status().pid in (None, before.pid):  # not yet overtaken by the process itself
        run.write_status(_starting(before, process.pid, created))
    # A child that nobody waits for stays a zombie as long as this process lives.
    threading.Thread(target=process.wait, name=f"reaper of {run.id}", daemon=True).start()
    return process.pid


def stop(run: RunDirectory, *, kill_after_seconds: float | None = None) -> None:
    """Ask the trainer to save and stop, and optionally make sure that it ends.

    Args:
        run: Any run; one that is not being trained stays as it is.
        kill_after_seconds: Wait so long for it to stop by itself, then end the process; do not wait when None.
    """
    status = run.status()
    if not status.is_active:
        return
    run.request_stop()
    if kill_after_seconds is None or status.pid is None:
        return
    if _ends_within(run, kill_after_seconds):
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(status.pid)
        if process_is_alive(status.pid, status.pid_created):
            process.kill()
            _ends_within(run, 5.0)


def is_running(run: RunDirectory) -> bool:
    """Whether a process trains this run now."""
    status = run.status()
    return status.is_active and status.pid is not None


def _ends_within(run: RunDirectory, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while run.status().is_active:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _starting(before: RunStatus, pid: int, created: float | None) -> RunStatus:
    """What is known until the process speaks for itself; a resumed run keeps its numbers in sight."""
    return RunStatus(
        "starting",
        pid=pid,
        pid_created=created,
        heartbeat=time.time(),
        step=before.step,
        max_steps=before.max_steps,
        progress=before.progress,
        elapsed_seconds=before.elapsed_seconds,
        train_loss=before.train_loss,
        val_loss=before.val_loss,
        best_val_loss=before.best_val_loss,
    )


def _environment(threads: int | None) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    if threads is not None:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    # The package may be importable only because of the directory this process was started in.
    package_parent = str(Path(fundamentallm.__file__).resolve().parent.parent)
    paths = [package_parent, *environment.get("PYTHONPATH", "").split(os.pathsep)]
    return environment | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}


def _detached() -> dict[str, Any]:
    if os.name == "nt":
        return {"creationflags": 0x00000008 | 0x00000200}  # DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP
    return {"start_new_session": True}


def _not_an_option(source: str) -> str:
    return f"./{source}" if source.startswith("-") and source != "-" else source


def _as_text(value: object) -> str:
    """The value as YAML on one line; a string that YAML would read as something else is quoted."""
    if isinstance(value, str):
        return value if yaml.safe_load(value or "null") == value else json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
