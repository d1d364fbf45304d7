"""From a file to a stream of characters: plain text, tables, archives, PDF.

Nothing is ever unpacked to disk, and what an archive may hold is bounded before and while it is read.
"""

from __future__ import annotations

import csv
import gzip
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fundamentallm.data.encodings import Blocks, decode, detect
from fundamentallm.errors import CorpusError

BLOCK_BYTES = 1 << 20
# Real text shrinks five- to twentyfold. What shrinks more is refused, once it is more than a joke.
MAX_RATIO = 200
RATIO_FREE_BYTES = 1 << 24
MAX_UNPACKED_BYTES = 1 << 32
MAX_MEMBERS = 10_000
MAX_PDF_BYTES = 200 << 20
MAX_LINE_CHARACTERS = 1 << 26

TEXT_COLUMNS = ("text", "content", "story", "body", "document", "article", "sentence", "message")
_DOCUMENTS = (".docx", ".xlsx", ".pptx", ".odt", ".ods", ".epub", ".doc", ".xls", ".ppt", ".rtf")
_ARCHIVES = (".zip", ".gz", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")


@dataclass
class TextSource:
    """One text that can be read again and again.

    Attributes:
        name: For messages.
        read: Its characters, with plain newlines, in pieces of any size.
        size: Its bytes, as far as they are known without reading.
        notes: What is worth telling about it; reading may add to them.
    """

    name: str
    read: Callable[[], Iterator[str]]
    size: int = 0
    notes: list[str] = field(default_factory=list)


def open_file(path: Path, name: str, max_bytes: int | None = None, column: str | None = None) -> list[TextSource]:
    """The texts in a file: one, or as many as a zip archive holds.

    Args:
        path: A regular file.
        name: What to call it in messages.
        max_bytes: Refuse more than this many unpacked bytes.
        column: Of a table or of records, the column to read; the one that looks like the text when not given.

    Raises:
        CorpusError: It is empty, no text, damaged, or too large, or has no such column.
    """
    limit = MAX_UNPACKED_BYTES if max_bytes is None else max_bytes
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise CorpusError(f"{name!r} cannot be read: {(error.strerror or str(error)).lower()}.") from None
    suffix = path.suffix.lower()
    if suffix in _DOCUMENTS:
        raise CorpusError(f"{name!r} is a {suffix} document: save it as plain text (.txt) and choose that.")
    if not start:
        raise CorpusError(f"{name!r} is empty: choose a file with some text in it.")
    if start.startswith(b"%PDF-"):
        return [_pdf(path, name, size)]
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip(path, name, size, limit)
    if start.startswith(b"\x1f\x8b"):
        unpacked = _bounded(lambda: _gzip_blocks(path, name), name, size, limit)
        inner_suffix = path.with_suffix("").suffix if suffix == ".gz" else ""
        return [_text(unpacked, name, inner_suffix, sum(map(len, unpacked())), column)]
    if max_bytes is not None and size > max_bytes:
        raise CorpusError(too_large(max_bytes))
    if start.startswith(b"PAR1"):
        return [parquet_source(path, name, size, column)]
    return [_text(lambda: _file_blocks(path, name), name, suffix, size, column)]


def too_large(max_bytes: int) -> str:
    """The sentence that says so."""
    return f"The text is larger than the {max_bytes / 1e6:,.1f} MB allowed here: choose a shorter one."


def _text(blocks: Blocks, name: str, suffix: str, size: int = 0, column: str | None = None) -> TextSource:
    """A text in some encoding; of a table, the column with the text."""
    codec, note = detect(blocks, name)
    source = TextSource(name, lambda: decode(blocks(), codec), size, [note] if note else [])
    if suffix.lower() in (".csv", ".tsv"):
        _read_column(source, "," if suffix.lower() == ".csv" else "\t", column)
    elif suffix.lower() in (".jsonl", ".ndjson"):
        _read_records(source, column)
    return source


def _file_blocks(path: Path, name: str) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except OSError as error:
        raise CorpusError(f"{name!r} cannot be read: {(error.strerror or str(error)).lower()}.") from None


def _gzip_blocks(path: Path, name: str) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except (OSError, EOFError, zlib.error):
        raise CorpusError(f"{name!r} is damaged and cannot be unpacked: try another copy.") from None


def _bounded(blocks: Blocks, name: str, packed_bytes: int, limit: int) -> Blocks:
    """``blocks``, refused as soon as they are more than ``limit``, or more than honest compression explains."""

    def read() -> Iterator[bytes]:
        total = 0
        for block in blocks():
            total += len(block)
            _check_unpacked(total, packed_bytes, name, limit)
            yield block

    return read


def _check_unpacked(unpacked: int, packed: int, name: str, limit: int) -> None:
    if unpacked > limit:
        raise CorpusError(too_large(limit))
    if unpacked > RATIO_FREE_BYTES and unpacked > MAX_RATIO * packed:
        raise CorpusError(
            f"{name!r} unpacks to more than {MAX_RATIO} times its size, which no honest text does: unpack it yourself."
        )


def _zip(path: Path, name: str, size: int, limit: int) -> list[TextSource]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise CorpusError(f"{name!r} is damaged and cannot be unpacked: try another copy.") from None
    if len(members) > MAX_MEMBERS:
        raise CorpusError(
            f"{name!r} holds {len(members):,} files, more than {MAX_MEMBERS:,}: choose a smaller archive."
        )
    # A member never yields more than it declares, so the declared sizes bound everything, overlapping members included.
    _check_unpacked(sum(member.file_size for member in members), size, name, limit)
    sources, skipped = [], []
    for member in sorted(members, key=lambda member: member.filename):
        inner = PurePosixPath(member.filename)
        hidden = any(part.startswith((".", "__MACOSX")) and part != ".." for part in inner.parts)
        if hidden or not member.file_size:
            continue
        label = f"{name}/{inner}"
        suffix = inner.suffix.lower()
        usable = suffix not in (*_ARCHIVES, *_DOCUMENTS, ".pdf")
        # Other methods can unpack a small piece to any size at once.
        usable = usable and member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        try:
            if not usable:
                raise CorpusError(f"{label!r} is not a text: choose an archive with .txt files in it.")
            sources.append(_text(_member_blocks(path, member, label), label, suffix, member.file_size))
        except CorpusError as error:
            skipped.append((inner.name, error))
    if not sources:
        if len(skipped) == 1:
            raise skipped[0][1]
        raise CorpusError(f"{name!r} holds no text: choose an archive with .txt files in it.")
    if skipped:
        sources[0].notes.append(skipped_note([file for file, _ in skipped], name))
    return sources


def skipped_note(names: list[str], where: str) -> str:
    """The sentence on files that were left out because they are no texts."""
    shown = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
    return f"Left out of {where!r}, because they cannot be read as text: {shown}."


def _member_blocks(path: Path, member: zipfile.ZipInfo, name: str) -> Blocks:
    def read() -> Iterator[bytes]:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(member) as file:
                while block := file.read(BLOCK_BYTES):
                    yield block
        except RuntimeError:  # what zipfile raises for a password
            raise CorpusError(f"{name!r} is protected by a password: unpack it yourself.") from None
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, zlib.error):
            raise CorpusError(f"{name!r} is damaged and cannot be unpacked: try another copy.") from None

    return read


def _pdf(path: Path, name: str, size: int) -> TextSource:
    import logging

    from pypdf import PdfReader  # slow to import, and only for this

    if size > MAX_PDF_BYTES:
        raise CorpusError(
            f"{name!r} is a PDF of more than {MAX_PDF_BYTES >> 20} MB: save it as plain text and choose that."
        )
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it reports every oddity of a file
    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise CorpusError(f"{name!r} is protected by a password: save it without one.")
        text = "\n\n".join(page.extract_text().strip() for page in reader.pages)
    except CorpusError:
        raise
    # A damaged PDF makes pypdf fail in any way whatever.
    except Exception:
        raise CorpusError(f"{name!r} is damaged or not quite a PDF: save it as plain text and choose that.") from None
    text = well_formed(text).strip()
    if not text:
        raise CorpusError(f"{name!r} holds pictures of pages but no text: run it through text recognition first.")
    return TextSource(name, lambda: iter((text + "\n",)), len(text))


def no_column(name: str, wanted: str, columns: list[str]) -> str:
    """The sentence that says so."""
    return f"{name!r} has no column {wanted!r} with text: choose one of {', '.join(columns[:20]) or 'another file'}."


def parquet_source(path: Path, name: str, size: int, column: str | None) -> TextSource:
    """The text column of a Parquet file; raises CorpusError when it has none or nothing here can read it."""
    try:
        from pyarrow import ArrowException, parquet, types  # an extra: it is large, and only for this
    except ImportError:
        raise CorpusError(
            f"{name!r} is a Parquet file, for which the package pyarrow is needed: run `pip install pyarrow`."
        ) from None
    damaged = CorpusError(f"{name!r} is damaged and cannot be read: try another copy.")
    try:
        schema = parquet.ParquetFile(path).schema_arrow
    except (ArrowException, OSError, ValueError):
        raise damaged from None
    texts = [field.name for field in schema if types.is_string(field.type) or types.is_large_string(field.type)]
    chosen = next((title for title in (*TEXT_COLUMNS, *texts) if title in texts), None) if column is None else column
    if chosen not in texts:
        raise CorpusError(no_column(name, chosen or "text", texts))

    def read() -> Iterator[str]:
        try:
            for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024, columns=[chosen]):
                for text in batch.column(0).to_pylist():
                    if text and text.strip():
                        yield well_formed(text).strip("\n") + "\n\n"
        except (ArrowException, OSError, ValueError):
            raise damaged from None

    return TextSource(name, read, size, [f"Of {name!r} only the column {chosen!r} is read."])


def well_formed(text: str) -> str:
    """``text`` with plain newlines, and with � for what no UTF-8 file could hold (lone surrogates)."""
    return text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _lines(pieces: Iterable[str], name: str) -> Iterator[str]:
    rest = ""
    for piece in pieces:
        *lines, rest = (rest + piece).split("\n")
        if len(rest) > MAX_LINE_CHARACTERS:
            raise CorpusError(
                f"{name!r} has a line of more than {MAX_LINE_CHARACTERS >> 20} million characters: split it."
            )
        yield from lines
    if rest:
        yield rest


def _read_column(source: TextSource, delimiter: str, wanted: str | None) -> None:
    """Let ``source`` yield the column of a table that holds text, if there is one."""
    plain = source.read

    def rows() -> Iterator[list[str]]:
        csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_CHARACTERS))
        lines = (line + "\n" for line in _lines(plain(), source.name))
        try:
            yield from csv.reader(lines, delimiter=delimiter)
        except csv.Error as error:
            raise CorpusError(f"{source.name!r} cannot be read as a table ({error}): save the text as .txt.") from None

    header = [cell.strip().lower() for cell in next(rows(), [])]
    if wanted is not None and wanted.lower() not in header:
        raise CorpusError(no_column(source.name, wanted, header))
    titles = TEXT_COLUMNS if wanted is None else (wanted.lower(),)
    column = next((header.index(title) for title in titles if title in header), None)
    if column is None:
        source.notes.append(f"{source.name!r} has no column named text, so the whole table is read as it is.")
        return

    def read() -> Iterator[str]:
        table = rows()
        next(table)
        for row in table:
            if len(row) > column and row[column].strip():
                yield row[column].strip("\n") + "\n\n"

    source.read = read
    source.notes.append(f"Of {source.name!r} only the column {header[column]!r} is read.")


def _read_records(source: TextSource, wanted: str | None) -> None:
    """Let ``source`` yield the text of every JSON object, one of which stands on each line."""
    plain = source.read
    first = _parsed(next((line for line in _lines(plain(), source.name) if line.strip()), ""))
    texts = {key: value for key, value in first.items() if isinstance(value, str)} if isinstance(first, dict) else {}
    if wanted is not None and wanted not in texts:
        raise CorpusError(no_column(source.name, wanted, list(texts)))
    likely = next(
        (title for title in TEXT_COLUMNS if title in texts), max(texts, key=lambda key: len(texts[key]), default="")
    )
    field_name = likely if wanted is None else wanted
    if not texts:
        source.notes.append(f"{source.name!r} does not begin with an object that holds a text, so it is read as it is.")
        return

    def read() -> Iterator[str]:
        left_out = 0
        for line in _lines(plain(), source.name):
            record = _parsed(line) if line.strip() else {}
            text = record.get(field_name) if isinstance(record, dict) else None
            if isinstance(text, str) and text.strip():
                yield well_formed(text).strip("\n") + "\n\n"
            elif line.strip():
                left_out += 1
        note = f"{left_out:,} lines of {source.name!r} hold no {field_name!r} and are left out."
        if left_out and note not in source.notes:
            source.notes.append(note)

    source.read = read
    source.notes.append(f"Of {source.name!r} only the field {field_name!r} is read.")


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
