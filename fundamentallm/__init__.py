"""FundamentaLLM: train a language model from scratch, watch it learn, and see why it writes what it writes.

>>> import fundamentallm as fl
>>> lm = fl.train("my.txt", preset="small", max_minutes=1)
>>> print(lm.generate("Once", max_tokens=200, top_p=0.9, seed=1))
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fundamentallm.config import Config, GenerationConfig, load_config
    from fundamentallm.errors import FundamentaLLMError
    from fundamentallm.language_model import LanguageModel, load, train

__version__ = "0.1.0"

# GNU OpenMP, which torch computes with, lets threads wait for each other by spinning. With more threads at work than
# cores (two trainings at once, or a page beside one) that made a step ten times slower: 7.9 s instead of 0.75 s. A
# short spin costs a training that is alone nothing measurable. Read once, when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Imported on first use: torch takes seconds to load, and `fundamentallm --help` has no need of it.
_HOMES = {
    "Config": "fundamentallm.config",
    "FundamentaLLMError": "fundamentallm.errors",
    "GenerationConfig": "fundamentallm.config",
    "LanguageModel": "fundamentallm.language_model",
    "load": "fundamentallm.language_model",
    "load_config": "fundamentallm.config",
    "train": "fundamentallm.language_model",
}

__all__ = [
    "Config",
    "FundamentaLLMError",
    "GenerationConfig",
    "LanguageModel",
    "load",
    "load_config",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
