"""What a server does on its own: give the next waiting training its place, and remove what visitors left behind."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

from gradio.utils import get_upload_folder

from fundamentallm.playground import jobs
from fundamentallm.playground.settings import PlaygroundSettings
from fundamentallm.runs.files import remove_tree

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_CLEANINGS = 3600.0
_LEAVING = ".removed-"
"""In front of the name of a run that is being removed, so that nobody meets half of it."""


def start(settings: PlaygroundSettings) -> threading.Event:
    """Attend to ``settings.runs_directory`` in a thread of its own, until the returned event is set."""
    ended = threading.Event()
    threading.Thread(target=_attend, args=(settings, ended), name="caretaker", daemon=True).start()
    return ended


def _attend(settings: PlaygroundSettings, ended: threading.Event) -> None:
    next_cleaning = 0.0
    while not ended.is_set():
        # Whatever one look meets, such as a full disk, must not keep the later ones from being taken.
        try:
            jobs.start_waiting(settings)
            if time.monotonic() >= next_cleaning:
                next_cleaning = time.monotonic() + _SECONDS_BETWEEN_CLEANINGS
                remove_old(settings)
        except Exception:
            logging.getLogger(__name__).exception("The waiting trainings could not be looked after")
        ended.wait(_SECONDS_BETWEEN_LOOKS)


def remove_old(settings: PlaygroundSettings) -> list[Path]:
    """Remove the runs and the uploads of visitors that are older than the limit; returns what was removed.

    A run's age counts from the last sign of life of its training. One at work or waiting stays, and so do the runs of
    whoever serves the page, which have no visitor's mark.
    """
    hours = settings.limits.run_hours
    if hours is None:
        return []
    oldest = time.time() - 3600 * hours
    removed = []
    for run in settings.visitors_runs():
        if run.status_path.stat().st_mtime >= oldest:
            continue
        status = run.status()
        if status.is_pending:
            continue
        os.replace(run.path, run.path.with_name(_LEAVING + run.id))
        removed.append(run.path)
    for leaving in settings.runs_directory.glob(f"{_LEAVING}*"):
        remove_tree(leaving)
    # Gradio removes old uploads too, but only those of its own process.
    for folder in Path(get_upload_folder()).glob("*"):
        if _newest(folder) < oldest:
            remove_tree(folder)
            removed.append(folder)
    return removed


def _newest(folder: Path) -> float:
    """When anything in a folder was last written; 0 when it is gone meanwhile."""
    times = [0.0]
    for path in (folder, *folder.rglob("*")):
        try:
            times.append(path.lstat().st_mtime)
        except FileNotFoundError:
            continue
    return max(times)
