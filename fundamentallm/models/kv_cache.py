"""Keys and values of the tokens already read, so that the next one costs one token of work instead of all of them."""

from __future__ import annotations

import torch
from torch import Tensor

# A model with a context of 40,000 tokens seldom fills it: memory is taken as the text grows, doubling from this.
_FIRST_TOKENS = 1024


class KVCache:
    """Preallocated keys and values of every layer: a ring over the last ``capacity`` tokens.

    A token's slot is its number modulo ``capacity``. Keys are stored after rotation, and attention does not ask in
    which order it sees them, so past ``capacity`` the oldest token is overwritten and nothing has to move.

    The cache is an argument of the model, never hidden inside it: two generations cannot disturb each other.

    Shapes: L layers, B sequences, H key/value heads, C capacity in tokens, D head width.

    Args:
        num_layers: L.
        batch_size: B.
        num_heads: H.
        capacity: C.
        head_width: D.
        dtype: Of keys and values.
        device: Where they live.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        num_heads: int,
        capacity: int,
        head_width: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        shape = (num_layers, batch_size, num_heads, min(capacity, _FIRST_TOKENS), head_width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0
        """Tokens read so far, padding included; may exceed the capacity."""
        self.padding: Tensor | None = None
        """(B,) how many of a sequence's first tokens are padding on its left, or None if no sequence has any."""

    def positions(self, new: int) -> Tensor:
        """The positions (new,) of the coming tokens, padding counted in."""
        return torch.arange(self.length, self.length + new, device=self.keys.device)

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, H, T, D) of T new tokens; return all that are to be attended to, (B, H, S, D)."""
        new = keys.size(2)
        slot = self.reserve(new)
        self.keys[layer, :, :, slot : slot + new] = keys
        self.values[layer, :, :, slot : slot + new] = values
        filled = min(self.length + new, self.capacity)
        return self.keys[layer, :, :, :filled], self.values[layer, :, :, :filled]

    def reserve(self, new: int) -> int:
        """Make room for ``new`` tokens; return the slot of the first of them."""
        # More than one token must not wrap: the first of them still needs what the last of them would overwrite.
        assert new == 1 or self.length + new <= self.capacity
        slot = self.length % self.capacity
        if slot + new > self.keys.size(3):
            self._grow(slot + new)
        return slot

    def _grow(self, needed: int) -> None:
        """Make room for ``needed`` tokens in every layer."""
        more = min(self.capacity, max(needed, 2 * self.keys.size(3))) - self.keys.size(3)
        self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, more))
        self.values = torch.nn.functional.pad(self.values, (0, 0, 0, more))

    def advance(self, new: int) -> None:
        """Count ``new`` tokens as read, after every layer has stored them."""
        self.length += new

    def take_over(self, one: KVCache) -> None:
        """Give every sequence what the single one of ``one`` has read; this cache has read nothing yet."""
        read = one.length
        self.reserve(read)
        self.keys[:, :, :, :read] = one.keys[:, :, :, :read]
        self.values[:, :, :, :read] = one.values[:, :, :, :read]
        self.advance(read)

    def reset(self) -> None:
        """Forget everything; the memory is kept."""
        self.length = 0
        self.padding = None

    def mask(self, new: int) -> Tensor | None:
        """Which of the S attended tokens each of ``new`` coming ones may see: (B or 1, 1, new, S) bool, None for all.

        A token sees itself and what came before it, and never a sequence's padding.
        """
        if new == 1 and self.padding is None:
            return None
        return self.visible(self.positions(new), min(self.length + new, self.capacity))

    def visible(self, positions: Tensor, slots: int) -> Tensor:
        """Which of the first ``slots`` the tokens at ``positions`` (T) may see: (B or 1, 1, T, slots) bool."""
        slot, position = torch.arange(slots, device=self.keys.device), positions[:, None]
        mask = (slot <= position)[None, None]
        if self.padding is not None:
            overwritten = slot <= position - self.capacity
            own = slot == position % self.capacity  # padding would see nothing, and softmax over nothing is NaN
            mask = mask & ((slot >= self.padding[:, None, None, None]) | overwritten | own)
        return mask
