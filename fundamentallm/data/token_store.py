"""Tokens on disk: written in a stream, read through a memory map, so a corpus may be larger than memory."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from fundamentallm.config import DataConfig
from fundamentallm.data.corpus import Corpus, CorpusInfo
from fundamentallm.data.statistics import needed_characters, too_short
from fundamentallm.data.tokenizers import BaseTokenizer, load_tokenizer, tokenizer_class
from fundamentallm.errors import CorpusError

# Smaller files may stay mapped as a whole: reading them again costs something.
_LARGE_BYTES = 1 << 26

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class TokenStore:
    """Tokens in a file.

    Attributes:
        tokens: A read-only memory map of uint16 or uint32, shape (N,).
    """

    tokens: npt.NDArray[np.unsignedinteger]

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Map a file that ``TokenWriter`` wrote.

        Raises:
            CorpusError: The file is missing or damaged.
        """
        try:
            tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise CorpusError(f"{str(path)!r} is missing or damaged: start a new training on the text.") from None
        if not isinstance(tokens, np.memmap) or tokens.ndim != 1 or tokens.dtype not in (np.uint16, np.uint32):
            raise CorpusError(f"{str(path)!r} holds no tokens: start a new training on the text.")
        return cls(tokens)


def tokens_at(tokens: npt.NDArray[np.integer], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The tokens at these positions, in the shape of ``positions``.

    What was read of a large file is unmapped again; the system keeps it at hand as long as it has room. Otherwise a
    training's memory seems to grow until all of the text is in it: reading a window of 130 bytes of 1.8 GB mapped
    650 kB, with Linux 6.18.
    """
    found = tokens[positions].astype(np.int64)
    memory: object = tokens.base
    if sys.platform != "win32" and tokens.nbytes >= _LARGE_BYTES and isinstance(memory, mmap.mmap):
        memory.madvise(mmap.MADV_DONTNEED)
    return found


class TokenWriter:
    """Writes tokens one piece after another to a NumPy file, under a temporary name until it is complete.

    Args:
        path: The file to make. It appears, or is replaced, in one step when the writer closes without an error.
        dtype: uint16 or uint32.
    """

    def __init__(self, path: str | Path, dtype: npt.DTypeLike) -> None:
        self.path = Path(path)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.length = 0
        self._temporary = self.path.with_name(f".{self.path.name}.tmp")
        self._file = open(self._temporary, "wb")  # noqa: SIM115 closed by close() or abort()
        self._header_size = self._write_header()

    def write(self, ids: npt.NDArray[np.unsignedinteger]) -> None:
        """Append tokens, shape (N,)."""
        self._file.write(ids.astype(self.dtype, copy=False).tobytes())
        self.length += len(ids)

    def close(self) -> None:
        """Complete the file and give it its name."""
        if self._file.closed:
            return
        self._file.seek(0)
        if self._write_header() != self._header_size:
            raise AssertionError("NumPy reserves room for the length in the header")
        _finish(self._file, self._temporary, self.path)

    def abort(self) -> None:
        """Leave nothing behind."""
        _discard(self._file, self._temporary)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _write_header(self) -> int:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()


@dataclass(frozen=True)
class PreparedData:
    """A corpus as a training run sees it.

    Attributes:
        tokenizer: Trained on the training part only.
        train: Tokens that are trained on.
        validation: Tokens that are held out.
        corpus: Where the text came from.
        train_characters: Length of the training part in characters.
        validation_characters: Length of the held-out part in characters.
        validation_bytes: Length of the held-out part in UTF-8 bytes.
        directory: Where all of it is stored.
    """

    tokenizer: BaseTokenizer
    train: TokenStore
    validation: TokenStore
    corpus: CorpusInfo
    train_characters: int
    validation_characters: int
    validation_bytes: int
    directory: Path

    def validation_text(self) -> str:
        """The held-out text."""
        return (self.directory / "tokens" / "validation.txt").read_bytes().decode("utf-8")


def prepare(
    corpus: Corpus,
    config: DataConfig,
    directory: Path,
    *,
    sequence_length: int,
    tokenizer: BaseTokenizer | None = None,
    progress: Progress | None = None,
) -> PreparedData:
    """Split a corpus, train a tokenizer on its training part, and store both parts as tokens.

    The text is read three times in a stream and never held in memory. The split lies between two characters, and each
    part is encoded on its own, so no token and no window crosses it.

    Args:
        corpus: The text.
        config: Tokenizer, vocabulary and split.
        directory: Receives ``tokenizer.json``, ``corpus.json``, and in ``tokens/`` ``train.bin``, ``val.bin`` and
            ``validation.txt``.
        sequence_length: T; each part must hold at least one window of T + 1 tokens.
        tokenizer: Use this one instead of training one.
        progress: Is told what happens, in a phrase, and how much of it all is done (0 to 1).

    Raises:
        CorpusError: The text is too short or cannot be read, or the files cannot be written.
    """
    directory = Path(directory)
    try:
        return _prepare(corpus, config, directory, sequence_length, tokenizer, progress or (lambda _what, _done: None))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CorpusError(f"The disk is full: free some space at {str(directory)!r} and start again.") from error
        reason = (error.strerror or str(error)).lower()
        raise CorpusError(f"The prepared text cannot be written to {str(directory)!r}: {reason}.") from error


def _prepare(
    corpus: Corpus,
    config: DataConfig,
    directory: Path,
    sequence_length: int,
    tokenizer: BaseTokenizer | None,
    progress: Progress,
) -> PreparedData:
    (directory / "tokens").mkdir(parents=True, exist_ok=True)
    progress("Reading the text", 0.0)
    info = measure(corpus)
    train_characters = int(info.characters * config.train_split)
    needed = needed_characters(sequence_length, config.train_split)
    # A token is at least one byte, so fewer bytes than that cannot do for any tokenizer.
    if (info.characters if config.tokenizer == "character" else info.bytes) < needed:
        raise CorpusError(too_short(info.characters, needed, sequence_length))
    if tokenizer is None:
        progress("Learning the vocabulary", 0.2)
        cls = tokenizer_class(config.tokenizer)
        tokenizer = cls.train(
            _thinned(_part(corpus, 0, train_characters), train_characters, cls.training_characters), config
        )
    tokenizer.save(directory)

    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    with TokenWriter(directory / "tokens" / "train.bin", dtype) as writer:
        for done, ids in _encoded(tokenizer, _part(corpus, 0, train_characters)):
            writer.write(ids)
            progress("Turning the text into tokens", 0.4 + 0.6 * done / info.characters)
        _check_length(writer.length, train_characters, info, sequence_length)
    validation_bytes = 0

    text_path = directory / "tokens" / "validation.txt"
    temporary = text_path.with_name(".validation.txt.tmp")
    file = open(temporary, "wb")  # noqa: SIM115 closed by _finish or _discard
    try:

        def kept() -> Iterator[str]:
            nonlocal validation_bytes
            for piece in _part(corpus, train_characters, info.characters):
                validation_bytes += file.write(piece.encode("utf-8"))
                yield piece

        with TokenWriter(directory / "tokens" / "val.bin", dtype) as writer:
            for done, ids in _encoded(tokenizer, kept()):
                writer.write(ids)
                progress("Turning the text into tokens", 0.4 + 0.6 * (train_characters + done) / info.characters)
            _check_length(writer.length, info.characters - train_characters, info, sequence_length)
        _finish(file, temporary, text_path)
    except BaseException:
        _discard(file, temporary)
        # Half of a preparation is worth nothing.
        (directory / "tokens" / "train.bin").unlink(missing_ok=True)
        raise

    description = {
        **asdict(info),
        "train_characters": train_characters,
        "validation_characters": info.characters - train_characters,
        "validation_bytes": validation_bytes,
    }
    json_path = directory / "corpus.json"
    temporary = json_path.with_name(".corpus.json.tmp")
    temporary.write_text(json.dumps(description, ensure_ascii=False, indent=2), encoding="utf-8")
    os.replace(temporary, json_path)
    progress("The text is ready", 1.0)
    return open_prepared(directory)


def open_prepared(directory: str | Path) -> PreparedData:
    """What ``prepare`` wrote.

    Raises:
        CorpusError: A file is missing or damaged.
        CheckpointError: The tokenizer is.
    """
    directory = Path(directory)
    path = directory / "corpus.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        info = CorpusInfo(
            name=description["name"],
            sha256=description["sha256"],
            characters=description["characters"],
            bytes=description["bytes"],
            files=tuple(description["files"]),
            notes=tuple(description["notes"]),
        )
        return PreparedData(
            tokenizer=load_tokenizer(directory),
            train=TokenStore.open(directory / "tokens" / "train.bin"),
            validation=TokenStore.open(directory / "tokens" / "val.bin"),
            corpus=info,
            train_characters=description["train_characters"],
            validation_characters=description["validation_characters"],
            validation_bytes=description["validation_bytes"],
            directory=directory,
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise CorpusError(f"{str(path)!r} is missing or damaged: start a new training on the text.") from None


def measure(corpus: Corpus) -> CorpusInfo:
    """Read a corpus once, to know its size and its fingerprint."""
    digest = hashlib.sha256()
    characters = size = 0
    for chunk in corpus.chunks():
        encoded = chunk.encode("utf-8")
        digest.update(encoded)
        characters += len(chunk)
        size += len(encoded)
    return CorpusInfo(corpus.name, digest.hexdigest(), characters, size, corpus.files, corpus.notes)


def _part(corpus: Corpus, start: int, end: int) -> Iterator[str]:
    """The characters from ``start`` up to ``end``, in pieces."""
    position = 0
    for chunk in corpus.chunks():
        piece = chunk[max(0, start - position) : max(0, end - position)]
        if piece:
            yield piece
        position += len(chunk)
        if position >= end:
            return


def _thinned(pieces: Iterator[str], characters: int, limit: int | None) -> Iterator[str]:
    """Every n-th piece, so that about ``limit`` characters come from all over the text."""
    return pieces if limit is None else itertools.islice(pieces, 0, None, -(-characters // limit))


def _encoded(tokenizer: BaseTokenizer, pieces: Iterator[str]) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
    """The tokens of ``pieces``, each time with the number of characters taken so far."""
    taken = 0

    def counted() -> Iterator[str]:
        nonlocal taken
        for piece in pieces:
            taken += len(piece)
            yield piece

    for ids in tokenizer.encode_chunks(counted()):
        yield taken, ids


def _check_length(tokens: int, characters: int, info: CorpusInfo, sequence_length: int) -> None:
    if tokens < sequence_length + 1:
        needed = info.characters * (sequence_length + 1) / max(1, tokens)
        raise CorpusError(too_short(info.characters, int(needed) + 1, sequence_length))


def _finish(file: BinaryIO, temporary: Path, path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
    os.replace(temporary, path)


def _discard(file: BinaryIO, temporary: Path) -> None:
    file.close()
    temporary.unlink(missing_ok=True)
