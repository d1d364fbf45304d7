"""What a model must beat: guessing, counting, and a compressor.

The counting models are n-gram models with interpolated Kneser-Ney smoothing, fitted on the same training tokens that
the neural model saw; the compressors see only the text itself.

Shapes: N tokens of a text, G distinct n-grams, C distinct contexts, Q queries.
"""

from __future__ import annotations

import bz2
import lzma
import math
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fundamentallm.errors import CorpusError

Tokens = npt.NDArray[np.integer[Any]]
_Integers = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]

MAX_TRAIN_TOKENS = 5_000_000
"""Training tokens that are counted; of a larger corpus the last ones, which lie next to the held-out part."""
MAX_COMPRESSED_BYTES = 4_000_000
"""Bytes that are compressed, from the beginning of the text: xz takes a second for each million."""

_QUERIES_AT_ONCE = 1 << 20  # bounds the memory of scoring a long text


@dataclass(frozen=True)
class Baseline:
    """How well one simple method predicts, or compresses, the text."""

    name: str
    """``uniform``, ``unigram``, ``bigram``, ``trigram``, ``zlib``, ``bz2`` or ``xz``."""
    description: str
    """One line on what it knows."""
    loss: float | None
    """Nats per token; None for a compressor, which has no tokens."""
    bits_per_character: float
    """Bits over the characters of the measured text."""
    bits_per_byte: float
    """Bits over the UTF-8 bytes of the measured text."""
    train_tokens: int
    """Training tokens that were counted: at most ``MAX_TRAIN_TOKENS``; 0 where nothing was."""
    measured_bytes: int
    """UTF-8 bytes of the text that were measured: all of them, except for the compressors of a very long text."""

    def as_dict(self) -> dict[str, str | float | int | None]:
        """The fields by name, as JSON shows them."""
        return asdict(self)


class NGram:
    """An n-gram model of any order with interpolated Kneser-Ney smoothing.

    The probability of word w after the context h of n - 1 tokens is

        p(w|h) = max(c(hw) - D, 0) / c(h) + D N(h) / c(h) p(w|h'),

    where c counts, N(h) is the number of distinct words seen after h, h' is h without its first token, and the model
    below is built from continuation counts (the number of distinct tokens seen in front of h'w). Below the unigram lies
    the uniform distribution over the vocabulary, so every token has some probability. A context never seen hands over
    to the shorter one. The discount D of each order is n1 / (n1 + 2 n2), n1 and n2 being the n-grams counted once and
    twice, with half an n-gram added to each so that D never becomes 0.

    Source: Kneser and Ney 1995, "Improved backing-off for m-gram language modeling"; the interpolated form is Chen and
    Goodman 1999, "An empirical study of smoothing techniques for language modeling", equation 24.
    """

    def __init__(self, tokens: Tokens, vocab_size: int, order: int) -> None:
        if vocab_size**order >= 1 << 62:
            raise CorpusError(f"{order}-grams of {vocab_size} tokens cannot be counted: use a smaller vocab_size.")
        self.vocab_size = vocab_size
        self.order = order
        self._levels: list[_Level] = []  # from order n down to 1
        if len(tokens) < order:
            return
        grams, counts = np.unique(_codes(tokens, vocab_size, order), return_counts=True)
        for length in range(order, 0, -1):
            self._levels.append(_Level(grams, counts, vocab_size))
            if length > 1:
                # Without its first token an n-gram is the rest of its code: each one left over is one continuation.
                grams, counts = np.unique(grams % vocab_size ** (length - 1), return_counts=True)

    def probabilities(self, tokens: Tokens, previous: Tokens | None = None) -> _Floats:
        """The probability of each token of a text given those before it.

        Args:
            tokens: The text, (N,).
            previous: What stands in front of it, at most ``order - 1`` tokens of which count. Where there is less
                than a full context, the context that there is counts.

        Returns:
            Probabilities, (N,), each above 0.
        """
        context = np.zeros(0, np.int64) if previous is None else previous[max(0, len(previous) - self.order + 1) :]
        text = np.concatenate([context.astype(np.int64), tokens.astype(np.int64)])
        result = np.empty(len(tokens))
        for first in range(0, len(tokens), _QUERIES_AT_ONCE):
            positions = np.arange(first, min(first + _QUERIES_AT_ONCE, len(tokens))) + len(context)
            probability = np.full(len(positions), 1.0 / self.vocab_size)
            for length, level in zip(range(1, self.order + 1), reversed(self._levels), strict=False):
                known = positions >= length - 1
                code = np.zeros(int(known.sum()), np.int64)
                for back in range(length - 1, -1, -1):
                    code = code * self.vocab_size + text[positions[known] - back]
                probability[known] = level.interpolate(code, probability[known])
            result[first : first + len(positions)] = probability
        return result

    def loss(self, tokens: Tokens, previous: Tokens | None = None) -> float:
        """Mean negative log-likelihood of the text, nats per token."""
        return float(-np.log(self.probabilities(tokens, previous)).mean())


class _Level:
    """The counts of one order; an n-gram is the code that its tokens are the digits of, in base V."""

    def __init__(self, grams: _Integers, counts: _Integers, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._grams = grams  # (G,) ascending, so n-grams with one context lie together
        self._counts = counts  # (G,)
        self._contexts, starts, self._followers = np.unique(  # (C,)
            grams // vocab_size, return_index=True, return_counts=True
        )
        self._totals = np.add.reduceat(counts, starts)  # (C,)
        once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
        self._discount = (once + 0.5) / (once + 2 * twice + 1.0)

    def interpolate(self, code: _Integers, below: _Floats) -> _Floats:
        """The probability of each queried n-gram (Q,) at this order, from that at the order below (Q,)."""
        count = _looked_up(self._grams, code, self._counts)
        total = _looked_up(self._contexts, code // self._vocab_size, self._totals)
        followers = _looked_up(self._contexts, code // self._vocab_size, self._followers)
        mass = np.maximum(count - self._discount, 0.0) + self._discount * followers * below
        return np.where(total > 0, mass / np.maximum(total, 1), below)


def ladder(
    train_tokens: Tokens,
    validation_tokens: Tokens,
    vocab_size: int,
    text: str,
    *,
    previous_tokens: Tokens | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[Baseline]:
    """Every baseline on one text, from the most ignorant to the compressors.

    Args:
        train_tokens: What the n-gram models are fitted on, (N,); of more than ``MAX_TRAIN_TOKENS`` the last ones.
        validation_tokens: The text as tokens, (N,).
        vocab_size: V.
        text: The same text, for its characters and bytes and for the compressors.
        previous_tokens: What stands directly in front of the text: the training tokens, if it is the held-out part.
        progress: Called with the share of the work done, 0 to 1.

    Raises:
        CorpusError: The text is empty, or too large a vocabulary for trigrams to be counted.
    """
    data = text.encode("utf-8", "surrogatepass")
    if not data or len(validation_tokens) == 0:
        raise CorpusError("The text is empty, so there is nothing to compare: give at least one character.")
    counted = np.asarray(train_tokens[max(0, len(train_tokens) - MAX_TRAIN_TOKENS) :])
    previous = None if previous_tokens is None else np.asarray(previous_tokens[max(0, len(previous_tokens) - 2) :])

    def predicted(name: str, description: str, loss: float, train: int) -> Baseline:
        bits = loss * len(validation_tokens) / math.log(2)
        return Baseline(name, description, loss, bits / len(text), bits / len(data), train, len(data))

    steps = len(_NGRAMS) + len(_COMPRESSORS)
    rungs = [predicted("uniform", "guesses: every token is equally likely", math.log(vocab_size), 0)]
    for order, (name, description) in enumerate(_NGRAMS, start=1):
        loss = NGram(counted, vocab_size, order).loss(validation_tokens, previous)
        rungs.append(predicted(name, description, loss, len(counted)))
        if progress is not None:
            progress(order / steps)
    measured = data[:MAX_COMPRESSED_BYTES]
    characters = len(text) if len(measured) == len(data) else len(measured.decode("utf-8", "ignore"))
    for done, (name, (description, compress)) in enumerate(_COMPRESSORS.items(), start=len(_NGRAMS) + 1):
        bits = 8 * len(compress(measured))
        rungs.append(Baseline(name, description, None, bits / characters, bits / len(measured), 0, len(measured)))
        if progress is not None:
            progress(done / steps)
    return rungs


_NGRAMS = (
    ("unigram", "knows how common each token is"),
    ("bigram", "knows which token follows which"),
    ("trigram", "knows which token follows which two"),
)


def _deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)  # negative: no header
    return compressor.compress(data) + compressor.flush()


def _xz(data: bytes) -> bytes:
    # A window no larger than the data: level 9 would otherwise allocate 670 MB.
    size = min(max(len(data), 1 << 12), 1 << 26)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": size}]
    return lzma.compress(data, lzma.FORMAT_RAW, filters=filters)


# Headers left out where the library can, since on a short text they would weigh more than the text.
_COMPRESSORS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "zlib": ("gzip's method at its best level, on this text alone", _deflate),
    "bz2": ("bzip2 at its best level, on this text alone", lambda data: bz2.compress(data, 9)),
    "xz": ("xz (LZMA) at its best level, on this text alone", _xz),
}


def _codes(tokens: Tokens, vocab_size: int, order: int) -> _Integers:
    """The code of the n-gram that starts at each token, (N - order + 1,)."""
    count = len(tokens) - order + 1
    code = np.zeros(count, np.int64)
    for offset in range(order):
        code *= vocab_size
        code += tokens[offset : offset + count]
    return code


def _looked_up(keys: _Integers, wanted: _Integers, values: _Integers) -> _Integers:
    """``values`` where the ascending ``keys`` hold what is ``wanted``, else 0."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
