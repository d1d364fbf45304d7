"""The built-in texts."""

from __future__ import annotations

import hashlib
import random
import re
import string
import time
import urllib.error
import urllib.request
from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest

from fundamentallm.data import examples, tiny_tales
from fundamentallm.data.corpus import open_corpus
from fundamentallm.data.examples import BUILT_IN, ExampleCorpus
from fundamentallm.errors import CorpusError

OFFLINE = [name for name in BUILT_IN if name != "tiny-shakespeare"]


def _whole(example: ExampleCorpus) -> str:
    text = example.load()
    return text if isinstance(text, str) else "".join(text)


@pytest.mark.parametrize("name", OFFLINE)
def test_the_same_every_time_and_long_enough(name: str) -> None:
    assert _whole(BUILT_IN[name]) == _whole(BUILT_IN[name])
    corpus = open_corpus([name])
    assert corpus.name == BUILT_IN[name].title
    assert corpus.files == (name,)
    assert 400_000 < sum(map(len, corpus.chunks())) <= 8_000_000
    assert corpus.notes == ()


def test_names() -> None:
    assert list(BUILT_IN) == ["tiny-tales", "arithmetic", "python-manual", "python-stdlib", "tiny-shakespeare"]
    assert all(name == example.name for name, example in BUILT_IN.items())
    assert all(example.description.endswith(".") for example in BUILT_IN.values())


# --- Tiny Tales ------------------------------------------------------------------------------------------------------


def test_tales_are_quick_and_plain() -> None:
    tiny_tales.tiny_tales(10_000)
    start = time.process_time()
    text = tiny_tales.tiny_tales()
    assert time.process_time() - start < 0.5
    assert 1_000_000 <= len(text) < 1_002_000
    assert set(text) == set(string.ascii_letters + " \n.,!?'\"")
    assert text.endswith(".\n") or text.endswith('"\n')


def test_tales_are_varied_and_few_in_words() -> None:
    stories = tiny_tales.tiny_tales().strip().split("\n\n")
    assert len(set(stories)) == len(stories) > 1000
    words = Counter(re.findall(r"[a-z']+", tiny_tales.tiny_tales().lower()))
    assert 400 < len(words) < 700
    # What is rare cannot be learned, so nearly all of the text is made of few words.
    assert sum(count for _, count in words.most_common(250)) > 0.9 * words.total()


def test_seeds_tell_different_tales() -> None:
    assert tiny_tales.tiny_tales(5000, seed=1) == tiny_tales.tiny_tales(5000, seed=1)
    assert tiny_tales.tiny_tales(5000, seed=1) != tiny_tales.tiny_tales(5000, seed=2)


def test_tales_are_clean_english() -> None:
    text = tiny_tales.tiny_tales(300_000, seed=7)
    assert not re.search(r"[{}\[\]|]", text)
    assert not re.search(r"\b[Aa] [aeiou]", text)
    assert not re.search(r"\b[Aa]n [^aeiouh]", text)
    assert not re.search(r"\b(\w+) \1\b(?<!\bup up)", re.sub(r"up, up, up", "", text))
    assert not re.search(r"  |\.\.| [.,!?]", text)
    for story in text.strip().split("\n\n"):
        assert story.count('"') % 2 == 0
        assert re.match(r"[A-Z]", story)


def test_a_tale_keeps_its_characters() -> None:
    names = set(tiny_tales._grammar().girls) | set(tiny_tales._grammar().boys)
    for story in tiny_tales.tiny_tales(100_000, seed=3).strip().split("\n\n"):
        assert len(names & set(re.findall(r"[A-Z][a-z]+", story))) == 2


@pytest.mark.parametrize("girl", [True, False])
def test_every_wording_can_be_filled_in(girl: bool) -> None:
    words = tiny_tales._grammar()
    shared = [beat for name, beat in vars(words).items() if name != "plots"]
    for plot in words.plots:
        beats = [beat for beat in vars(plot).values() if isinstance(beat, tuple)]
        cast = tiny_tales._cast(words, plot, random.Random(int(girl)))
        for wording in (wording for beat in shared + beats for wording in beat):
            assert wording.strip() == wording != ""
            assert wording.count("[") == wording.count("]")
            assert wording.format_map(cast)


# --- the others ------------------------------------------------------------------------------------------------------


def test_arithmetic_is_correct() -> None:
    lines = examples.arithmetic(2000, seed=5).splitlines()
    kinds: Counter[str] = Counter()
    for line in lines:
        match = re.fullmatch(r"(\d+)([+*-])(\d+)=(\d+)", line)
        assert match, line
        a, sign, b, result = int(match[1]), match[2], int(match[3]), int(match[4])
        assert {"+": a + b, "-": a - b, "*": a * b}[sign] == result
        kinds[sign] += 1
    assert kinds["+"] > kinds["-"] > kinds["*"] > 50


def test_manual_and_library_are_about_python() -> None:
    assert "assert" in _whole(BUILT_IN["python-manual"])
    source = _whole(BUILT_IN["python-stdlib"])
    assert "class JSONDecodeError" in source or "import os" in source
    assert len("".join(examples.python_stdlib(100_000))) <= 101_000


def test_a_python_without_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(examples.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(CorpusError):
        "".join(examples.python_stdlib())


class TestShakespeare:
    """Never touches the network."""

    PLAY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n"

    @pytest.fixture(autouse=True)
    def _known(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(examples, "SHAKESPEARE_SHA256", hashlib.sha256(self.PLAY).hexdigest())
        monkeypatch.setenv("FUNDAMENTALLM_CACHE", str(tmp_path / "cache"))
        self.cached = tmp_path / "cache" / "tiny-shakespeare.txt"

    def _serve(self, monkeypatch: pytest.MonkeyPatch, data: bytes | None) -> list[str]:
        asked = []

        def urlopen(url: str, timeout: float) -> BytesIO:
            asked.append(url)
            if data is None:
                raise urllib.error.URLError("no network")
            return BytesIO(data)

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        return asked

    def test_downloaded_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = self._serve(monkeypatch, self.PLAY)
        assert examples.tiny_shakespeare() == examples.tiny_shakespeare() == self.PLAY.decode()
        assert asked == [examples.SHAKESPEARE_URL]
        assert list(self.cached.parent.iterdir()) == [self.cached]

    def test_offline_says_where_to_put_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._serve(monkeypatch, None)
        with pytest.raises(CorpusError) as error:
            open_corpus(["tiny-shakespeare"])
        assert str(self.cached) in str(error.value) and examples.SHAKESPEARE_URL in str(error.value)
        self.cached.parent.mkdir(parents=True)
        self.cached.write_bytes(self.PLAY)
        assert open_corpus(["tiny-shakespeare"]).read() == self.PLAY.decode()

    def test_another_text_is_refused_and_not_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._serve(monkeypatch, b"<html>captive portal</html>")
        with pytest.raises(CorpusError) as error:
            examples.tiny_shakespeare()
        assert "SHA-256" in str(error.value)
        assert not self.cached.exists()

    def test_a_damaged_copy_is_fetched_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cached.parent.mkdir(parents=True)
        self.cached.write_bytes(self.PLAY[:10])
        self._serve(monkeypatch, self.PLAY)
        assert examples.tiny_shakespeare() == self.PLAY.decode()
        assert self.cached.read_bytes() == self.PLAY

    def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("FUNDAMENTALLM_CACHE", str(tmp_path / "file"))
        self._serve(monkeypatch, self.PLAY)
        assert examples.tiny_shakespeare() == self.PLAY.decode()


def test_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUNDAMENTALLM_CACHE", raising=False)
    monkeypatch.setattr(examples.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert examples.cache_directory() == Path("/somewhere/fundamentallm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert examples.cache_directory() == Path.home() / ".cache" / "fundamentallm"
    monkeypatch.setattr(examples.sys, "platform", "darwin")
    assert examples.cache_directory().parent == Path.home() / "Library" / "Caches"
    monkeypatch.setattr(examples.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert examples.cache_directory() == Path("/local/fundamentallm")
