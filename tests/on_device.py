"""Where the tests compute: on the CPU, or where ``pytest --device`` says."""

from __future__ import annotations

import torch

DEVICE = str(torch.get_default_device())


def seeded(seed: int) -> torch.Generator:
    """Random numbers on that device, the same every time."""
    return torch.Generator(DEVICE).manual_seed(seed)
