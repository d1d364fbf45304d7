"""Every kind of file a person might drop, and everything that is none."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import os
import pickle
import random
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from fundamentallm.data import corpus as corpus_module
from fundamentallm.data import file_formats
from fundamentallm.data.corpus import PIECE_CHARACTERS, Corpus, open_corpus, read_text, text_corpus
from fundamentallm.data.file_formats import TextSource
from fundamentallm.errors import CorpusError

ENGLISH = "The quick brown fox jumps over the lazy dog.\nIt was a bright cold day, and nobody minded.\n"
GERMAN = (
    "Übermütig liefen die Füchse über die Straße, und größere Bären schliefen früh.\n"
    "Später hörten wir schöne Lieder; die Mädchen aßen süße Äpfel.\n"
) * 10
RUSSIAN = (
    "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n"
    "Все смешалось в доме Облонских. Жена узнала, что муж был в связи с бывшею гувернанткой.\n"
) * 5
POLISH = "Wszystkie szczęśliwe rodziny są do siebie podobne, każda nieszczęśliwa jest nieszczęśliwa inaczej.\n" * 8
KOREAN = "모든 행복한 가정은 서로 닮았고, 불행한 가정은 저마다 나름대로 불행하다.\n" * 10
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n" * 20
CHINESE = "人之初,性本善。性相近,习相远。苟不教,性乃迁。教之道,贵以专。\n" * 20


def _file(folder: Path, data: bytes, name: str = "text.txt") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _sentence(error: pytest.ExceptionInfo[CorpusError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith((".", "?"))
    return text


def _refused(path: Path | str, **limits: int) -> str:
    with pytest.raises(CorpusError) as error:
        open_corpus([path], **limits).read()
    return _sentence(error)


# --- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [ENGLISH, GERMAN, RUSSIAN, JAPANESE, "a", "\n", "é"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_encodings(tmp_path: Path, text: str, encoding: str) -> None:
    corpus = open_corpus([_file(tmp_path, text.encode(encoding))])
    assert corpus.read() == text
    assert corpus.notes == ()


@pytest.mark.parametrize("mark, encoding", [(codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF32_BE, "utf-32-be")])
def test_big_endian_with_a_mark(tmp_path: Path, mark: bytes, encoding: str) -> None:
    assert read_text(_file(tmp_path, mark + GERMAN.encode(encoding))) == GERMAN


@pytest.mark.parametrize("text", [ENGLISH, GERMAN, RUSSIAN])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_encodings_without_a_mark_are_recognised_and_noted(tmp_path: Path, text: str, encoding: str) -> None:
    corpus = open_corpus([_file(tmp_path, text.encode(encoding))])
    assert corpus.read() == text
    assert len(corpus.notes) == 1


@pytest.mark.parametrize(
    "text, encoding",
    [
        (GERMAN, "cp1252"),
        (POLISH, "cp1250"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8-r"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc_jp"),
        (CHINESE, "gb18030"),
        (KOREAN, "euc_kr"),
    ],
)
def test_legacy_encodings_are_guessed_and_noted(tmp_path: Path, text: str, encoding: str) -> None:
    corpus = open_corpus([_file(tmp_path, text.encode(encoding))])
    assert corpus.read() == text
    assert "guess" in corpus.notes[0]


def test_few_windows_characters(tmp_path: Path) -> None:
    text = ENGLISH * 5 + "“Curly quotes”, said the café owner – and that’s all.\n" + ENGLISH
    assert read_text(_file(tmp_path, text.encode("cp1252"))) == text


def test_legacy_bytes_far_into_a_file(tmp_path: Path) -> None:
    text = ENGLISH * 30_000 + GERMAN
    assert read_text(_file(tmp_path, text.encode("cp1252"))) == text


def test_damaged_utf8_keeps_the_rest_and_is_noted(tmp_path: Path) -> None:
    data = GERMAN.encode() + b"\xff\xfe oops \xc3\n" + GERMAN.encode()
    corpus = open_corpus([_file(tmp_path, data)])
    text = corpus.read()
    assert text.startswith(GERMAN) and text.endswith(GERMAN)
    assert "\ufffd oops" in text
    assert "damaged" in corpus.notes[0]


def test_a_genuine_replacement_character_is_no_damage(tmp_path: Path) -> None:
    corpus = open_corpus([_file(tmp_path, ("\ufffd" + ENGLISH).encode())])
    assert corpus.read() == "\ufffd" + ENGLISH
    assert corpus.notes == ()


def test_character_across_a_block_border(tmp_path: Path) -> None:
    text = "x" * (file_formats.BLOCK_BYTES - 1) + "é€😀" + "\r\n"
    assert read_text(_file(tmp_path, text.encode())) == text.replace("\r\n", "\n")


def test_newlines_are_plain(tmp_path: Path) -> None:
    data = b"one\r\ntwo\rthree\nfour\r\r\nfive\r"
    plain = "one\ntwo\nthree\nfour\n\nfive\n"
    assert read_text(_file(tmp_path, data)) == plain
    assert text_corpus(data.decode()).read() == plain


def test_newline_across_a_block_border(tmp_path: Path) -> None:
    data = b"x" * (file_formats.BLOCK_BYTES - 1) + b"\r\ny"
    assert read_text(_file(tmp_path, data)) == "x" * (file_formats.BLOCK_BYTES - 1) + "\ny"


# --- what is no text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, kind",
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(200), "PNG"),
        (b"\x7fELF\x02\x01\x01" + bytes(500), "program"),
        (pickle.dumps({"weights": list(range(100))}, protocol=4), "pickle"),
        (pickle.dumps({"weights": list(range(1000))}, protocol=2), "pickle"),
        (bz2.compress(random.Random(1).randbytes(3000)), "bzip2"),
        (random.Random(2).randbytes(50_000), "binary"),
        (bytes(1000), "binary"),
        (b"SQLite format 3\0" + bytes(100), "database"),
        (b"\xff\xd8\xff\xe0" + random.Random(3).randbytes(5000), "JPEG"),
    ],
)
def test_binary_files_are_refused(tmp_path: Path, data: bytes, kind: str) -> None:
    assert kind in _refused(_file(tmp_path, data))


@pytest.mark.parametrize("data", [b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE])
def test_empty_files_are_refused(tmp_path: Path, data: bytes) -> None:
    _refused(_file(tmp_path, data))


def test_missing_path_suggests_a_built_in_text() -> None:
    assert "check the path" in _refused("/no/such/file.txt")
    assert "tiny-tales" in _refused("tiny-tale")
    assert "\\x00" in _refused("nul\0byte")


def test_nothing_given() -> None:
    with pytest.raises(CorpusError):
        open_corpus([])
    with pytest.raises(CorpusError):
        text_corpus("")


def test_unreadable_file(tmp_path: Path) -> None:
    path = _file(tmp_path, b"secret")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert "permission denied" in _refused(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_devices_and_pipes_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a file" in _refused(tmp_path / "pipe")
    assert "not a file" in _refused("/dev/zero")
    # In a folder they are passed by, and so are links.
    _file(tmp_path, ENGLISH.encode(), "b.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "link.txt").symlink_to(tmp_path / "b.txt")
    corpus = open_corpus([tmp_path])
    assert corpus.read() == ENGLISH
    assert corpus.files == ("b.txt",)
    assert "'pipe'" in corpus.notes[0]


def test_a_link_named_by_the_user_is_followed(tmp_path: Path) -> None:
    _file(tmp_path, ENGLISH.encode(), "b.txt")
    (tmp_path / "latest.txt").symlink_to(tmp_path / "b.txt")
    assert read_text(tmp_path / "latest.txt") == ENGLISH


@pytest.mark.parametrize("name", ["letter.docx", "book.epub", "table.xlsx", "letter.rtf"])
def test_office_documents_are_named(tmp_path: Path, name: str) -> None:
    assert "plain text" in _refused(_file(tmp_path, b"PK\x03\x04" + bytes(50), name))


# --- several sources -------------------------------------------------------------------------------------------------


def test_several_files_do_not_run_into_each_other(tmp_path: Path) -> None:
    paths = [_file(tmp_path, data, f"{i}.md") for i, data in enumerate((b"one", b"two\n", b"three"))]
    corpus = open_corpus(paths)
    assert corpus.read() == "one\ntwo\nthree"
    assert corpus.name == "0.md and 2 more"
    assert len(corpus.files) == 3


def test_folder_is_read_in_order_without_what_is_hidden_or_no_text(tmp_path: Path) -> None:
    _file(tmp_path, b"second\n", "b.txt")
    _file(tmp_path, b"first\n", "a.py")
    (tmp_path / "c").mkdir()
    _file(tmp_path / "c", b"third\n", "x.txt")
    (tmp_path / ".git").mkdir()
    _file(tmp_path / ".git", b"hidden\n", "x.txt")
    _file(tmp_path, b"hidden\n", ".hidden.txt")
    _file(tmp_path, b"", "empty.txt")
    _file(tmp_path, b"\x89PNG" + bytes(100), "picture.png")
    corpus = open_corpus([tmp_path])
    assert corpus.read() == "first\nsecond\nthird\n"
    assert corpus.files == ("a.py", "b.txt", "c/x.txt")
    assert "'picture.png'" in corpus.notes[0] and "hidden" not in corpus.notes[0]


def test_folder_without_text(tmp_path: Path) -> None:
    assert "no text file" in _refused(tmp_path)


def test_folder_with_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "MAX_MEMBERS", 3)
    for i in range(5):
        _file(tmp_path, b"x", f"{i}.txt")
    assert "more than 3 files" in _refused(tmp_path)


def test_built_in_texts_and_files_mix(tmp_path: Path) -> None:
    corpus = open_corpus(["arithmetic", _file(tmp_path, b"the end")], name="both")
    assert corpus.name == "both"
    assert corpus.read().endswith("=" + corpus.read().rsplit("=", 1)[1]) and corpus.read().endswith("the end")


def test_standard_input_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(GERMAN.encode("utf-16"))))
    corpus = open_corpus(["-"])
    assert corpus.read() == corpus.read() == GERMAN
    assert corpus.files == ("standard input",)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bytes(100))))
    assert "'standard input' is a binary file" in _refused("-")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x" * 100)))
    _refused("-", max_bytes=50)


def test_limit_in_bytes(tmp_path: Path) -> None:
    path = _file(tmp_path, b"x" * 1000)
    assert open_corpus([path], max_bytes=1000).read() == "x" * 1000
    _refused(path, max_bytes=999)
    _refused(tmp_path, max_bytes=999)
    packed = tmp_path / "x.gz"
    packed.write_bytes(gzip.compress(b"x" * 5000))
    _refused(packed, max_bytes=4999)
    with pytest.raises(CorpusError):
        open_corpus([path, path], max_bytes=1500)
    with pytest.raises(CorpusError):
        open_corpus([packed, path], max_bytes=5500)


# --- formats ---------------------------------------------------------------------------------------------------------


def test_gzip(tmp_path: Path) -> None:
    assert read_text(_file(tmp_path, gzip.compress(GERMAN.encode("utf-16")), "text.txt.gz")) == GERMAN
    damaged = gzip.compress(ENGLISH.encode() * 50)
    assert "damaged" in _refused(_file(tmp_path, damaged[:-10], "cut.gz"))
    assert "binary" in _refused(_file(tmp_path, gzip.compress(bytes(2000)), "zero.gz"))


def _zip(path: Path, members: dict[str, bytes], **options: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data, **options)
    return path


def test_zip(tmp_path: Path) -> None:
    members = {
        "b/two.txt": "zwei\n".encode("utf-16"),
        "a/one.txt": b"one",
        "../../etc/evil.txt": b"path tricks do nothing\n",
        "picture.png": b"\x89PNG" + bytes(100),
        "inner.zip": b"PK\x03\x04" + bytes(100),
        "__MACOSX/a/._one.txt": b"\0\0",
        "empty.txt": b"",
        "rows.csv": b"id,text\n1,three\n",
    }
    corpus = open_corpus([_zip(tmp_path / "all.zip", members)])
    assert corpus.read() == "path tricks do nothing\none\nzwei\nthree\n\n"
    assert "'inner.zip', 'picture.png'" in corpus.notes[0]
    assert not (tmp_path.parent / "etc").exists()


def test_zip_without_text_or_damaged(tmp_path: Path) -> None:
    assert "no text" in _refused(_zip(tmp_path / "empty.zip", {}))
    assert "not a text" in _refused(_zip(tmp_path / "nested.zip", {"inner.zip": b"PK\x03\x04"}))
    good = _zip(tmp_path / "good.zip", {"a.txt": ENGLISH.encode() * 100}).read_bytes()
    assert "damaged" in _refused(_file(tmp_path, good[:100], "cut.zip"))
    broken = bytearray(good)
    broken[60:80] = bytes(20)
    assert "damaged" in _refused(_file(tmp_path, bytes(broken), "broken.zip"))


def test_zip_with_a_password(tmp_path: Path) -> None:
    path = _zip(tmp_path / "locked.zip", {"a.txt": b"secret"})
    data = bytearray(path.read_bytes())
    # Bit 0 of the flags says encrypted, in the local header and in the directory.
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(data))
    assert "password" in _refused(path)


def test_bombs_are_refused_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = b"0" * (64 << 20)
    start = time.monotonic()
    assert "honest" in _refused(_file(tmp_path, gzip.compress(zeros, 9), "bomb.gz"))
    assert "honest" in _refused(_zip(tmp_path / "bomb.zip", {"a.txt": zeros}))
    assert "honest" in _refused(_zip(tmp_path / "many.zip", {f"{i}.txt": zeros[: 1 << 21] for i in range(20)}))
    assert time.monotonic() - start < 10
    monkeypatch.setattr(file_formats, "MAX_MEMBERS", 10)
    assert "smaller archive" in _refused(_zip(tmp_path / "files.zip", {f"{i}.txt": b"x" for i in range(11)}))
    with zipfile.ZipFile(tmp_path / "method.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.txt", b"x" * 1000)
    assert "not a text" in _refused(tmp_path / "method.zip")


def test_a_small_repetitive_archive_is_fine(tmp_path: Path) -> None:
    assert read_text(_file(tmp_path, gzip.compress(b"a" * 1_000_000), "a.txt.gz")) == "a" * 1_000_000


def test_csv(tmp_path: Path) -> None:
    data = b'id,Text,n\r\n1,"Hello, ""you""\r\nand you",2\r\n2,,3\r\n3,Bye,4\r\n4\r\n'
    corpus = open_corpus([_file(tmp_path, data, "table.csv")])
    assert corpus.read() == 'Hello, "you"\nand you\n\nBye\n\n'
    assert "'text'" in corpus.notes[0]
    assert read_text(_file(tmp_path, b"a\tcontent\n1\tHi, there\n", "table.tsv")) == "Hi, there\n\n"
    plain = open_corpus([_file(tmp_path, b"a,b\n1,2\n", "numbers.csv")])
    assert plain.read() == "a,b\n1,2\n"
    assert "no column" in plain.notes[0]


def test_jsonl(tmp_path: Path) -> None:
    records = [{"id": 1, "text": "One\r\nline"}, {"id": 2, "text": "Zwölf \ud800"}, {"id": 3}, {"text": ""}]
    lines = [json.dumps(record) for record in records]
    data = "\n".join([*lines, "not json", "[" * 100_000, ""]).encode()
    corpus = open_corpus([_file(tmp_path, data, "data.jsonl")])
    assert corpus.read() == "One\nline\n\nZwölf \ufffd\ufffd\ufffd\n\n"
    assert corpus.read() == corpus.read()
    assert any("4 lines" in note for note in corpus.notes)
    other = open_corpus([_file(tmp_path, b'{"a": "x", "b": "longer"}\n', "other.jsonl")])
    assert other.read() == "longer\n\n"
    plain = open_corpus([_file(tmp_path, b"[1, 2]\nhello\n", "plain.jsonl")])
    assert plain.read() == "[1, 2]\nhello\n"
    assert "as it is" in plain.notes[0]


def test_source_code_is_text(tmp_path: Path) -> None:
    assert read_text(_file(tmp_path, Path(__file__).read_bytes(), "code.py")) == Path(__file__).read_text()


def _pdf(text: str, password: str | None = None) -> bytes:
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    page = writer.add_blank_page(300, 300)
    if text:
        font = DictionaryObject(
            {
                NameObject("/Type"): NameObject("/Font"),
                NameObject("/Subtype"): NameObject("/Type1"),
                NameObject("/BaseFont"): NameObject("/Helvetica"),
            }
        )
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): writer._add_object(font)})}
        )
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 10 200 Td ({text}) Tj ET".encode())
        page[NameObject("/Contents")] = writer._add_object(stream)
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def test_pdf(tmp_path: Path) -> None:
    assert read_text(_file(tmp_path, _pdf("Hello from a page"), "page.pdf")) == "Hello from a page\n"
    assert "no text" in _refused(_file(tmp_path, _pdf(""), "scan.pdf"))
    assert "damaged" in _refused(_file(tmp_path, b"%PDF-1.4\n" + os.urandom(300), "broken.pdf"))
    assert "password" in _refused(_file(tmp_path, _pdf("Hello", "secret"), "locked.pdf"))


# --- streaming -------------------------------------------------------------------------------------------------------


def test_pieces_are_the_same_every_time(tmp_path: Path) -> None:
    text = ENGLISH * 30_000
    corpus = open_corpus([_file(tmp_path, text.replace("\n", "\r\n").encode("utf-16"))])
    pieces = list(corpus.chunks())
    assert pieces == list(corpus.chunks())
    assert "".join(pieces) == text
    assert {len(piece) for piece in pieces[:-1]} == {PIECE_CHARACTERS}
    assert corpus.read(10) == text[:10]
    assert corpus.read(PIECE_CHARACTERS + 1) == text[: PIECE_CHARACTERS + 1]


def test_a_large_file_streams_in_constant_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    block = (ENGLISH * 12_000).encode()
    with path.open("wb") as file:
        for _ in range(40):
            file.write(block)
    tracemalloc.start()
    corpus = open_corpus([path])
    assert sum(map(len, corpus.chunks())) == 40 * len(block)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20 < 40 * len(block)


def test_a_file_that_vanishes_is_a_sentence(tmp_path: Path) -> None:
    path = _file(tmp_path, ENGLISH.encode())
    corpus = open_corpus([path])
    path.unlink()
    with pytest.raises(CorpusError) as error:
        corpus.read()
    assert "cannot be read" in _sentence(error)


def test_lone_surrogates_become_replacement_characters() -> None:
    assert text_corpus("a\ud800b").read().encode() == "a\ufffd\ufffd\ufffdb".encode()


def test_sources_are_separated_only_where_needed() -> None:
    def source(text: str) -> TextSource:
        return TextSource(text, lambda: iter([text, ""]))

    assert Corpus("x", [source("a"), source("b\n"), source("c")]).read() == "a\nb\nc"
