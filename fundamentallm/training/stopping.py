"""One flag that ends a training early: set by a signal, by a request in the run directory, or by code."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fundamentallm.runs import RunDirectory

# Looking at the file five times a second costs nothing and answers a click before one wonders about it.
_POLL_SECONDS = 0.2


class StopFlag:
    """Whether somebody wants the training of ``run`` to save and stop."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._is_set = False
        self._next_look = 0.0

    def set(self) -> None:
        """Ask for the stop from within the process."""
        self._is_set = True

    def is_set(self) -> bool:
        """Whether to stop; looks into the run directory at most five times a second."""
        if not self._is_set and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _POLL_SECONDS
            self._is_set = self._run.stop_requested()
        return self._is_set


@contextmanager
def stop_on_signals(flag: StopFlag) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM set ``flag``; a second one acts as if nobody listened.

    Outside the main thread signals cannot be caught, and this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # None stands for a handler not installed from Python, which cannot be put back.
    previous = {n: signal.getsignal(n) or signal.SIG_DFL for n in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        flag.set()
        signal.signal(number, previous[signal.Signals(number)])

    for number in previous:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
