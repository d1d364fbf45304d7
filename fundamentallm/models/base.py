"""What every model is: token ids in, logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fundamentallm import registry
from fundamentallm.config import ModelConfig
from fundamentallm.models.kv_cache import KVCache

Decoder = Callable[[Tensor, KVCache], Tensor]


class BaseModel(nn.Module, ABC):
    """A causal language model over ``config.vocab_size`` tokens.

    A subclass is registered in ``registry.models`` and found by ``config.architecture``.
    """

    rolls: bool = True
    """Whether a cache can go on past the context: true unless a token's absolute position is added to it."""

    replayable: bool = False
    """Whether ``forward`` does the same operations with every batch of a shape, so that a GPU may replay them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.vocab_size is not None, "vocab_size is known once the tokenizer is"
        self.config = config
        self.vocab_size = config.vocab_size

    @abstractmethod
    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits of the token after each given one.

        Args:
            tokens: (B, T) int64; T is at most ``config.sequence_length``, less what a cache already holds.
            cache: What was read before; the new tokens are added to it. Where the model rolls, single tokens may be
                added without end, and each sees the last ``config.sequence_length`` tokens.

        Returns:
            (B, T, V) logits.
        """

    @abstractmethod
    def new_cache(self, batch_size: int) -> KVCache:
        """An empty cache for ``batch_size`` sequences, on the model's device."""

    def decoder(self) -> Decoder:
        """What reads one new token of each sequence, (B,), into a cache, and returns the logits (B, V) of the next.

        Good for one text: made anew when the weights have been replaced.
        """

        @torch.inference_mode()
        def decode(tokens: Tensor, cache: KVCache) -> Tensor:
            logits: Tensor = self(tokens[:, None], cache)
            return logits[:, -1]

        return decode

    def muon_matrices(self) -> list[nn.Parameter]:
        """The weight matrices that Muon may orthogonalise; all other parameters are AdamW's."""
        return []

    def num_parameters(self) -> int:
        """Number of trainable numbers; tied weights count once."""
        return sum(parameter.numel() for parameter in self.parameters())


def build_model(config: ModelConfig) -> BaseModel:
    """A freshly initialised model of the registered ``config.architecture``.

    Raises:
        ConfigError: No model has that name.
    """
    cls = registry.models.get(config.architecture)
    assert issubclass(cls, BaseModel)
    return cls(config)
