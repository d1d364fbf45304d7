"""Any text a person might have, as a stream of pieces that can be read again and again in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fundamentallm.data.examples import BUILT_IN
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
    """A text that can be read again and again, in pieces."""

    def __init__(
        self, name: str, read: Callable[[], Iterator[str]], files: tuple[str, ...] = (), notes: tuple[str, ...] = ()
    ):
        self.name = name
        self.files = files
        self.notes = notes
        self._read = read

    def chunks(self) -> Iterator[str]:
        """The text in pieces of about a million characters, with plain newlines; the same pieces every time."""
        return self._read()

    def read(self, limit: int | None = None) -> str:
        """The text, or its first ``limit`` characters."""
        pieces, length = [], 0
        for piece in self.chunks():
            pieces.append(piece)
            length += len(piece)
            if limit is not None and length >= limit:
                break
        return "".join(pieces)[:limit]


def open_corpus(sources: Sequence[str | Path], *, name: str | None = None, max_bytes: int | None = None) -> Corpus:
    """Open files, folders, ``-`` or built-in texts as one corpus; raises CorpusError."""
    texts = []
    for source in sources:
        if str(source) in BUILT_IN:
            loaded = BUILT_IN[str(source)].load()
            texts.append(loaded if isinstance(loaded, str) else "".join(loaded))
        else:
            texts.append(read_text(source))
    return text_corpus("\n".join(texts), name or ", ".join(str(s) for s in sources))


def text_corpus(text: str, name: str = "pasted text") -> Corpus:
    """A text that is in memory already, as a corpus."""
    if not text:
        raise CorpusError("The text is empty: paste or choose a longer one.")
    text = text.replace("\r\n", "\n").replace("\r", "\n")

    def read() -> Iterator[str]:
        return (text[i : i + PIECE_CHARACTERS] for i in range(0, len(text), PIECE_CHARACTERS))

    return Corpus(name, read)


def read_text(path: str | Path) -> str:
    """The whole text of a file."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        raise CorpusError(f"There is no file {str(path)!r}: check the path.") from None
    except UnicodeDecodeError:
        raise CorpusError(f"{str(path)!r} is not a text file: choose another.") from None
