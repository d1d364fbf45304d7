"""What a text is made of, and what might go wrong when a model is trained on it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from fundamentallm.config import DataConfig
from fundamentallm.data.corpus import Corpus

# Enough to judge a text by, and counted in about a second.
EXAMINED_CHARACTERS = 20_000_000
PREVIEW_CHARACTERS = 3_000
# Beyond this, one token per character wastes the model's capacity on rare characters.
LARGE_ALPHABET = 1_000


@dataclass(frozen=True)
class CorpusStatistics:
    """Counts, and plain warnings.

    Attributes:
        characters: Length, of the part that was examined.
        bytes: The same in UTF-8.
        words: What stands between blanks.
        lines: Number of lines.
        alphabet: Every distinct character and how often it occurs, the most frequent first.
        train_characters: How many of the characters are trained on.
        validation_characters: How many are held out.
        warnings: One sentence for everything that may disappoint.
        preview: How the text begins.
        complete: Whether all of the text was examined; a very long one is judged by its beginning.
    """

    characters: int
    bytes: int
    words: int
    lines: int
    alphabet: list[tuple[str, int]]
    train_characters: int
    validation_characters: int
    warnings: tuple[str, ...]
    preview: str
    complete: bool = True

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        values = dataclasses.asdict(self)
        return {**values, "alphabet": [list(entry) for entry in self.alphabet], "warnings": list(self.warnings)}


def describe(corpus: Corpus, config: DataConfig | None = None, sequence_length: int | None = None) -> CorpusStatistics:
    """Count what is in a corpus, and warn of what may disappoint.

    Args:
        corpus: The text; of a very long one only the beginning is read.
        config: Tokenizer and split to judge by.
        sequence_length: The context to judge by; without it the text is never too short.

    Raises:
        CorpusError: The text cannot be read.
    """
    config = config or DataConfig()
    counts = np.zeros(0x110000, np.int64)  # by code point
    lines: Counter[str] = Counter()
    pieces: list[str] = []
    length = size = words = 0
    rest = ""
    inside_word = False
    complete = True
    for piece in corpus.chunks():
        if length >= EXAMINED_CHARACTERS:
            complete = False
            break
        length += len(piece)
        size += len(piece.encode("utf-8"))
        found = np.bincount(np.frombuffer(piece.encode("utf-32-le"), "<u4"))
        counts[: len(found)] += found
        words += len(piece.split())
        if inside_word and not piece[0].isspace():
            words -= 1  # it began in the piece before
        inside_word = not piece[-1].isspace()
        *whole_lines, rest = (rest + piece).split("\n")
        lines.update(whole_lines)
        if sum(map(len, pieces)) < PREVIEW_CHARACTERS:
            pieces.append(piece[:PREVIEW_CHARACTERS])
    lines.update([rest] if rest else [])
    present = np.flatnonzero(counts)
    present = present[np.argsort(-counts[present], kind="stable")]
    train_characters = int(length * config.train_split)
    statistics = CorpusStatistics(
        characters=length,
        bytes=size,
        words=words,
        lines=lines.total(),
        alphabet=[(chr(code_point), int(counts[code_point])) for code_point in present.tolist()],
        train_characters=train_characters,
        validation_characters=length - train_characters,
        warnings=(),
        preview="".join(pieces)[:PREVIEW_CHARACTERS],
        complete=complete,
    )
    warnings = _warnings(statistics, lines, config, sequence_length)
    return dataclasses.replace(statistics, warnings=(*corpus.notes, *warnings))


def needed_characters(sequence_length: int, train_split: float) -> int:
    """The shortest text whose smaller part still holds one window, when every character is a token.

    Args:
        sequence_length: T; a window is T + 1 tokens.
        train_split: Share of the text that is trained on.
    """
    window = sequence_length + 1
    # The training part is rounded down, so the exact answer lies between T and T + 1 over the smaller share.
    needed = math.floor(sequence_length / min(train_split, 1 - train_split))
    while min(int(needed * train_split), needed - int(needed * train_split)) < window:
        needed += 1
    return needed


def too_short(characters: int, needed: int, sequence_length: int) -> str:
    """The sentence that says so."""
    return (
        f"The text has {characters:,} characters, but a context of {sequence_length:,} needs at least {needed:,}: "
        "use a longer text or a smaller sequence_length."
    )


def _warnings(
    statistics: CorpusStatistics, lines: Counter[str], config: DataConfig, sequence_length: int | None
) -> list[str]:
    warnings = []
    if sequence_length is not None:
        needed = needed_characters(sequence_length, config.train_split)
        if statistics.characters < needed:
            warnings.append(too_short(statistics.characters, needed, sequence_length))
        elif statistics.characters < 10 * needed and statistics.characters < 50_000:
            warnings.append(
                f"With {statistics.characters:,} characters the model will soon know the text by heart: "
                "more text makes it write more freely."
            )
    filled = Counter({line: count for line, count in lines.items() if line.strip()})
    total = filled.total()
    distinct = len(statistics.alphabet)
    if distinct == 1:
        character = repr(statistics.alphabet[0][0])
        warnings.append(f"The text is one character, {character}, again and again: there is nothing else to learn.")
    elif total > 1 and len(filled) == 1:
        warnings.append("The text is one line again and again: the model will learn that line and nothing else.")
    elif total >= 20 and len(filled) < 0.1 * total and filled.most_common(1)[0][1] > 0.5 * total:
        share = filled.most_common(1)[0][1] / total
        warnings.append(f"One line makes up {share:.0%} of all lines: the model will mostly write that line.")
    if distinct > LARGE_ALPHABET and config.tokenizer == "character":
        warnings.append(f"The text uses {distinct:,} different characters: the bpe tokenizer suits it better.")
    if not statistics.complete:
        warnings.append(
            f"The text is long: the counts are of its first {statistics.characters / 1e6:.0f} million characters."
        )
    return warnings
