"""Measuring: a model's loss on a text, baselines to hold it against, and what it copied."""

from __future__ import annotations

from fundamentallm.evaluation.baselines import Baseline, ladder
from fundamentallm.evaluation.evaluator import Evaluation, EvaluationStopped, evaluate, mean_loss
from fundamentallm.evaluation.memorization import Span, copied_spans

__all__ = ["Baseline", "Evaluation", "EvaluationStopped", "Span", "copied_spans", "evaluate", "ladder", "mean_loss"]
