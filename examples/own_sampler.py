"""A sampler of one's own: locally typical sampling.

    python examples/own_sampler.py [CHECKPOINT] [PROMPT]

People rarely say what is most likely, and rarely what is most surprising: they stay close to the expected amount of
information. So keep the tokens whose surprise is nearest to the entropy, until they reach some probability (Meister et
al. 2023, "Locally Typical Sampling", arXiv:2202.00666).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

import fundamentallm as fl
from fundamentallm.generation import generate
from fundamentallm.generation.samplers import BaseSampler

TINY_CHECKPOINT = Path(__file__).parent / "tiny-checkpoint"


class TypicalSampler(BaseSampler):
    """Draws from the tokens that are about as surprising as one would expect."""

    def __init__(self, mass: float = 0.9) -> None:
        self.mass = mass

    @classmethod
    def from_config(cls, config: fl.GenerationConfig) -> Self:
        """A sampler that takes top_p for its mass."""
        return cls(config.top_p or 0.9)

    def probabilities(self, logits: Tensor, history: Tensor | None = None) -> Tensor:
        """The distribution drawn from, (B, V)."""
        probabilities = logits.float().softmax(dim=-1)
        surprise = -probabilities.log()
        entropy = torch.special.entr(probabilities).sum(dim=-1, keepdim=True)  # (B, 1)
        order = (surprise - entropy).abs().argsort(dim=-1)
        ordered = probabilities.gather(-1, order)
        before = ordered.cumsum(dim=-1) - ordered
        kept = ordered.masked_fill(before >= self.mass, 0.0)
        kept = kept / kept.sum(dim=-1, keepdim=True)
        return torch.zeros_like(probabilities).scatter(-1, order, kept)


def main(checkpoint: str = str(TINY_CHECKPOINT), prompt: str = "Once upon a time") -> None:
    """Continue the prompt three times."""
    model = fl.load(checkpoint)
    tokens = model.prompt_tokens(prompt)
    sampler = TypicalSampler(0.9)
    texts: list[list[int]] = [[], [], []]
    for new in generate(model.model, [tokens] * 3, [sampler] * 3, [1, 2, 3], max_tokens=200):
        for text, token in zip(texts, new, strict=True):
            if token is not None:
                text.append(token)
    for text in texts:
        print(f"{prompt}{model.tokenizer.decode(text)}\n---")


if __name__ == "__main__":
    main(*sys.argv[1:3])
