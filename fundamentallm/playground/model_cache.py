"""The few models that were used last, kept in memory."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from fundamentallm.errors import CheckpointError

if TYPE_CHECKING:
    from fundamentallm.language_model import LanguageModel

_WEIGHTS = ("model.safetensors", "checkpoints/best/model.safetensors", "checkpoints/last/model.safetensors")


class ModelCache:
    """Loaded models by path, the least recently used one dropped first.

    A model is loaded again when its weights were written anew, as those of a running training are.
    """

    def __init__(self, capacity: int = 3) -> None:
        self._capacity = capacity
        self._models: OrderedDict[Path, tuple[tuple[int, ...], LanguageModel]] = OrderedDict()
        # One lock for loading too: two visitors asking for one model shall not load it twice.
        self._lock = threading.Lock()

    def load(self, path: Path) -> LanguageModel:
        """The model at ``path``, a run directory or a checkpoint folder.

        Raises:
            CheckpointError: The checkpoint is missing or damaged.
        """
        # Imported here: it loads PyTorch, which takes seconds, and the page is up before.
        from fundamentallm.language_model import load

        with self._lock:
            stamp = _stamp(path)
            known = self._models.get(path)
            if known is None or known[0] != stamp:
                try:
                    known = (stamp, load(path))
                except CheckpointError as error:
                    # Where the server keeps its runs is nobody's business.
                    raise CheckpointError(str(error).replace(f"{path.parent}{os.sep}", "")) from None
                self._models[path] = known
            self._models.move_to_end(path)
            while len(self._models) > self._capacity:
                self._models.popitem(last=False)
            return known[1]


def _stamp(path: Path) -> tuple[int, ...]:
    """Changes whenever weights under ``path`` are replaced; empty where there are none."""
    stamp = []
    for name in _WEIGHTS:
        try:
            status = (path / name).stat()
        except OSError:
            continue
        stamp += [status.st_mtime_ns, status.st_size, status.st_ino]
    return tuple(stamp)


MODELS = ModelCache()
"""The cache that all tabs and endpoints of this process share."""
