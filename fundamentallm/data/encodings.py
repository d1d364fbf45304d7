"""From bytes to characters: which encoding a file is in, and decoding it in a stream."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterable, Iterator

from fundamentallm.errors import CorpusError

Blocks = Callable[[], Iterator[bytes]]

_SAMPLE_BYTES = 1 << 16
# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_KINDS = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"%PDF-", "a PDF document"),
    (b"SQLite", "a database"),
    (b"PAR1", "a Parquet file"),
    (b"RIFF", "a sound or video file"),
    (b"OggS", "a sound file"),
    (b"ID3", "a sound file"),
    (b"\xd0\xcf\x11\xe0", "an Office document"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
)
# What files are really in, the best known first; beyond these a guess is more likely wrong than right.
_LEGACY_CODECS = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257"),
    *("koi8_r", "koi8_u", "iso8859_2", "iso8859_5", "iso8859_7", "mac_roman", "cp437", "cp850", "cp866"),
    *("cp932", "euc_jp", "gb18030", "big5", "cp949"),
)
# Backspace, escape and form feed do occur in texts.
_CONTROL = bytes(set(range(32)) - set(b"\t\n\r\f\b\x1b")) + b"\x7f"
_ASCII = bytes(range(128))


def detect(blocks: Blocks, name: str) -> tuple[str, str | None]:
    """The codec of a text, and a sentence if there is something to say about it.

    Reads the whole text once, since one byte anywhere tells that it is not UTF-8.

    Raises:
        CorpusError: This is no text.
    """
    sample = _first_bytes(blocks(), _SAMPLE_BYTES)
    for mark, codec in _MARKS:
        if sample.startswith(mark):
            return codec, None
    if b"\0" in sample:
        wide = _wide_codec(sample)
        if wide is None:
            raise CorpusError(_binary(name, sample))
        return wide, f"{name!r} was read as {wide.upper()}, which it did not say itself."
    if len(sample) - len(sample.translate(None, _CONTROL)) > 0.05 * len(sample):
        raise CorpusError(_binary(name, sample))

    errors, valid, evidence = _utf8_errors(blocks())
    if not errors:
        return "utf-8", None
    # Text in another encoding hardly ever forms valid UTF-8 sequences, so these are damaged places in UTF-8.
    if valid >= errors:
        places = f"{errors:,} places are" if errors > 1 else "one place is"
        return "utf-8", f"{name!r} is not quite UTF-8: {places} damaged and shown as \ufffd."
    legacy = _legacy_codec(evidence)
    if legacy is None or any(sample.startswith(magic) for magic, _ in _KINDS if not magic.isascii()):
        raise CorpusError(_binary(name, sample))
    return legacy, f"{name!r} is not UTF-8; it was read as {legacy}, which is a guess."


def decode(blocks: Iterable[bytes], codec: str) -> Iterator[str]:
    """The characters of ``blocks`` with plain newlines; what cannot be decoded becomes �."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(codec)("replace"), translate=True)
    for block in blocks:
        text = decoder.decode(block)
        if text:
            yield text
    text = decoder.decode(b"", final=True)
    if text:
        yield text


def _first_bytes(blocks: Iterator[bytes], size: int) -> bytes:
    sample = b""
    for block in blocks:
        sample += block[: size - len(sample)]
        if len(sample) >= size:
            break
    return sample


def _wide_codec(sample: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark, recognised by where the zero bytes stand."""
    sample = sample[: len(sample) // 4 * 4] or sample
    zeros = [sample[place::4].count(0) / max(1, len(sample[place::4])) for place in range(4)]
    candidates = []
    if min(zeros[2], zeros[3]) > 0.95:
        candidates.append("utf-32-le")
    if min(zeros[0], zeros[1]) > 0.95:
        candidates.append("utf-32-be")
    candidates.append("utf-16-le" if zeros[1] + zeros[3] > zeros[0] + zeros[2] else "utf-16-be")
    for codec in candidates:
        # The sample may end inside a character.
        text = codecs.getincrementaldecoder(codec)("replace").decode(sample)
        odd = sum(not (character.isprintable() or character in "\t\n\r\f\ufeff") for character in text)
        if text and odd + text.count("\ufffd") <= 0.01 * len(text):
            return codec
    return None


def _utf8_errors(blocks: Iterator[bytes]) -> tuple[int, int, bytes]:
    """Damaged places, valid characters outside ASCII, and up to a sample of bytes around the damaged places."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    errors = valid = 0
    evidence = b""
    for block in blocks:
        text = decoder.decode(block)
        if text.isascii():
            continue
        damaged = text.count("\ufffd") - block.count(b"\xef\xbf\xbd")
        valid += sum(text.count(character) for character in set(text) if character > "\x7f" and character != "\ufffd")
        if damaged > 0:
            errors += damaged
            if len(evidence) < _SAMPLE_BYTES:
                first = next(place for place, byte in enumerate(block) if byte > 127)
                evidence += block[max(0, first - 1000) : first + _SAMPLE_BYTES]
    if decoder.decode(b"", final=True):
        errors += 1
    return errors, valid, evidence


def _legacy_codec(evidence: bytes) -> str | None:
    """The likeliest encoding from before Unicode."""
    from charset_normalizer import from_bytes  # slow to import, and seldom needed

    # A handful of such bytes is no evidence; then it is nearly always a quotation mark or an accent from Windows.
    if len(evidence.translate(None, _ASCII)) < 20 and _decodes(evidence, "cp1252"):
        return "cp1252"
    best = from_bytes(evidence[:_SAMPLE_BYTES], cp_isolation=list(_LEGACY_CODECS)).best()
    if best is None:
        return None
    # Of several that give the same text, name the best known.
    return next((codec for codec in _LEGACY_CODECS if codec in best.could_be_from_charset), best.encoding)


def _decodes(data: bytes, codec: str) -> bool:
    try:
        data.decode(codec)
    except UnicodeDecodeError:
        return False
    return True


def _kind(sample: bytes) -> str | None:
    return next((kind for magic, kind in _KINDS if sample.startswith(magic)), None)


def _binary(name: str, sample: bytes) -> str:
    return f"{name!r} is {_kind(sample) or 'a binary file'}, not a text: choose a file with plain text."
