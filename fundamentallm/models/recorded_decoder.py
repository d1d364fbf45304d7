"""The transformer for one new token of each sequence, recorded on a GPU and replayed for every token.

A recording replays its operations with the numbers they were started with. Python therefore may not tell them how many
tokens a cache holds: they read it from the GPU's memory, and attend to all slots, of which a mask hides the empty ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fundamentallm.models.kv_cache import KVCache
from fundamentallm.recording import Recording

if TYPE_CHECKING:
    from fundamentallm.models.transformer import Transformer


class RecordedDecoder:
    """Reads one token of each sequence into a cache, and gives the logits of the next.

    Args:
        model: On a CUDA device. Later changes to its weights are seen.
    """

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._recorded: tuple[_OneToken, Recording] | None = None

    @staticmethod
    def suits(model: Transformer) -> bool:
        """Whether the model is where recordings can be made."""
        return all(Recording.suits(weight.device) for weight in model.parameters())

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Tokens (B,) to logits (B, V), which the next call overwrites."""
        assert self._model.rolls or cache.length < cache.capacity
        cache.reserve(1)
        if self._recorded is None or not self._recorded[0].shows(cache):
            self._recorded = _recorded(self._model, _OneToken(cache))
        view, step = self._recorded
        view.position.fill_(cache.length)
        logits = step(tokens)
        cache.advance(1)
        return logits


def _recorded(model: Transformer, view: _OneToken) -> tuple[_OneToken, Recording]:
    """Not a method: it must not hold the decoder, which goes when its last user does, and the recording with it."""
    return view, Recording(lambda tokens: model(tokens[:, None], view)[:, -1])


class _OneToken(KVCache):
    """The memory of a cache, for one new token whose position lies in memory too."""

    def __init__(self, cache: KVCache) -> None:
        self.keys, self.values = cache.keys, cache.values
        self.capacity, self.padding = cache.capacity, cache.padding
        self.length = cache.length
        self.position = torch.full((1,), cache.length, device=cache.keys.device)

    def shows(self, cache: KVCache) -> bool:
        """Whether it is still the memory of ``cache``, which may have grown, or begun a new text."""
        return self.keys is cache.keys and self.padding is cache.padding

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Like :meth:`KVCache.update`, with every slot to be attended to."""
        slot = self.position % self.capacity
        return self.keys[layer].index_copy_(2, slot, keys), self.values[layer].index_copy_(2, slot, values)

    def positions(self, new: int) -> Tensor:
        """See :meth:`KVCache.positions`."""
        return self.position

    def mask(self, new: int) -> Tensor:
        """Like :meth:`KVCache.mask`, over all slots."""
        return self.visible(self.position, self.keys.size(3))

    def advance(self, new: int) -> None:
        """Nothing: the cache itself counts."""
