"""How long a training lasts: limits in steps, epochs and minutes, and a clock that keeps track of them."""

from __future__ import annotations

import math
import time
from collections import deque
from statistics import median
from typing import Literal

from fundamentallm.config import TrainingConfig

Limit = Literal["max_steps", "max_epochs", "max_minutes"]


class Budget:
    """Knows how far a training has come, and which step is the last.

    Progress is the largest of the shares used up of every limit that is set. A time limit covers everything between
    the first step and the last checkpoint, so time is set aside for the measurement at the end, and the step that
    would overrun is not begun: the learning rate reaches the end of its decay in time.

    Args:
        config: The limits.
        steps_per_epoch: Optimizer steps (not whole ones, in general) in one pass over the training part.
    """

    def __init__(self, config: TrainingConfig, steps_per_epoch: float) -> None:
        self._limits: dict[Limit, int] = {}
        if config.max_steps is not None:
            self._limits["max_steps"] = config.max_steps
        if config.max_epochs is not None:
            self._limits["max_epochs"] = max(1, math.ceil(config.max_epochs * steps_per_epoch - 1e-9))
        self.max_seconds = None if config.max_minutes is None else 60 * config.max_minutes
        self._elapsed_before = 0.0
        self._started: float | None = None
        # One step or measurement may take long because the machine does something else; the next one will not.
        self._steps: deque[float] = deque(maxlen=9)
        self._measurements: deque[float] = deque(maxlen=5)

    def start(self, elapsed_seconds: float = 0.0) -> None:
        """Start the clock, at what a resumed training has already used."""
        self._elapsed_before, self._started = elapsed_seconds, time.perf_counter()

    def add_step(self, seconds: float) -> None:
        """Tell how long a step took."""
        self._steps.append(seconds)

    def add_measurement(self, seconds: float) -> None:
        """Tell how long a measurement took: validation, sample and checkpoint."""
        self._measurements.append(seconds)

    @property
    def step_seconds(self) -> float:
        """How long the next step will probably take; 0 before the first."""
        return median(self._steps) if self._steps else 0.0

    @property
    def measurement_seconds(self) -> float:
        """How long the next measurement will probably take; 0 before the first."""
        return median(self._measurements) if self._measurements else 0.0

    @property
    def max_steps(self) -> int | None:
        """After how many steps the training ends at the latest; None when only time ends it."""
        return min(self._limits.values(), default=None)

    @property
    def elapsed_seconds(self) -> float:
        """Time since the first step, without the pauses between a stop and a resume."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._elapsed_before + running

    def progress(self, steps: float, elapsed_seconds: float | None = None) -> float:
        """Share of the training that is done after ``steps``, 0 to 1."""
        shares = [steps / limit for limit in self._limits.values()]
        if self.max_seconds is not None:
            elapsed = self.elapsed_seconds if elapsed_seconds is None else elapsed_seconds
            shares.append(elapsed / self._seconds_for_steps(self.max_seconds))
        return min(1.0, max(shares))

    def progress_during(self, step: int) -> float:
        """Progress halfway through the step that comes after ``step`` steps: what its learning rate is taken at."""
        return self.progress(step + 0.5, self.elapsed_seconds + self.step_seconds / 2)

    def used_up(self, steps: int) -> Limit | None:
        """The limit that forbids another step; None when there is room for one."""
        for name, limit in self._limits.items():
            if steps >= limit:
                return name
        if self.max_seconds is None or self._has_time_for(self.step_seconds):
            return None
        return "max_minutes"

    def has_time_to_measure(self) -> bool:
        """Whether, after another measurement like the last one, there would still be time for a step."""
        return self._has_time_for(self.measurement_seconds + self.step_seconds)

    def remaining_seconds(self, steps: int) -> float | None:
        """Estimate of the time left, from the pace so far; None before the first step."""
        elapsed = self.elapsed_seconds
        progress = self.progress(steps)
        if progress <= 0:
            return None
        return max(0.0, elapsed * (1 - progress) / progress)

    def _has_time_for(self, seconds: float) -> bool:
        return self.max_seconds is None or self.elapsed_seconds + seconds <= self._seconds_for_steps(self.max_seconds)

    def _seconds_for_steps(self, max_seconds: float) -> float:
        # Never more than half: a measurement slower than the whole budget must not prevent learning.
        return max(max_seconds - self.measurement_seconds, max_seconds / 2)
