"""What the live chart is told: new points only, thinned history, and one sentence on what the curve shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fundamentallm.errors import FundamentaLLMError
from fundamentallm.playground import jobs
from fundamentallm.playground.measuring import held_out_baselines
from fundamentallm.playground.settings import PlaygroundSettings, Visitor
from fundamentallm.runs.run_directory import RunDirectory

Row = Mapping[str, object]
COLUMNS = ("step", "train_loss", "val_loss", "learning_rate", "tokens_per_second", "elapsed_seconds")
MAX_POINTS = 3_000
"""Points sent at once: more than a screen has pixels, few enough for a phone."""


MAX_SAMPLES = 60
MAX_EARLIER_RUNS = 5
_MAX_BASELINE_BYTES = 1_000_000
"""Of a held-out part that is worth a second of counting while the model trains."""


@dataclass(frozen=True)
class Phase:
    """What a loss curve shows, in one plain sentence."""

    kind: Literal["starting", "fast", "slowing", "flat", "overfitting", "rising"]
    sentence: str
    since_step: int | None = None
    """Where overfitting began: the step of the best validation loss."""

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return asdict(self)


def number(row: Row, name: str) -> float | None:
    """A finite number from a row of metrics, or None."""
    value = row.get(name)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def in_order(rows: Sequence[Row]) -> list[Row]:
    """The rows of one curve: where a resume went back to an earlier step, what it repeated replaces what was there."""
    result: list[Row] = []
    for row in rows:
        step = number(row, "step")
        if step is None:
            continue
        while result and (number(result[-1], "step") or 0) >= step:
            result.pop()
        result.append(row)
    return result


def thinned(rows: Sequence[Row], limit: int = MAX_POINTS) -> list[Row]:
    """At most about ``limit`` rows, evenly spread; rows with a validation loss and the last row always stay."""
    if len(rows) <= limit:
        return list(rows)
    stride = math.ceil(len(rows) / limit)
    last = len(rows) - 1
    return [r for i, r in enumerate(rows) if i % stride == 0 or i == last or number(r, "val_loss") is not None]


def columns(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """Rows as columns, which is half the bytes."""
    return {name: [number(row, name) for row in rows] for name in COLUMNS}


def describe_curve(rows: Sequence[Row]) -> Phase:
    """Answer "is this loss curve normal?" in one sentence.

    Overfitting means: at least three validation measurements after the best one, the last of them at least 1 % worse,
    while the training loss went on falling. Learning fast means that the last quarter of the steps brought more than a
    tenth of the whole improvement; slowing, more than a hundredth.

    Args:
        rows: Metrics of one run, in the order of their steps.
    """
    train = _points(rows, "train_loss")
    validation = _points(rows, "val_loss")
    if len(train) < 8:
        return Phase("starting", "Just started: the loss falls fastest in the first moments.")
    first, now = _mean(train[:3]), _mean(train[-max(3, len(train) // 20) :])
    overfitting = _overfitting(train, validation, now)
    if overfitting is not None:
        return overfitting
    lowest = min(_mean(train[i : i + 5]) for i in range(0, len(train), 5))
    if now > first or now > lowest + 0.25 * max(first - lowest, 1e-9):
        return Phase("rising", "The loss is rising instead of falling: stop, and try a lower learning rate.")
    steps = train[-1][0] - train[0][0]
    before = [point for point in train if point[0] <= train[-1][0] - steps / 4]
    recent = _mean(before[-max(3, len(train) // 20) :]) - now
    share = recent / max(first - now, 1e-9)
    if share > 0.1:
        return Phase("fast", "Learning fast: every further second still pays.")
    if share > 0.01:
        return Phase(
            "slowing", "Slowing down, as it should: the easy patterns are learnt, the rest comes in small steps."
        )
    return Phase("flat", "Hardly moving any more: a larger model or more text would learn further than more time.")


def answer_tail(settings: PlaygroundSettings, question: object) -> dict[str, Any]:
    """What is new in a run since the last answer, for assets/chart.js.

    Args:
        settings: Decides whether the asker may see the run.
        question: ``{"run", "secret", "offset", "samples"}`` from the browser, not to be trusted: the byte offset and
            the number of samples that an earlier answer reached, 0 at first.
    """
    try:
        run, asked = _opened(settings, question)
    except FundamentaLLMError as error:
        return {"error": str(error)}
    answer = tail(run, _count(asked.get("offset")), _count(asked.get("samples")))
    place = jobs.place_of(settings, run, answer["status"]["state"])
    if place is not None:
        answer["status"]["sentence"] = place.sentence
    return answer


def tail(run: RunDirectory, offset: int, known_samples: int) -> dict[str, Any]:
    """Metrics after byte ``offset``, samples after the first ``known_samples``, and the status.

    The phase is None when no validation loss is among the new rows: it is then what it was.
    """
    rows, next_offset = run.tail_metrics(offset)
    whole = in_order(rows) if offset == 0 else rows
    phase = None
    if offset == 0 or any(number(row, "val_loss") is not None for row in rows):
        phase = describe_curve(whole if offset == 0 else run.metrics()).as_dict()
    samples = run.samples()
    return {
        "columns": columns(thinned(whole)),
        "offset": next_offset,
        "samples": [
            {key: s.get(key) for key in ("step", "prompt", "text")} for s in samples[known_samples:][-MAX_SAMPLES:]
        ],
        "samples_total": len(samples),
        "phase": phase,
        "status": {**run.status().as_dict(), "sentence": _sentence(run)},
    }


def answer_earlier(settings: PlaygroundSettings, question: object) -> dict[str, Any]:
    """The validation curves of the runs before the asked one, newest first, for the faint lines."""
    try:
        run, asked = _opened(settings, question)
    except FundamentaLLMError as error:
        return {"error": str(error)}
    visitor = Visitor.of(asked.get("secret"))
    others = [other for other in settings.visible_runs(visitor) if other.id != run.id and other.created <= run.created]
    curves: list[dict[str, Any]] = []
    for other in others[: 2 * MAX_EARLIER_RUNS]:
        points = thinned_points(_points(other.metrics(), "val_loss"))
        if len(points) > 1 and len(curves) < MAX_EARLIER_RUNS:
            curves.append({"name": other.id, "step": [s for s, _ in points], "loss": [v for _, v in points]})
    return {"runs": curves}


def answer_baselines(settings: PlaygroundSettings, question: object) -> dict[str, Any]:
    """What counting models reach on a run's held-out part, for the lines that the curve has to cross.

    ``baselines`` is None as long as the run's text is not prepared, and empty where measuring would take too long.
    """
    try:
        run, asked = _opened(settings, question)
        if not run.corpus_path.exists():  # the last file that preparing writes
            return {"baselines": None}
        if (run.path / "tokens" / "validation.txt").stat().st_size > _MAX_BASELINE_BYTES:
            return {"baselines": []}
        rungs = held_out_baselines(settings, run.id, Visitor.of(asked.get("secret")))
    except (FundamentaLLMError, OSError):
        return {"baselines": []}
    return {"baselines": [{"name": rung["name"], "loss": rung["loss"]} for rung in rungs if rung["loss"] is not None]}


def thinned_points(points: Sequence[tuple[float, float]], limit: int = 400) -> list[tuple[float, float]]:
    """At most about ``limit`` points, evenly spread, the last one included."""
    stride = math.ceil(len(points) / limit) or 1
    return [p for i, p in enumerate(points) if i % stride == 0 or i == len(points) - 1]


def _opened(settings: PlaygroundSettings, question: object) -> tuple[RunDirectory, dict[str, Any]]:
    asked = question if isinstance(question, dict) else {}
    return settings.open_run(asked.get("run"), Visitor.of(asked.get("secret"))), asked


def _count(value: object) -> int:
    return max(0, min(value, 2**53)) if isinstance(value, int) else 0


def _sentence(run: RunDirectory) -> str:
    """What the state means, in one sentence; empty while it runs, when the phase of the curve says more."""
    status = run.status()
    if status.state == "running":
        return status.message if status.progress >= 1 else ""  # at the end: what is being measured
    if status.state == "starting":
        return status.message or "Getting ready: reading the text and building the model."
    if status.state == "stopping":
        return "Saving what it has learnt, then stopping."
    never_began = status.state == "stopped" and not status.step and status.message
    if status.state == "failed" or never_began:
        return status.message or "Training failed: the log in the run directory says why."
    loss = (run.evaluation() or {}).get("loss")
    measured = f", with a loss of {loss:.3f} on all of the unseen text" if isinstance(loss, float) else ""
    if status.state == "finished":
        return f"Finished after {status.step:,} steps{measured}."
    advice = "Resume continues the same curve." if run.has_checkpoint else "Nothing was saved yet."
    return f"Stopped after {status.step:,} steps{measured}; the work is kept. {advice}"


def _overfitting(
    train: Sequence[tuple[float, float]], validation: Sequence[tuple[float, float]], train_now: float
) -> Phase | None:
    if len(validation) < 4:
        return None
    best = min(range(len(validation)), key=lambda i: validation[i][1])
    best_step, best_loss = validation[best]
    if len(validation) - 1 - best < 3 or validation[-1][1] < 1.01 * best_loss:
        return None
    around = [point for point in train if point[0] <= best_step][-max(3, len(train) // 20) :]
    if around and train_now >= _mean(around):
        return None
    return Phase(
        "overfitting",
        f"Overfitting since step {best_step:,.0f}: the loss on unseen text rises while the training loss still falls, "
        "so the model now memorises. The model of that step is kept.",
        int(best_step),
    )


def _points(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    pairs = ((number(row, "step"), number(row, name)) for row in rows)
    return [(step, value) for step, value in pairs if step is not None and value is not None]


def _mean(points: Sequence[tuple[float, float]]) -> float:
    return sum(value for _, value in points) / len(points)
