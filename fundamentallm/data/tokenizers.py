"""Characters to token numbers and back.

Both tokenizers begin their vocabulary with ``<PAD> <UNK> <BOS> <EOS>``. Those four are only ever written by a program:
a ``<BOS>`` that somebody typed is five characters of text. Saved, each is a ``tokenizer.json`` that
``transformers.AutoTokenizer`` opens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fundamentallm.config import DataConfig
from fundamentallm.data.base_tokenizer import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    SPECIAL_TOKENS,
    UNK_ID,
    BaseTokenizer,
    StreamDecoder,
    load_tokenizer,
    stream_decoder,
    token_numbers,
    tokenizer_class,
    tokenizer_from_json,
    train_tokenizer,
    visible,
)
from fundamentallm.data.byte_pair_encoding import BPETokenizer

# Characters end at U+10FFFF.
_CODE_POINTS = 0x110000


class CharacterTokenizer(BaseTokenizer):
    """One token per character, through a table from code point to token."""

    name = "character"

    def __init__(self, characters: str) -> None:
        """``characters``: the alphabet without repetition, in the order of its tokens."""
        self.characters = characters
        self.vocab_size = len(SPECIAL_TOKENS) + len(characters)
        self.pad_id, self.unk_id, self.bos_id, self.eos_id = PAD_ID, UNK_ID, BOS_ID, EOS_ID
        self._code_points = np.concatenate([np.zeros(len(SPECIAL_TOKENS), np.uint32), _code_points(characters)])
        self._table: npt.NDArray[np.uint32] = np.full(_CODE_POINTS, UNK_ID, np.uint32)
        self._table[self._code_points[len(SPECIAL_TOKENS) :]] = np.arange(
            len(SPECIAL_TOKENS), self.vocab_size, dtype=np.uint32
        )

    @classmethod
    def train(cls, chunks: Iterable[str], config: DataConfig) -> Self:
        """The alphabet of the text, in code point order, without what occurs less than ``min_frequency`` times."""
        counts = np.zeros(_CODE_POINTS, np.int64)
        for chunk in chunks:
            found = np.bincount(_code_points(chunk))
            counts[: len(found)] += found
        # A lone surrogate is no character, and no JSON file could hold it.
        counts[0xD800:0xE000] = 0
        alphabet = np.flatnonzero(counts >= config.min_frequency).astype("<u4")
        return cls(alphabet.tobytes().decode("utf-32-le"))

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """One token per character, shape (N,); a character outside the alphabet is ``<UNK>``."""
        return np.take(self._table, _code_points(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The characters of ``ids``; special tokens write nothing."""
        numbers = token_numbers(ids)
        code_points = self._code_points[numbers[numbers >= len(SPECIAL_TOKENS)]]
        return code_points.astype("<u4", copy=False).tobytes().decode("utf-32-le")

    def unknown_characters(self, text: str) -> list[str]:
        """The distinct characters outside the alphabet, in order of appearance."""
        code_points = _code_points(text)
        unknown = code_points[self._table[code_points] == UNK_ID]
        found, first = np.unique(unknown, return_index=True)
        return [chr(code_point) for code_point in found[np.argsort(first)]]

    def token_text(self, token_id: int) -> str:
        """The character, made visible."""
        if token_id < len(SPECIAL_TOKENS):
            return SPECIAL_TOKENS[token_id]
        return visible(chr(self._code_points[token_id]))

    def document(self) -> dict[str, Any]:
        """A word-level model of the ``tokenizers`` library whose words are single characters."""
        words = (*SPECIAL_TOKENS, *self.characters)
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": index,
                    "content": content,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
                for index, content in enumerate(SPECIAL_TOKENS)
            ],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": r"[\s\S]"},
                "behavior": "Isolated",
                "invert": False,
            },
            "post_processor": None,
            "decoder": {"type": "Fuse"},
            "model": {
                "type": "WordLevel",
                "vocab": {word: index for index, word in enumerate(words)},
                "unk_token": SPECIAL_TOKENS[UNK_ID],
            },
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """Read the alphabet out of the model's vocabulary."""
        vocabulary: dict[str, int] = document["model"]["vocab"]
        words = sorted(vocabulary, key=vocabulary.__getitem__)
        characters = words[len(SPECIAL_TOKENS) :]
        if (
            tuple(words[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS
            or [vocabulary[word] for word in words] != list(range(len(words)))
            or any(len(character) != 1 for character in characters)
        ):
            raise ValueError("not a character vocabulary")
        return cls("".join(characters))


def _code_points(text: str) -> npt.NDArray[Any]:
    """The code points of ``text``, shape (N,), as the narrowest unsigned integers at hand."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


__all__ = [
    "SPECIAL_TOKENS",
    "BPETokenizer",
    "BaseTokenizer",
    "CharacterTokenizer",
    "StreamDecoder",
    "load_tokenizer",
    "stream_decoder",
    "tokenizer_class",
    "tokenizer_from_json",
    "train_tokenizer",
]
