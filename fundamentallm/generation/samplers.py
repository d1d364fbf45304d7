"""From logits to the next token: pure functions of the logits and one uniform number.

Every sampler turns logits (B, V) into probabilities (B, V); one draw per sequence, uniform in [0, 1), then picks the
token through the inverse of the cumulative distribution. Two samplers given the same draw therefore differ only where
their filters do, which is what makes them comparable side by side.

Filters set the logits of excluded tokens to −∞. They compose, in this order: repetition penalty, temperature, top-k,
top-p, min-p.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor

from fundamentallm import registry
from fundamentallm.config import GenerationConfig


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Exclude all but the ``k`` largest logits of each row (and those equal to the k-th); Fan et al. 2018."""
    if k >= logits.size(-1):
        return logits
    kth = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < kth, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Exclude all but the fewest likeliest tokens whose probabilities reach ``p``; Holtzman et al. 2020 (nucleus)."""
    if p >= 1.0:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # what the likelier tokens already reach
    excluded = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= p)
    return logits.masked_fill(excluded, float("-inf"))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Exclude tokens less than ``p`` times as probable as the likeliest one; Nguyen et al. 2024."""
    if p <= 0.0:
        return logits
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), float("-inf"))


def penalise_repetition(logits: Tensor, history: Tensor, penalty: float) -> Tensor:
    """Divide the positive and multiply the negative logits of tokens in ``history`` (B, N); Keskar et al. 2019."""
    seen = logits.gather(-1, history)
    return logits.scatter(-1, history, torch.where(seen > 0, seen / penalty, seen * penalty))


def inverse_cdf(probabilities: Tensor, draw: Tensor) -> Tensor:
    """The token at which the cumulative distribution first exceeds the draw.

    Args:
        probabilities: (B, V), not necessarily normalised.
        draw: (B,) uniform in [0, 1), with no more than float32's precision: in float64 its product with the total then
            never rounds up to the total, so a token of probability zero is never chosen.

    Returns:
        (B,) int64.
    """
    cumulative = probabilities.double().cumsum(dim=-1)
    return torch.searchsorted(cumulative, draw.double()[:, None] * cumulative[:, -1:], right=True)[:, 0]


class BaseSampler(ABC):
    """Chooses the next token of each sequence. A subclass is registered in ``registry.samplers``."""

    needs_history: bool = False
    """Whether ``probabilities`` looks at the tokens so far."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: GenerationConfig) -> Self:
        """A sampler with the settings of ``config`` that concern it."""

    @abstractmethod
    def probabilities(self, logits: Tensor, history: Tensor | None = None) -> Tensor:
        """The distribution drawn from: (B, V) logits and (B, N) tokens so far to (B, V) probabilities."""

    def sample(self, logits: Tensor, draw: Tensor, history: Tensor | None = None) -> Tensor:
        """The next tokens, (B,), for uniform draws (B,): those of :func:`inverse_cdf`, however they are found."""
        return inverse_cdf(self.probabilities(logits, history), draw)


class FilteringSampler(BaseSampler):
    """Temperature and any filters that are set.

    Args:
        temperature: Logits are divided by it; 0 always takes the likeliest token.
        top_k: Keep this many likeliest tokens.
        top_p: Keep the likeliest tokens that together reach this probability.
        min_p: Keep tokens at least this share as probable as the likeliest.
        repetition_penalty: Above 1 makes tokens that already occurred less likely.
    """

    default_top_k: ClassVar[int | None] = None
    default_top_p: ClassVar[float | None] = None
    default_min_p: ClassVar[float | None] = None

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
    ) -> None:
        self.temperature = temperature
        self.top_k = self.default_top_k if top_k is None else top_k
        self.top_p = self.default_top_p if top_p is None else top_p
        self.min_p = self.default_min_p if min_p is None else min_p
        self.repetition_penalty = repetition_penalty
        self.needs_history = repetition_penalty != 1.0

    @classmethod
    def from_config(cls, config: GenerationConfig) -> Self:
        """See :meth:`BaseSampler.from_config`."""
        return cls(
            config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            repetition_penalty=config.repetition_penalty,
        )

    def probabilities(self, logits: Tensor, history: Tensor | None = None) -> Tensor:
        """See :meth:`BaseSampler.probabilities`."""
        logits = logits.float()
        if history is not None and self.repetition_penalty != 1.0:
            logits = penalise_repetition(logits, history, self.repetition_penalty)
        if self.temperature == 0:
            # The limit of dividing by ever smaller temperatures; filters never exclude the likeliest token.
            return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
        logits = logits / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        return logits.softmax(dim=-1)


class GreedySampler(FilteringSampler):
    """Always the likeliest token (after a repetition penalty, if any)."""

    def sample(self, logits: Tensor, draw: Tensor, history: Tensor | None = None) -> Tensor:
        """See :meth:`BaseSampler.sample`; there is nothing to draw."""
        return self.probabilities(logits, history).argmax(dim=-1) if self.needs_history else logits.argmax(dim=-1)

    @classmethod
    def from_config(cls, config: GenerationConfig) -> Self:
        """See :meth:`BaseSampler.from_config`."""
        return cls(0.0, repetition_penalty=config.repetition_penalty)


class TemperatureSampler(FilteringSampler):
    """The model's own distribution, sharpened or flattened."""


class TopKSampler(FilteringSampler):
    """Draws from the k likeliest tokens."""

    default_top_k = 40


class TopPSampler(FilteringSampler):
    """Draws from the nucleus."""

    default_top_p = 0.9


class MinPSampler(FilteringSampler):
    """Draws from what is not much less likely than the likeliest."""

    default_min_p = 0.05


def build_sampler(config: GenerationConfig) -> BaseSampler:
    """The sampler that ``config.strategy`` names; ``auto`` uses whatever filters are set.

    Raises:
        ConfigError: No sampler has that name.
    """
    if config.strategy == "auto":
        return TemperatureSampler.from_config(config)
    cls = registry.samplers.get(config.strategy)
    assert issubclass(cls, BaseSampler)
    return cls.from_config(config)
