"""What a text is made of, and what might go wrong when a model is trained on it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from fundamentallm.config import DataConfig
from fundamentallm.data.corpus import Corpus

# Enough to judge a text by, and read in a second.
EXAMINED_CHARACTERS = 20_000_000


@dataclass(frozen=True)
class CorpusStatistics:
    """Counts, and plain warnings."""

    characters: int
    bytes: int
    words: int
    lines: int
    alphabet: list[tuple[str, int]]
    train_characters: int
    validation_characters: int
    warnings: tuple[str, ...]
    preview: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def needed_characters(sequence_length: int, train_split: float) -> int:
    """The shortest text, in tokens, whose smaller part holds one window of ``sequence_length`` + 1."""
    return math.ceil((sequence_length + 1) / min(train_split, 1 - train_split))


def too_short(characters: int, needed: int, sequence_length: int) -> str:
    """The sentence that says so."""
    return (
        f"The text has {characters:,} characters, but a context of {sequence_length} needs at least about {needed:,}: "
        "use a longer text or a smaller sequence_length."
    )


def describe(corpus: Corpus, config: DataConfig | None = None, sequence_length: int | None = None) -> CorpusStatistics:
    """Count."""
    config = config or DataConfig()
    text = corpus.read(EXAMINED_CHARACTERS)
    train = int(len(text) * config.train_split)
    return CorpusStatistics(
        len(text),
        len(text.encode("utf-8")),
        len(text.split()),
        len(text.splitlines()),
        Counter(text).most_common(),
        train,
        len(text) - train,
        corpus.notes,
        text[:2000],
    )
