"""The smallest language model there is: the next token depends on the last one and on nothing else.

It is what a transformer has to beat, and it shows training at its plainest: one table, V × V, whose row ``t`` converges
to the logarithms of how often each token followed ``t``.
"""

from __future__ import annotations

from torch import Tensor, nn

from fundamentallm.config import ModelConfig
from fundamentallm.models.base import BaseModel
from fundamentallm.models.kv_cache import KVCache


class Bigram(BaseModel):
    """A table of logits, one row per token."""

    replayable = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(self.vocab_size, self.vocab_size)
        nn.init.zeros_(self.table.weight)  # start from the uniform distribution

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """See :meth:`BaseModel.forward`; the past does not matter, the cache only counts it."""
        if cache is not None:
            cache.advance(tokens.size(1))
        logits: Tensor = self.table(tokens)  # (B, T, V)
        return logits

    def new_cache(self, batch_size: int) -> KVCache:
        """An empty cache without layers."""
        return KVCache(0, batch_size, 1, self.config.sequence_length, 1, device=self.table.weight.device)
