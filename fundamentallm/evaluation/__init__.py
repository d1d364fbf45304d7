"""Measuring: a model's loss on a text, baselines to hold it against, and what it copied."""

from __future__ import annotations

from fundamentallm.evaluation.baselines import Baseline, NGram, ladder
from fundamentallm.evaluation.evaluator import (
    Evaluation,
    EvaluationStopped,
    evaluate,
    evaluate_held_out,
    mean_loss,
    token_losses,
)
from fundamentallm.evaluation.memorization import Span, copied_spans

__all__ = [
    "Baseline",
    "Evaluation",
    "EvaluationStopped",
    "NGram",
    "Span",
    "copied_spans",
    "evaluate",
    "evaluate_held_out",
    "ladder",
    "mean_loss",
    "token_losses",
]
