"""What every tokenizer has in common: its interface, decoding in a stream, saving and loading."""

from __future__ import annotations

import contextlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from fundamentallm import registry
from fundamentallm.config import DataConfig
from fundamentallm.errors import CheckpointError, FundamentaLLMError

SPECIAL_TOKENS = ("<PAD>", "<UNK>", "<BOS>", "<EOS>")
PAD_ID, UNK_ID, BOS_ID, EOS_ID = range(4)


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
        prefix: Tokens that the model expects in front of every text; none for our own.
    """

    name: ClassVar[str]
    training_characters: ClassVar[int | None] = None
    vocab_size: int
    pad_id: int | None = None
    unk_id: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    prefix: tuple[int, ...] = ()

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

    @classmethod
    def from_folder(cls, document: dict[str, Any], directory: Path) -> Self:
        """Like ``from_document``, for a class that needs more of the folder than ``tokenizer.json``."""
        return cls.from_document(document)

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
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **self.saved_description(),
            _NAME_KEY: self.name,
        }
        _write(directory / "tokenizer.json", json.dumps(self.document(), ensure_ascii=False))
        _write(directory / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2))

    def saved_description(self) -> dict[str, Any]:
        """What ``tokenizer_config.json`` tells ``transformers``: which token has which role."""
        special = {
            "pad_token": self.pad_id,
            "unk_token": self.unk_id,
            "bos_token": self.bos_id,
            "eos_token": self.eos_id,
        }
        return {key: SPECIAL_TOKENS[index] for index, (key, token) in enumerate(special.items()) if token is not None}

    @classmethod
    def load(cls, directory: Path) -> BaseTokenizer:
        """The tokenizer that ``save`` wrote; see ``load_tokenizer``."""
        return load_tokenizer(directory)


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
_NAME_OF_MODEL = {"WordLevel": "character", "BPE": "bpe"}


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
    return _from_text(text, name, repr(str(path)), path.parent)


def tokenizer_from_json(text: str) -> BaseTokenizer:
    """The tokenizer that ``BaseTokenizer.to_json`` wrote.

    Raises:
        CheckpointError: The text is damaged, or describes a tokenizer that is not installed.
    """
    return _from_text(text, None, "The checkpoint's tokenizer", None)


def _from_text(text: str, name: str | None, what: str, directory: Path | None) -> BaseTokenizer:
    try:
        document: dict[str, Any] = json.loads(text)
        cls = tokenizer_class(document.pop(_NAME_KEY, name) or _name_of(document))
        return cls.from_document(document) if directory is None else cls.from_folder(document, directory)
    except FundamentaLLMError as error:
        raise CheckpointError(f"{what} cannot be used here: {error}") from None
    # The `tokenizers` library raises bare Exception.
    except Exception:
        raise CheckpointError(f"{what} is damaged, or is not one of ours: choose another checkpoint.") from None


def _name_of(document: dict[str, Any]) -> str:
    """The kind of a tokenizer that nobody named: one without our special tokens was made elsewhere."""
    first = tuple(token["content"] for token in document.get("added_tokens", ())[: len(SPECIAL_TOKENS)])
    kind = document["model"].get("type")
    return _NAME_OF_MODEL.get(kind, "foreign") if first == SPECIAL_TOKENS else "foreign"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def token_numbers(ids: Iterable[int]) -> npt.NDArray[np.int64]:
    """``ids`` as an array, shape (N,)."""
    if isinstance(ids, np.ndarray):
        return ids.astype(np.int64, copy=False)
    return np.fromiter((int(i) for i in ids), np.int64)


def visible(text: str) -> str:
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
