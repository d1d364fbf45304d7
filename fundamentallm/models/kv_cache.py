"""Keys and values of the tokens already read, so that the next one costs one token of work instead of all of them."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Preallocated keys and values of every layer, a ring over the last ``capacity`` tokens.

    A token's slot is its position modulo ``capacity``. Keys are stored after rotation, and attention does not ask for
    the order of the tokens it attends to, so the ring is never unrolled: past ``capacity`` the oldest token is simply
    overwritten and nothing moves.

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
        shape = (num_layers, batch_size, num_heads, capacity, head_width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0
        """Tokens read so far, padding included; may exceed the capacity."""
        self.padding: Tensor | None = None
        """(B,) how many of a sequence's first tokens are padding on its left, or None if no sequence has any."""

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values (B, H, T, D) of T new tokens; return all that are to be attended to, (B, H, S, D).

        More than one token at a time must fit without wrapping: what they overwrite, the first of them still needs.
        """
        new = keys.size(2)
        slot = self.length % self.capacity
        if new > 1 and self.length + new > self.capacity:
            raise ValueError(f"{new} tokens do not fit after {self.length} in a cache of {self.capacity}")
        self.keys[layer, :, :, slot : slot + new] = keys
        self.values[layer, :, :, slot : slot + new] = values
        filled = min(self.length + new, self.capacity)
        return self.keys[layer, :, :, :filled], self.values[layer, :, :, :filled]

    def advance(self, new: int) -> None:
        """Count ``new`` tokens as read, after every layer has stored them."""
        self.length += new

    def reset(self) -> None:
        """Forget everything; the memory is kept."""
        self.length = 0
        self.padding = None

    def mask(self, new: int) -> Tensor | None:
        """Which of the S attended slots each of ``new`` coming tokens may see: (B or 1, 1, new, S) bool, or None for all.

        A token sees itself and what came before it, and never a sequence's padding.
        """
        filled = min(self.length + new, self.capacity)
        mask: Tensor | None = None
        if new > 1:
            rows = torch.arange(self.length, self.length + new, device=self.keys.device)
            mask = (torch.arange(filled, device=self.keys.device) <= rows[:, None])[None, None]
        if self.padding is not None and self.length < self.capacity:
            # Padding lies at the very beginning: once the ring has wrapped far enough it is overwritten, which the
            # generator takes care of by starting the cache anew when it is full.
            visible = torch.arange(filled, device=self.keys.device) >= self.padding[:, None]
            visible = visible[:, None, None, :]
            mask = visible if mask is None else mask & visible
            if new > 1:
                # A row of padding would see nothing, and softmax over nothing is NaN: let it see itself.
                mask = mask | torch.eye(new, filled, dtype=torch.bool, device=mask.device).roll(self.length, 1)
        return mask
