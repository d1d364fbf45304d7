"""Which tokens a training step sees.

Shapes: B batch size, T sequence length, N tokens in the store, W windows in an epoch.

An epoch cuts the tokens into windows of T + 1 (T inputs and, one further, T targets) that begin T apart, shifted by a
random phase, and deals them out in a random order. Everything is a pure function of (seed, step): a resumed training
needs no stored position, and several processes need no word with each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fundamentallm.data.token_store import TokenStore, tokens_at


class TokenWindows(Dataset[tuple[Tensor, Tensor]]):
    """The windows of a token store, by the position of their first token."""

    def __init__(self, store: TokenStore | npt.NDArray[np.unsignedinteger], sequence_length: int) -> None:
        self._tokens = store.tokens if isinstance(store, TokenStore) else store
        self.sequence_length = sequence_length
        self._offsets = np.arange(sequence_length + 1)

    def __len__(self) -> int:
        """Number of positions at which a window can begin."""
        return max(0, len(self._tokens) - self.sequence_length)

    def __getitem__(self, start: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one window, int64, shape (T,) each."""
        inputs, targets = self.__getitems__([start])
        return inputs[0], targets[0]

    def __getitems__(self, starts: Sequence[int] | npt.NDArray[np.integer]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a batch, int64, shape (B, T) each, read from the store in one indexing operation."""
        positions = np.asarray(starts, np.int64)[:, None] + self._offsets  # (B, T + 1)
        windows = torch.from_numpy(tokens_at(self._tokens, positions))  # (B, T + 1)
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


class BatchOrder:
    """The order in which windows are dealt out.

    Args:
        num_tokens: N, at least T + 1.
        sequence_length: T.
        batch_size: B, windows per step over all processes together.
        seed: Determines phases and permutations.
        rank: Which of ``world_size`` processes this is; it takes windows rank, rank + world_size, … of the batch.
        world_size: Number of processes; divides B.
    """

    def __init__(
        self, num_tokens: int, sequence_length: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if num_tokens <= sequence_length:
            raise ValueError(f"{num_tokens} tokens hold no window of {sequence_length} + 1")
        if batch_size % world_size:
            raise ValueError(f"batch_size ({batch_size}) must be divisible by the number of processes ({world_size})")
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        # With T tokens left for the phase every phase gives the same number of windows.
        self.windows_per_epoch = max(1, (num_tokens - sequence_length) // sequence_length)
        self._phases = min(sequence_length, num_tokens - self.windows_per_epoch * sequence_length)
        self._epochs: dict[int, tuple[int, npt.NDArray[np.unsignedinteger]]] = {}

    @property
    def batches_per_epoch(self) -> float:
        """Steps until every window was seen once; below 1 when a batch holds more windows than there are."""
        return self.windows_per_epoch / self.batch_size

    def starts(self, step: int) -> npt.NDArray[np.int64]:
        """Positions of the first tokens of this process's windows in batch ``step``, shape (B / world_size,)."""
        places = step * self.batch_size + np.arange(self.rank, self.batch_size, self.world_size)
        epochs, indices = np.divmod(places, self.windows_per_epoch)
        result = np.empty(len(places), np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            phase, order = self._epoch(epoch)
            result[here] = order[indices[here]].astype(np.int64) * self.sequence_length + phase
        return result

    def _epoch(self, epoch: int) -> tuple[int, npt.NDArray[np.unsignedinteger]]:
        """Where the first window of an epoch starts, and the order of all, shape (W,)."""
        if epoch not in self._epochs:
            generator = np.random.default_rng([self.seed, epoch])
            phase = int(generator.integers(self._phases))
            # As narrow as it can be: a gigabyte of text has 14 million windows.
            order = np.arange(self.windows_per_epoch, dtype=np.min_scalar_type(self.windows_per_epoch))
            generator.shuffle(order)
            if len(self._epochs) >= 2:  # a batch may straddle two epochs; memory must not grow with more
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = phase, order
        return self._epochs[epoch]
