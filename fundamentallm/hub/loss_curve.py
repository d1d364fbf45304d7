"""The loss curve of a run as a picture for its model card, drawn without a browser."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

Points = list[tuple[float, float]]

_WIDTH, _HEIGHT = 1000, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 24, 48, 60
_SCALE = 2  # drawn twice as large and shrunk, which smooths the lines
_INK, _GRID, _TRAINING, _VALIDATION = "#2a2722", "#e4dfd3", "#8fb8bd", "#0f5c66"


def draw_loss_curve(rows: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Training and validation loss over steps, as a PNG.

    Args:
        rows: What ``RunDirectory.metrics`` returns.

    Returns:
        The picture; None when there are fewer than two points to draw.
    """
    # Imported here: only a push draws.
    from PIL import Image, ImageDraw, ImageFont

    training, validation = _points(rows, "train_loss"), _points(rows, "val_loss")
    if max(len(training), len(validation)) < 2:
        return None
    both = training + validation
    last = max(step for step, _ in both)
    low, high = min(loss for _, loss in both), max(loss for _, loss in both)
    margin = 0.05 * (high - low) or 0.1
    low, high = low - margin, high + margin

    image = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(15 * _SCALE)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def place(step: float, loss: float) -> tuple[float, float]:
        x = _LEFT + (right - _LEFT) * step / (last or 1)
        y = bottom - (bottom - _TOP) * (loss - low) / (high - low)
        return x * _SCALE, y * _SCALE

    def write(x: float, y: float, text: str, anchor: str, color: str = _INK) -> None:
        draw.text((x * _SCALE, y * _SCALE), text, fill=color, font=font, anchor=anchor)

    for loss in _ticks(low, high):
        _, y = place(0, loss)
        draw.line([(_LEFT * _SCALE, y), (right * _SCALE, y)], fill=_GRID, width=_SCALE)
        write(_LEFT - 10, y / _SCALE, f"{loss:g}", "rm")
    for step in _ticks(0, last):
        x, _ = place(step, low)
        draw.line([(x, bottom * _SCALE), (x, (bottom + 5) * _SCALE)], fill=_INK, width=_SCALE)
        write(x / _SCALE, bottom + 10, f"{step:,.0f}", "ma")
    draw.line([(_LEFT * _SCALE, bottom * _SCALE), (right * _SCALE, bottom * _SCALE)], fill=_INK, width=_SCALE)
    write(right, _HEIGHT - 12, "step", "rs")
    write(_LEFT, _TOP - 18, "loss, nats per token:", "ls")
    write(_LEFT + 160, _TOP - 18, "training", "ls", _TRAINING)
    write(_LEFT + 235, _TOP - 18, "validation", "ls", _VALIDATION)
    for points, color, width in ((training, _TRAINING, 2), (validation, _VALIDATION, 3)):
        if len(points) > 1:
            draw.line([place(*point) for point in points], fill=color, width=width * _SCALE, joint="curve")
    buffer = io.BytesIO()
    image.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _points(rows: Sequence[Mapping[str, Any]], field: str) -> Points:
    found = ((row.get("step"), row.get(field)) for row in rows)
    return [(float(s), float(v)) for s, v in found if isinstance(s, int) and isinstance(v, int | float)]


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two."""
    size = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(size)) if size > 0 else 1.0
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= size)
    return [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
