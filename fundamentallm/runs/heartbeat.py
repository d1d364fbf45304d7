"""Keeping status.json fresh, whatever the trainer is busy with."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import psutil

from fundamentallm.runs.run_directory import RunDirectory, RunStatus

_BEAT_SECONDS = 2.0
_UPDATE_SECONDS = 0.5


class StatusWriter:
    """Writes the status of a run: changes at most twice a second, and a heartbeat every two seconds.

    A thread of its own does the writing, so that the heart beats on during a long evaluation or compilation. Use it as
    a context manager; entering and leaving write at once.
    """

    def __init__(self, run: RunDirectory, status: RunStatus) -> None:
        created = psutil.Process().create_time()
        self._run = run
        self._status = replace(status, pid=os.getpid(), pid_created=created)
        self._lock = threading.Lock()
        self._changed = True
        self._last_write = 0.0
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat of {run.id}", daemon=True)

    def __enter__(self) -> Self:
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._finished.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # a reader finds out from the dead process what a full disk cannot hold
            self._write()

    @property
    def status(self) -> RunStatus:
        """The status as last set."""
        return self._status

    def update(self, **changes: Any) -> None:
        """Change some fields; a change of state is written at once, others by the next beat."""
        with self._lock:
            before = self._status.state
            self._status = replace(self._status, **changes)
            self._changed = True
        if self._status.state != before:
            with contextlib.suppress(OSError):
                self._write()

    def _beat(self) -> None:
        while not self._finished.wait(_UPDATE_SECONDS):
            if self._changed or time.monotonic() - self._last_write >= _BEAT_SECONDS:
                with contextlib.suppress(OSError):
                    self._write()

    def _write(self) -> None:
        with self._lock:
            self._status = replace(self._status, heartbeat=time.time())
            self._run.write_status(self._status)
            self._changed = False
            self._last_write = time.monotonic()
