"""Characters to token numbers and back.

Both tokenizers begin their vocabulary with ``<PAD> <UNK> <BOS> <EOS>``. Those four are only ever written by a program:
a ``<BOS>`` that somebody typed is five characters of text. Saved, each is a ``tokenizer.json`` that
``transformers.AutoTokenizer`` opens.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from fundamentallm import registry
from fundamentallm.config import DataConfig
from fundamentallm.errors import CheckpointError, FundamentaLLMError

if TYPE_CHECKING:
    import tokenizers

SPECIAL_TOKENS = ("<PAD>", "<UNK>", "<BOS>", "<EOS>")
PAD_ID, UNK_ID, BOS_ID, EOS_ID = range(4)

# Characters end at U+10FFFF.
_CODE_POINTS = 0x110000
_SURROGATES = re.compile("[\ud800-\udfff]")


class BaseTokenizer(ABC):
    """What a tokenizer must do; a plugin subclasses this and registers itself in ``registry.tokenizers``.

    Attributes:
        name: The name under which the class is registered.
        training_characters: How much text training can use; None for all of it.
        vocab_size: Number of tokens, special ones included.
        pad_id: Number of the padding token, or None if there is none.
        unk_id: Number of the token for unknown characters, or None if there is none.
        bos_id: Number of the token that begins a text, or None if there is none.
        eos_id: Number of the token that ends a text, or None if there is none.
    """

    name: ClassVar[str]
    training_characters: ClassVar[int | None] = None
    vocab_size: int
    pad_id: int | None = None
    unk_id: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None

    @classmethod
    @abstractmethod
    def train(cls, chunks: Iterable[str], config: DataConfig) -> Self:
        """Build a vocabulary from the training part of a text, given in pieces of any length."""

    @abstractmethod
    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """The tokens of ``text``, shape (N,). No special token is added, and none is recognised in the text."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; special tokens write nothing."""

    @abstractmethod
    def unknown_characters(self, text: str) -> list[str]:
        """The distinct characters of ``text`` that the vocabulary lacks, in order of appearance."""

    @abstractmethod
    def token_text(self, token_id: int) -> str:
        """One token for display: blanks and control characters made visible, bytes that are no character as �."""

    @abstractmethod
    def document(self) -> dict[str, Any]:
        """Everything ``from_document`` needs, as JSON values: the content of ``tokenizer.json``."""

    @classmethod
    @abstractmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """The tokenizer that ``document`` describes; any ordinary exception means that it is damaged."""

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[npt.NDArray[np.uint32]]:
        """The tokens of a long text given in pieces; together they are ``encode`` of the whole text.

        Right for tokenizers that look at single characters; others override it.
        """
        return (self.encode(chunk) for chunk in chunks)

    def stream_decoder(self) -> StreamDecoder:
        """A decoder that takes one token at a time."""
        return StreamDecoder(self)

    def to_json(self) -> str:
        """The tokenizer as one JSON text, from which ``tokenizer_from_json`` makes it again."""
        document = self.document()
        # The `tokenizers` library refuses keys it does not know, so those it must read are recognised by their model.
        if self.name not in _NAME_OF_MODEL.values():
            document = {**document, _NAME_KEY: self.name}
        return json.dumps(document, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> BaseTokenizer:
        """The tokenizer that ``to_json`` wrote.

        Raises:
            CheckpointError: The text is damaged, or describes a tokenizer of another class.
        """
        tokenizer = tokenizer_from_json(text)
        if not isinstance(tokenizer, cls):
            raise CheckpointError(f"This is a tokenizer of the kind {tokenizer.name!r}, not {cls.name!r}.")
        return tokenizer

    def save(self, directory: Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``, as ``transformers.AutoTokenizer`` expects them."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        special = {
            "pad_token": self.pad_id,
            "unk_token": self.unk_id,
            "bos_token": self.bos_id,
            "eos_token": self.eos_id,
        }
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{key: SPECIAL_TOKENS[index] for index, (key, token) in enumerate(special.items()) if token is not None},
            _NAME_KEY: self.name,
        }
        _write(directory / "tokenizer.json", json.dumps(self.document(), ensure_ascii=False))
        _write(directory / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2))

    @classmethod
    def load(cls, directory: Path) -> BaseTokenizer:
        """The tokenizer that ``save`` wrote; see ``load_tokenizer``."""
        return load_tokenizer(directory)


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
        numbers = _numbers(ids)
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
        return _visible(chr(self._code_points[token_id]))

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
        return np.asarray(self._backend.encode(_well_formed(text), add_special_tokens=False).ids, np.uint32)

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[npt.NDArray[np.uint32]]:
        """The tokens of a long text; pieces are joined and cut again where no token can lie across the cut."""
        rest = ""
        for chunk in chunks:
            rest += chunk
            cut = _last_safe_cut(rest)
            if cut:
                yield self.encode(rest[:cut])
                rest = rest[cut:]
            elif len(rest) > _LONGEST_WORD:
                yield self.encode(rest)
                rest = ""
        if rest:
            yield self.encode(rest)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; bytes that do not form a character become �, special tokens write nothing."""
        return b"".join(map(self._bytes.__getitem__, _numbers(ids).tolist())).decode("utf-8", "replace")

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
        return _visible(self._bytes[token_id].decode("utf-8", "replace"))

    def stream_decoder(self) -> StreamDecoder:
        """A decoder that waits until a character's bytes are complete."""
        return _ByteStreamDecoder(self)

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
        byte_of = {character: byte for byte, character in enumerate(_byte_characters())}
        words: dict[str, int] = self._backend.get_vocab()
        ordered = sorted(words, key=words.__getitem__)[len(SPECIAL_TOKENS) :]
        return [b""] * len(SPECIAL_TOKENS) + [bytes(map(byte_of.__getitem__, word)) for word in ordered]


class StreamDecoder:
    """Decodes one token at a time; what it returned, joined, is ``decode`` of all tokens.

    Only complete characters are returned. ``finish`` returns what is left when the tokens end inside a character.
    """

    def __init__(self, tokenizer: BaseTokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []

    def __call__(self, token_id: int) -> str:
        """The text that ``token_id`` completes, possibly none."""
        self._pending.append(token_id)
        text = self._tokenizer.decode(self._pending)
        # A character has at most four bytes, so a longer wait is for nothing.
        if text.endswith("\ufffd") and len(self._pending) < 4:
            return ""
        self._pending.clear()
        return text

    def finish(self) -> str:
        """The rest: � for the bytes of a character that never became complete."""
        text = self._tokenizer.decode(self._pending)
        self._pending.clear()
        return text


class _ByteStreamDecoder(StreamDecoder):
    def __init__(self, tokenizer: BPETokenizer) -> None:
        super().__init__(tokenizer)
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, token_id: int) -> str:
        return self._decoder.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


def stream_decoder(tokenizer: BaseTokenizer) -> StreamDecoder:
    """A function from one token to the text that it completes; see ``StreamDecoder``."""
    return tokenizer.stream_decoder()


def train_tokenizer(chunks: Iterable[str], config: DataConfig) -> BaseTokenizer:
    """A tokenizer of the kind that ``config.tokenizer`` names, trained on the training part of a text."""
    return tokenizer_class(config.tokenizer).train(chunks, config)


def tokenizer_class(name: str) -> type[BaseTokenizer]:
    """The tokenizer registered under ``name``; raises ConfigError when there is none."""
    cls = registry.tokenizers.get(name)
    assert issubclass(cls, BaseTokenizer)
    return cls


_NAME_KEY = "fundamentallm_tokenizer"
_NAME_OF_MODEL = {"WordLevel": CharacterTokenizer.name, "BPE": BPETokenizer.name}


def load_tokenizer(directory: str | Path) -> BaseTokenizer:
    """The tokenizer saved in ``directory``.

    Raises:
        CheckpointError: A file is missing or damaged, or describes a tokenizer that is not installed.
    """
    path = Path(directory) / "tokenizer.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise CheckpointError(f"{str(path)!r} is missing or damaged: choose another checkpoint.") from None
    name = None
    # tokenizer.json alone suffices for the built-in kinds.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        name = json.loads((path.parent / "tokenizer_config.json").read_text(encoding="utf-8")).get(_NAME_KEY)
    return _from_text(text, name, repr(str(path)))


def tokenizer_from_json(text: str) -> BaseTokenizer:
    """The tokenizer that ``BaseTokenizer.to_json`` wrote.

    Raises:
        CheckpointError: The text is damaged, or describes a tokenizer that is not installed.
    """
    return _from_text(text, None, "The checkpoint's tokenizer")


def _from_text(text: str, name: str | None, what: str) -> BaseTokenizer:
    try:
        document: dict[str, Any] = json.loads(text)
        name = document.pop(_NAME_KEY, name) or _NAME_OF_MODEL[document["model"]["type"]]
        return tokenizer_class(name).from_document(document)
    except FundamentaLLMError as error:
        raise CheckpointError(f"{what} cannot be used here: {error}") from None
    # The `tokenizers` library raises bare Exception.
    except Exception:
        raise CheckpointError(f"{what} is damaged, or is not one of ours: choose another checkpoint.") from None


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _code_points(text: str) -> npt.NDArray[Any]:
    """The code points of ``text``, shape (N,), as the narrowest unsigned integers at hand."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _numbers(ids: Iterable[int]) -> npt.NDArray[np.int64]:
    if isinstance(ids, np.ndarray):
        return ids.astype(np.int64, copy=False)
    return np.fromiter((int(i) for i in ids), np.int64)


def _well_formed(text: str) -> str:
    """``text`` with lone surrogates replaced, which UTF-8 cannot hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return _SURROGATES.sub("\ufffd", text)
    return text


def _visible(text: str) -> str:
    """``text`` with a mark for each blank or control character."""
    return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    match character:
        case " ":
            return "·"
        case "\n":
            return "↵"
        case "\t":
            return "⇥"
        case _ if character.isprintable():
            return character
        case _ if ord(character) < 0x20:
            return chr(0x2400 + ord(character))  # the block of pictures for control characters
        case _:
            return f"U+{ord(character):04X}"


def _byte_characters() -> list[str]:
    """The character by which byte-level BPE writes each of the 256 bytes (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


# What the library's pre-tokenizer calls a blank (Unicode's White_Space). No token of byte-level BPE holds a blank after
# a non-blank, so a text may be cut there without changing a token.
_BLANK = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_SAFE_CUT = re.compile(f"[^{_BLANK}](?=[{_BLANK}])")
_LONG_RUN = re.compile(f"[^{_BLANK}]{{256}}|[{_BLANK}]{{256}}")
_SHORT_RUNS = re.compile(f"[^{_BLANK}]{{1,256}}|[{_BLANK}]{{1,256}}")
_LONGEST_WORD = 1 << 20


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
        if _LONG_RUN.search(text):
            # The trainer's time grows with the square of a word's length; a text without blanks is one word.
            yield from _SHORT_RUNS.findall(text)
        elif text:
            yield text
        if limit is not None and seen >= limit:
            return


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
