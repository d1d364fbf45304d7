"""Byte-level byte pair encoding, through the ``tokenizers`` library."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

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
    token_numbers,
    visible,
)

if TYPE_CHECKING:
    import tokenizers

_SURROGATES = re.compile("[\ud800-\udfff]")


class BPETokenizer(BaseTokenizer):
    """Byte-level byte pair encoding: frequent words are one token, and any text at all has tokens.

    Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"; on bytes as in GPT-2.
    """

    name = "bpe"
    # Merges change little beyond this, while the table of distinct words would grow with the text.
    training_characters = 64_000_000

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """``backend``: a byte-level BPE of the ``tokenizers`` library that begins with the special tokens."""
        # True means: special tokens are text like any other.
        backend.encode_special_tokens = True
        self._backend = backend
        self.vocab_size = backend.get_vocab_size()
        self.pad_id, self.unk_id, self.bos_id, self.eos_id = PAD_ID, UNK_ID, BOS_ID, EOS_ID

    @classmethod
    def train(cls, chunks: Iterable[str], config: DataConfig) -> Self:
        """Merge the most frequent pairs until there are ``config.vocab_size`` tokens or no pair is left."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # heavy: only when BPE is used

        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            min_frequency=config.min_frequency,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(_training_pieces(chunks, cls.training_characters), trainer=trainer)
        return cls(backend)

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """The merged tokens, shape (N,)."""
        return _WordTable(self._backend).encode(_well_formed(text))

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[npt.NDArray[np.uint32]]:
        """The tokens of a long text; pieces are joined and cut again where no token can lie across the cut."""
        table = _WordTable(self._backend)
        rest = ""
        for chunk in chunks:
            rest += chunk
            cut = _last_safe_cut(rest)
            if not cut and len(rest) > _LONGEST_WORD:
                cut = len(rest)
            if cut:
                yield table.encode(_well_formed(rest[:cut]))
                rest = rest[cut:]
        if rest:
            yield table.encode(_well_formed(rest))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; bytes that do not form a character become �, special tokens write nothing."""
        return b"".join(map(self._bytes.__getitem__, token_numbers(ids).tolist())).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token writes; none for a special token."""
        return self._bytes[token_id]

    def unknown_characters(self, text: str) -> list[str]:
        """Bytes cover every character; only lone surrogates, which are none, have no token."""
        return list(dict.fromkeys(_SURROGATES.findall(text)))

    def token_text(self, token_id: int) -> str:
        """The token's characters, made visible; bytes that are only part of one as �."""
        if token_id < len(SPECIAL_TOKENS):
            return SPECIAL_TOKENS[token_id]
        return visible(self._bytes[token_id].decode("utf-8", "replace"))

    def stream_decoder(self) -> StreamDecoder:
        """A decoder that waits until a character's bytes are complete."""
        return ByteStreamDecoder(self, self.token_bytes)

    def document(self) -> dict[str, Any]:
        """The ``tokenizers`` library's own format."""
        document: dict[str, Any] = json.loads(self._backend.to_str())
        return document

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """Let the ``tokenizers`` library read its own format."""
        from tokenizers import Tokenizer  # heavy: only when BPE is used

        backend = Tokenizer.from_str(json.dumps(document))
        if [backend.token_to_id(token) for token in SPECIAL_TOKENS] != list(range(len(SPECIAL_TOKENS))):
            raise ValueError("the vocabulary does not begin with our special tokens")
        tokenizer = cls(backend)
        assert len(tokenizer._bytes) == tokenizer.vocab_size
        return tokenizer

    @cached_property
    def _bytes(self) -> list[bytes]:
        byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        words: dict[str, int] = self._backend.get_vocab()
        ordered = sorted(words, key=words.__getitem__)[len(SPECIAL_TOKENS) :]
        return [b""] * len(SPECIAL_TOKENS) + [bytes(map(byte_of.__getitem__, word)) for word in ordered]


class _WordTable:
    """The tokens of every distinct word so far: words repeat, and merging each only once is much faster."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._row_of: dict[str, int] = {}
        self._tokens: npt.NDArray[np.uint32] = np.empty(0, np.uint32)
        self._lengths: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._starts = self._lengths

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """The tokens of a text that begins and ends where it may be cut, shape (N,)."""
        words = _WORDS.findall(text)
        if len(self._row_of) > 500_000:  # about 100 MB
            self._row_of.clear()
            self._tokens, self._lengths = self._tokens[:0], self._lengths[:0]
        self._learn([word for word in dict.fromkeys(words) if word not in self._row_of])
        rows = np.fromiter(map(self._row_of.__getitem__, words), np.int64, len(words))
        lengths = self._lengths[rows]
        # Token n of the text is token n + shift of the table, with one shift per word.
        shifts = self._starts[rows] - (np.cumsum(lengths) - lengths)
        tokens: npt.NDArray[np.uint32] = self._tokens[np.arange(lengths.sum()) + np.repeat(shifts, lengths)]
        return tokens

    def _learn(self, words: list[str]) -> None:
        encodings = self._backend.encode_batch_fast(words, add_special_tokens=False)
        self._row_of.update(zip(words, range(len(self._row_of), len(self._row_of) + len(words)), strict=True))
        tokens = [np.asarray(encoding.ids, np.uint32) for encoding in encodings]
        self._tokens = np.concatenate([self._tokens, *tokens])
        self._lengths = np.concatenate([self._lengths, np.array([len(ids) for ids in tokens], np.int64)])
        self._starts = np.cumsum(self._lengths) - self._lengths


class ByteStreamDecoder(StreamDecoder):
    """Decodes tokens that stand for bytes, as soon as the bytes of a character are complete."""

    def __init__(self, tokenizer: BaseTokenizer, token_bytes: Callable[[int], bytes]) -> None:
        super().__init__(tokenizer)
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, token_id: int) -> str:
        """See :meth:`StreamDecoder.__call__`."""
        text: str = self._decoder.decode(self._token_bytes(token_id))
        return text

    def finish(self) -> str:
        """See :meth:`StreamDecoder.finish`."""
        text: str = self._decoder.decode(b"", final=True)
        return text


def _well_formed(text: str) -> str:
    """``text`` with lone surrogates replaced, which UTF-8 cannot hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return _SURROGATES.sub("\ufffd", text)
    return text


def byte_characters() -> list[str]:
    """The character by which byte-level BPE writes each of the 256 bytes (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


# What the library's pre-tokenizer calls a blank (Unicode's White_Space). No token of byte-level BPE holds a blank after
# a non-blank, so a text may be cut there without changing a token.
_BLANK = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_SAFE_CUT = re.compile(f"[^{_BLANK}](?=[{_BLANK}])")
_WORDS = re.compile(f"[{_BLANK}]*[^{_BLANK}]+|[{_BLANK}]+")
_LONG_RUN = re.compile(f"[^{_BLANK}]{{256}}|[{_BLANK}]{{256}}")
_LONGEST_WORD = 1 << 20
# The trainer keeps many times a piece's size beside each of the hundreds that it takes at once. Pieces of a million
# characters took 366 MB and 12.8 s for 64 million, these 70 MB and 8.3 s.
_TRAINING_PIECE = 1 << 14


def _last_safe_cut(text: str) -> int:
    """The last position where ``text`` may be cut, or 0 if there is none."""
    # Words are short: looking at a growing tail avoids scanning everything.
    reach = 256
    while True:
        start = max(0, len(text) - reach)
        ends = [match.end() for match in _SAFE_CUT.finditer(text, start)]
        if ends or start == 0:
            return ends[-1] if ends else 0
        reach *= 16


def _training_pieces(chunks: Iterable[str], limit: int | None) -> Iterator[str]:
    """Up to ``limit`` characters of ``chunks``, without words so long that training on them takes forever."""
    seen = 0
    for chunk in chunks:
        text = _well_formed(chunk if limit is None else chunk[: limit - seen])
        seen += len(text)
        # The trainer's time grows with the square of a word's length, and a text without blanks is one word.
        for run in _LONG_RUN.sub(r"\g<0>\0", text).split("\0"):
            yield from _cut_up(run)
        if limit is not None and seen >= limit:
            return


def _cut_up(text: str) -> Iterator[str]:
    """Pieces that the trainer may see apart."""
    start = 0
    while start < len(text):
        piece = text[start : start + _TRAINING_PIECE]
        cut = _last_safe_cut(piece) or len(piece)
        yield piece[:cut]
        start += cut
