"""Any text a person might have, as a stream of pieces that can be read again and again in constant memory."""

from __future__ import annotations

import difflib
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fundamentallm.data.examples import BUILT_IN
from fundamentallm.data.file_formats import (
    BLOCK_BYTES,
    MAX_MEMBERS,
    TextSource,
    open_file,
    skipped_note,
    too_large,
    well_formed,
)
from fundamentallm.data.hub_dataset import PREFIX, fetch_dataset
from fundamentallm.errors import CorpusError

PIECE_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class CorpusInfo:
    """What there is to know about a corpus that was read to its end.

    Attributes:
        name: For display.
        sha256: Fingerprint of the text in UTF-8.
        characters: Length.
        bytes: Length in UTF-8.
        files: What was read.
        notes: One sentence for everything that was not as expected, such as a guessed encoding.
    """

    name: str
    sha256: str
    characters: int
    bytes: int
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Corpus:
    """Texts that are read one after another, again and again, in pieces.

    Attributes:
        name: For display.
        files: The names of the texts.
    """

    def __init__(
        self, name: str, sources: Sequence[TextSource], notes: Sequence[str] = (), keep: Sequence[object] = ()
    ) -> None:
        """``keep`` lives as long as the corpus: temporary files that remove themselves."""
        self.name = name
        self.files = tuple(source.name for source in sources)
        self._sources = tuple(sources)
        self._notes = tuple(notes)
        self._keep = tuple(keep)

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence for everything that was not as expected; reading may find more."""
        return tuple(dict.fromkeys([*self._notes, *(note for source in self._sources for note in source.notes)]))

    def chunks(self) -> Iterator[str]:
        """The text in pieces of about a million characters, with plain newlines; the same pieces every time."""
        buffer: list[str] = []
        length = 0
        for piece in self._pieces():
            buffer.append(piece)
            length += len(piece)
            if length >= PIECE_CHARACTERS:
                joined = "".join(buffer)
                whole = length // PIECE_CHARACTERS * PIECE_CHARACTERS
                for start in range(0, whole, PIECE_CHARACTERS):
                    yield joined[start : start + PIECE_CHARACTERS]
                buffer, length = [joined[whole:]], length - whole
        if length:
            yield "".join(buffer)

    def read(self, limit: int | None = None) -> str:
        """The text, or its first ``limit`` characters."""
        pieces: list[str] = []
        length = 0
        for piece in self.chunks():
            pieces.append(piece)
            length += len(piece)
            if limit is not None and length >= limit:
                break
        return "".join(pieces)[:limit]

    def _pieces(self) -> Iterator[str]:
        ends_line = True
        for source in self._sources:
            # Files without a newline at their end must not run into each other.
            if not ends_line:
                yield "\n"
                ends_line = True
            for piece in source.read():
                if piece:
                    yield piece
                    ends_line = piece.endswith("\n")


def open_corpus(
    sources: Sequence[str | Path],
    *,
    name: str | None = None,
    max_bytes: int | None = None,
    progress: Callable[[str, float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Corpus:
    """Open texts as one corpus.

    Args:
        sources: Files, folders (their readable files, in the order of their names), ``-`` for standard input, names of
            built-in texts, or datasets on the Hub, ``hub:user/dataset[:split][:column]``.
        name: For display; made from the sources when not given.
        max_bytes: Refuse more than this; of a dataset on the Hub take the beginning that fits.
        progress: Is told what is fetched from the Hub, its size first, and the share that is there.
        cancelled: Asked while fetching; True ends it with CorpusError.

    Raises:
        CorpusError: Something is missing, empty, too large, or no text.
        HubError: A dataset cannot be fetched.
    """
    if not sources:
        raise CorpusError(f"No text was given: name a file, a folder, or one of {', '.join(BUILT_IN)}.")
    texts: list[TextSource] = []
    notes: list[str] = []
    titles: list[str] = []
    temporary: list[tempfile.TemporaryDirectory[str]] = []  # each removes itself once nobody holds it any more
    for source in map(str, sources):
        if source in BUILT_IN:
            texts.append(_built_in(source))
            titles.append(BUILT_IN[source].title)
        elif source.startswith(PREFIX):
            temporary.append(tempfile.TemporaryDirectory(prefix="fundamentallm-"))
            folder = Path(temporary[-1].name)
            texts += fetch_dataset(source, folder, max_bytes=max_bytes, progress=progress, cancelled=cancelled)
            titles.append(source)
            continue  # its limit is kept, and what is fetched may be larger or smaller than the text in it
        elif source == "-":
            temporary.append(tempfile.TemporaryDirectory(prefix="fundamentallm-"))
            texts += open_file(_spooled(Path(temporary[-1].name), max_bytes), "standard input", max_bytes)
            titles.append("standard input")
        else:
            path = Path(source).expanduser()
            opened, skipped = _open_path(path, max_bytes)
            texts += opened
            notes += skipped
            titles.append(path.resolve().name)
        if max_bytes is not None and sum(text.size for text in texts) > max_bytes:
            raise CorpusError(too_large(max_bytes))
    more = f" and {len(titles) - 1} more" if len(titles) > 1 else ""
    corpus = Corpus(name or titles[0] + more, texts, notes, temporary)
    if not next(corpus.chunks(), ""):
        raise CorpusError(f"{titles[0]!r} holds no text: choose another.")
    return corpus


def text_corpus(text: str, name: str = "pasted text") -> Corpus:
    """A text that is in memory already, as a corpus.

    Raises:
        CorpusError: It is empty.
    """
    if not text:
        raise CorpusError("The text is empty: type, paste or choose a longer one.")
    text = well_formed(text)
    return Corpus(name, [TextSource(name, lambda: iter((text,)), len(text))])


def read_text(path: str | Path) -> str:
    """The whole text of a file or folder, in any format and encoding that ``open_corpus`` reads.

    Raises:
        CorpusError: It is missing, empty, or no text.
    """
    path = Path(path).expanduser()
    return Corpus(path.name, _open_path(path, None)[0]).read()


def _built_in(name: str) -> TextSource:
    loaded = BUILT_IN[name].load()
    if isinstance(loaded, str):
        text = loaded
        return TextSource(name, lambda: iter((text,)), len(text))

    def read() -> Iterator[str]:
        pieces = BUILT_IN[name].load()
        assert not isinstance(pieces, str)
        return (well_formed(piece) for piece in pieces)

    return TextSource(name, read)


def _open_path(path: Path, max_bytes: int | None) -> tuple[list[TextSource], list[str]]:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise CorpusError(_missing(str(path))) from None
    except (OSError, ValueError) as error:
        raise CorpusError(f"{str(path)!r} cannot be read: {error}.") from None
    if stat.S_ISDIR(mode):
        return _folder(path, max_bytes)
    if not stat.S_ISREG(mode):
        raise CorpusError(
            f"{str(path)!r} is a device or a pipe, not a file: pipe it into standard input and name it '-'."
        )
    return open_file(path, path.name, max_bytes), []


def _folder(folder: Path, max_bytes: int | None) -> tuple[list[TextSource], list[str]]:
    paths: list[Path] = []
    special: list[str] = []
    for path in _walk(folder):
        if stat.S_ISREG(path.lstat().st_mode):
            paths.append(path)
        else:
            special.append(path.name)
        if len(paths) > MAX_MEMBERS:
            raise CorpusError(f"{str(folder)!r} holds more than {MAX_MEMBERS:,} files: choose a smaller folder.")
    texts: list[TextSource] = []
    skipped: list[str] = []
    for path in paths:
        if path.stat().st_size == 0:
            continue
        try:
            texts += open_file(path, path.relative_to(folder).as_posix(), max_bytes)
        except CorpusError:
            skipped.append(path.name)
        if max_bytes is not None and sum(text.size for text in texts) > max_bytes:
            raise CorpusError(too_large(max_bytes))
    if not texts:
        raise CorpusError(f"The folder {str(folder)!r} holds no text file: choose another.")
    left_out = skipped + special
    return texts, [skipped_note(left_out, folder.name)] if left_out else []


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below ``folder`` that is not hidden, sorted; links to folders are not followed."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        yield from (Path(parent) / name for name in sorted(files) if not name.startswith("."))


def _spooled(directory: Path, max_bytes: int | None) -> Path:
    """Standard input in a file, since it can be read only once."""
    path = directory / "input"
    size = 0
    try:
        with path.open("wb") as file:
            while block := sys.stdin.buffer.read(BLOCK_BYTES):
                size += len(block)
                if max_bytes is not None and size > max_bytes:
                    raise CorpusError(too_large(max_bytes))
                file.write(block)
    except OSError as error:
        raise CorpusError(f"Standard input cannot be kept in a temporary file: {error.strerror}.") from None
    return path


def _missing(source: str) -> str:
    near = difflib.get_close_matches(source, BUILT_IN, n=1)
    advice = f"did you mean the built-in text {near[0]}?" if near else "check the path."
    return f"There is no file or folder {source!r}: {advice}"
