"""Name to class, for the three things a third party may add: tokenizers, models and samplers.

A built-in class is named by its import path and imported on first use, so looking at the registry costs nothing.
Other packages add theirs through the entry-point group ``fundamentallm.plugins``: each entry point is a function that
takes no argument and calls ``registry.models.add("my-model", MyModel)`` and the like.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points

from fundamentallm.errors import ConfigError

_PLUGIN_GROUP = "fundamentallm.plugins"


class Registry:
    """A dictionary from a name to a class, open to plugins."""

    def __init__(self, kind: str, built_in: dict[str, str]) -> None:
        self.kind = kind
        self._classes: dict[str, type | str] = dict(built_in)

    def add(self, name: str, cls: type) -> None:
        """Register ``cls`` under ``name``; a name that is taken is refused."""
        if name in self._classes:
            raise ConfigError(f"The {self.kind} name {name!r} is already taken: register yours under another name.")
        self._classes[name] = cls

    def get(self, name: str) -> type:
        """The class registered under ``name``.

        Raises:
            ConfigError: No built-in and no plugin has that name.
        """
        if name not in self._classes:
            _load_plugins()
        entry = self._classes.get(name)
        if entry is None:
            raise ConfigError(f"There is no {self.kind} named {name!r}: choose one of {', '.join(sorted(self))}.")
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            cls = getattr(import_module(module), attribute)
            assert isinstance(cls, type)
            self._classes[name] = entry = cls
        return entry

    def __iter__(self) -> Iterator[str]:
        _load_plugins()
        return iter(tuple(self._classes))

    def __contains__(self, name: object) -> bool:
        return name in self._classes or name in tuple(self)


_plugins_loaded = False


def _load_plugins() -> None:
    global _plugins_loaded
    if not _plugins_loaded:
        _plugins_loaded = True
        for entry_point in entry_points(group=_PLUGIN_GROUP):
            entry_point.load()()


tokenizers = Registry(
    "tokenizer",
    {
        "character": "fundamentallm.data.tokenizers:CharacterTokenizer",
        "bpe": "fundamentallm.data.tokenizers:BPETokenizer",
        "foreign": "fundamentallm.data.foreign_tokenizer:ForeignTokenizer",
    },
)
models = Registry(
    "model",
    {
        "transformer": "fundamentallm.models.transformer:Transformer",
        "bigram": "fundamentallm.models.bigram:Bigram",
    },
)
samplers = Registry(
    "sampler",
    {
        "greedy": "fundamentallm.generation.samplers:GreedySampler",
        "temperature": "fundamentallm.generation.samplers:TemperatureSampler",
        "top-k": "fundamentallm.generation.samplers:TopKSampler",
        "top-p": "fundamentallm.generation.samplers:TopPSampler",
        "min-p": "fundamentallm.generation.samplers:MinPSampler",
    },
)
