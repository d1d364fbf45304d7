"""The learning rate over a training: pure functions of how far it has come."""

from __future__ import annotations

import math

from fundamentallm.config import TrainingConfig


def learning_rate_factor(config: TrainingConfig, progress: float, step: int) -> float:
    """What the peak learning rate is multiplied with.

    Args:
        config: The schedule, its warm-up, and ``min_lr_ratio``, where it ends.
        progress: Share of the training that is done, 0 to 1, by whichever limit comes first.
        step: Steps done; matters only when the warm-up is given in steps.

    Returns:
        A factor between 0 and 1.

    Sources: ``wsd`` (warm up, stay, decay): Hu et al. 2024, "MiniCPM"; ``cosine``: Loshchilov & Hutter 2017, "SGDR".
    """
    progress = min(max(progress, 0.0), 1.0)
    floor = config.min_lr_ratio
    return _warmup(config, progress, step) * (floor + (1 - floor) * _decay(config, progress))


def _warmup(config: TrainingConfig, progress: float, step: int) -> float:
    if config.warmup_steps is not None:
        # One more, so that the first step already learns something.
        return min(1.0, (step + 1) / (config.warmup_steps + 1))
    return min(1.0, progress / config.warmup_fraction) if config.warmup_fraction else 1.0


def _decay(config: TrainingConfig, progress: float) -> float:
    """From 1 at the start to 0 at the end, by the schedule's shape."""
    match config.lr_scheduler:
        case "constant":
            return 1.0
        case "wsd":
            return min(1.0, (1 - progress) / config.decay_fraction)
        case "linear":
            return 1 - progress
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
