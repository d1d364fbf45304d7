"""Texts that are always at hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ExampleCorpus:
    """A built-in text.

    Attributes:
        name: As a user types it.
        title: As a user reads it.
        description: One sentence.
        load: Makes the text, whole or in pieces.
    """

    name: str
    title: str
    description: str
    load: Callable[[], str | Iterator[str]]


def tiny_tales(characters: int = 1_000_000, seed: int = 1) -> str:
    """Stories."""
    draw = random.Random(seed)
    parts: list[str] = []
    size = 0
    while size < characters:
        name, animal = draw.choice(["Mia", "Tom", "Lily", "Ben"]), draw.choice(["cat", "dog", "fox", "hen"])
        parts.append(f"Once upon a time, {name} had a little {animal}. {name} and the {animal} played all day.\n\n")
        size += len(parts[-1])
    return "".join(parts)


BUILT_IN: dict[str, ExampleCorpus] = {
    "tiny-tales": ExampleCorpus("tiny-tales", "Tiny Tales", "Short children's stories.", tiny_tales),
}
