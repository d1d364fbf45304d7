"""The tokenizer of a model that was made elsewhere: whatever a ``tokenizer.json`` describes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from fundamentallm.config import DataConfig
from fundamentallm.data.base_tokenizer import BaseTokenizer, StreamDecoder, token_numbers, visible
from fundamentallm.data.byte_pair_encoding import ByteStreamDecoder, byte_characters
from fundamentallm.errors import ConfigError

if TYPE_CHECKING:
    import tokenizers

_ROLES = ("pad_token", "unk_token", "bos_token", "eos_token")
_KEPT = ("chat_template", "model_max_length")
_DESCRIPTION_KEY = "fundamentallm_special_tokens"


class ForeignTokenizer(BaseTokenizer):
    """A ``tokenizers.Tokenizer`` of any kind. It came with its model and cannot be trained.

    Args:
        backend: The tokenizer itself.
        description: Which of its tokens is the ``bos_token``, ``eos_token`` and so on, by content, and what else of
            ``tokenizer_config.json`` is worth keeping.
    """

    name = "foreign"

    def __init__(self, backend: tokenizers.Tokenizer, description: Mapping[str, Any]) -> None:
        backend.no_truncation()
        backend.no_padding()
        # True means: special tokens that somebody typed are text like any other.
        backend.encode_special_tokens = True
        self._backend = backend
        self._description = dict(description)
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        numbers = (self._number(description.get(role)) for role in _ROLES)
        self.pad_id, self.unk_id, self.bos_id, self.eos_id = numbers
        self.prefix = self._prefix()

    @classmethod
    def train(cls, chunks: Iterable[str], config: DataConfig) -> Self:
        """Impossible: raises ConfigError."""
        raise ConfigError("A foreign vocabulary comes with its model: set data.tokenizer to character or bpe.")

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """The tokens of ``text``, shape (N,)."""
        (encoding,) = self._backend.encode_batch_fast([_well_formed(text)], add_special_tokens=False)
        return np.array(encoding.ids, np.uint32)

    def encode_chunks(self, chunks: Iterable[str]) -> Iterator[npt.NDArray[np.uint32]]:
        """The tokens of a long text; pieces are joined and cut again where the tokens around the cut stay the same."""
        rest = ""
        for chunk in chunks:
            rest += chunk
            cut, continuation = self._safe_cut(rest)
            if cut:
                yield self.encode(rest[:cut])
                rest = rest[continuation:]
        if rest:
            yield self.encode(rest)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; special tokens write nothing."""
        text: str = self._backend.decode(token_numbers(ids).tolist(), skip_special_tokens=True)
        return text

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for tokens that continue a text; unlike at the beginning of one, a first blank is kept."""
        if self._is_byte_level:
            return ByteStreamDecoder(self, self._token_bytes)
        return _ContinuingDecoder(self, self.encode("a").tolist())

    def unknown_characters(self, text: str) -> list[str]:
        """The distinct characters of ``text`` for which there is only the unknown token."""
        distinct = list(dict.fromkeys(text))
        if self.unk_id is None:
            return [character for character in distinct if "\ud800" <= character <= "\udfff"]
        return [character for character in distinct if self.unk_id in self.encode(character)]

    def token_text(self, token_id: int) -> str:
        """The token's characters, made visible; bytes that are only part of one as �."""
        content: str = self._backend.id_to_token(token_id) or ""
        if token_id in self._added:
            return content
        if self._is_byte_level:
            return visible(self._token_bytes(token_id).decode("utf-8", "replace"))
        return visible(content.replace("▁", " "))  # SentencePiece's blank

    def document(self) -> dict[str, Any]:
        """The ``tokenizers`` library's own format."""
        document: dict[str, Any] = json.loads(self._backend.to_str())
        return document

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """Let the ``tokenizers`` library read its own format."""
        from tokenizers import Tokenizer  # heavy: only when it is used

        description = document.pop(_DESCRIPTION_KEY, {})
        return cls(Tokenizer.from_str(json.dumps(document)), description)

    @classmethod
    def from_folder(cls, document: dict[str, Any], directory: Path) -> Self:
        """Also learn from the files beside ``tokenizer.json`` which of its tokens is which."""
        return cls.from_document({_DESCRIPTION_KEY: _description(directory, document), **document})

    def to_json(self) -> str:
        """See :meth:`BaseTokenizer.to_json`."""
        return json.dumps({_DESCRIPTION_KEY: self._description} | json.loads(super().to_json()), ensure_ascii=False)

    def saved_description(self) -> dict[str, Any]:
        """See :meth:`BaseTokenizer.saved_description`."""
        return self._description

    def _number(self, content: object) -> int | None:
        number: int | None = self._backend.token_to_id(content) if isinstance(content, str) else None
        return number

    def _prefix(self) -> tuple[int, ...]:
        """What the tokenizer puts in front of every text, such as a begin-of-text token."""
        plain = self.encode("a").tolist()
        whole: list[int] = self._backend.encode("a", add_special_tokens=True).ids
        starts = (start for start in range(len(whole)) if whole[start : start + len(plain)] == plain)
        return tuple(whole[: next(starts, 0)])

    def _safe_cut(self, text: str) -> tuple[int, int]:
        """The last place where the text can be cut: where the first piece ends and where the next one begins.

        Between the two lies nothing, or one blank where the tokenizer itself puts one in front of every text.
        """
        end = len(text)
        for _ in range(64):  # in any prose the first try succeeds
            end = text.rfind(" ", 1, end)
            if end < 1:
                break
            before, after = text[max(0, end - 256) : end], text[end : end + 256]
            whole = self.encode(before + after).tolist()
            for blank in (0, 1):
                if self.encode(before).tolist() + self.encode(after[blank:]).tolist() == whole and after[blank:]:
                    return end, end + blank
        # A text without a blank to cut at; a wrong token every few megabytes does no harm.
        return (len(text), len(text)) if len(text) > 1 << 22 else (0, 0)

    def _token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token of byte-level BPE writes; none for a special one."""
        if token_id in self._added:
            return b"" if self._added[token_id] else (self._backend.id_to_token(token_id) or "").encode()
        return bytes(_BYTES[c] for c in self._backend.id_to_token(token_id) or "" if c in _BYTES)

    @cached_property
    def _added(self) -> dict[int, bool]:
        """Tokens beside the model's vocabulary, and whether each is special."""
        return {number: token.special for number, token in self._backend.get_added_tokens_decoder().items()}

    @cached_property
    def _is_byte_level(self) -> bool:
        return '"ByteLevel"' in json.dumps(self.document().get("decoder"))


class _ContinuingDecoder(StreamDecoder):
    def __init__(self, tokenizer: ForeignTokenizer, before: list[int]) -> None:
        super().__init__(tokenizer)
        self._context = before
        self._shown = tokenizer.decode(before)

    def __call__(self, token_id: int) -> str:
        self._pending.append(token_id)
        text = self._tokenizer.decode(self._context + self._pending)
        # A character has at most four bytes, so a longer wait is for nothing.
        if text.endswith("\ufffd") and len(self._pending) < 4:
            return ""
        return self._piece(text)

    def finish(self) -> str:
        return self._piece(self._tokenizer.decode(self._context + self._pending))

    def _piece(self, text: str) -> str:
        piece = text[len(self._shown) :]
        if piece:  # a token that shows nothing cannot tell whether a blank comes before the next one
            self._context = self._pending.copy()
            self._shown = self._tokenizer.decode(self._context)
        self._pending.clear()
        return piece


_BYTES = {character: byte for byte, character in enumerate(byte_characters())}


def _description(directory: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Special tokens by role, from whichever file of ``transformers`` names them."""
    contents = {token["id"]: token["content"] for token in document.get("added_tokens", ())}
    found: dict[str, Any] = {}
    for role in ("bos_token", "eos_token"):
        numbers = _read(directory / "config.json").get(f"{role}_id")
        first = numbers[0] if isinstance(numbers, list) and numbers else numbers
        if isinstance(first, int) and first in contents:
            found[role] = contents[first]
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in _read(directory / name).items():
            content = value.get("content") if isinstance(value, dict) else value
            if (key in _ROLES and isinstance(content, str)) or key in _KEPT:
                found[key] = content
    template = directory / "chat_template.jinja"
    if template.is_file():
        found["chat_template"] = template.read_text(encoding="utf-8")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _well_formed(text: str) -> str:
    """``text`` with lone surrogates replaced, which UTF-8 cannot hold."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
