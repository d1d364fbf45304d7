"""Batches, token store, preparation of a corpus, statistics."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fundamentallm.config import DataConfig
from fundamentallm.data import statistics
from fundamentallm.data.batches import BatchOrder, TokenWindows
from fundamentallm.data.corpus import Corpus, text_corpus
from fundamentallm.data.file_formats import TextSource
from fundamentallm.data.statistics import describe, needed_characters
from fundamentallm.data.token_store import PreparedData, TokenStore, TokenWriter, measure, open_prepared, prepare
from fundamentallm.data.tokenizers import CharacterTokenizer
from fundamentallm.errors import CheckpointError, CorpusError

STORY = "".join(f"{i} mice went out, and {i * i} came home — näive ones, too.\n" for i in range(300))

shapes = st.tuples(st.integers(1, 12), st.integers(0, 120)).map(lambda pair: (pair[0], pair[0] + 1 + pair[1]))
seeds = st.integers(0, 2**31)


# --- batches ---------------------------------------------------------------------------------------------------------


@given(shapes, st.integers(1, 9), seeds, st.integers(0, 1000))
def test_windows_stay_within_the_tokens(shape: tuple[int, int], batch: int, seed: int, step: int) -> None:
    length, tokens = shape
    starts = BatchOrder(tokens, length, batch, seed).starts(step)
    assert starts.shape == (batch,)
    assert starts.min() >= 0
    assert starts.max() + length + 1 <= tokens


@given(shapes, st.integers(1, 9), seeds, st.integers(0, 5))
def test_an_epoch_visits_every_window_once(shape: tuple[int, int], batch: int, seed: int, epoch: int) -> None:
    length, tokens = shape
    order = BatchOrder(tokens, length, batch, seed)
    windows = order.windows_per_epoch
    first = epoch * windows // batch
    dealt = np.concatenate([order.starts(step) for step in range(first, ((epoch + 1) * windows - 1) // batch + 1)])
    dealt = np.sort(dealt[epoch * windows - first * batch :][:windows])
    # T apart, so they neither overlap in their targets nor leave a gap.
    np.testing.assert_array_equal(np.diff(dealt), np.full(windows - 1, length))
    assert dealt[0] < length
    # Fewer than two windows of tokens are left out at the ends.
    assert windows * length >= tokens - 2 * length


@given(shapes, st.integers(1, 9), seeds, st.lists(st.integers(0, 60), min_size=1, max_size=20))
def test_position_depends_on_seed_and_step_alone(
    shape: tuple[int, int], batch: int, seed: int, steps: list[int]
) -> None:
    length, tokens = shape
    wandering = BatchOrder(tokens, length, batch, seed)
    for step in steps:
        fresh = BatchOrder(tokens, length, batch, seed)
        np.testing.assert_array_equal(wandering.starts(step), fresh.starts(step))


@given(shapes, st.integers(1, 4), st.integers(1, 4), seeds, st.integers(0, 100))
def test_processes_together_see_the_batch_of_one(
    shape: tuple[int, int], share: int, processes: int, seed: int, step: int
) -> None:
    length, tokens = shape
    batch = share * processes
    whole = BatchOrder(tokens, length, batch, seed).starts(step)
    parts = [BatchOrder(tokens, length, batch, seed, rank, processes).starts(step) for rank in range(processes)]
    assert {len(part) for part in parts} == {share}
    np.testing.assert_array_equal(np.stack(parts, axis=1).ravel(), whole)


def test_epochs_and_seeds_differ() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        order = BatchOrder(2001, 20, 10, seed)
        steps = int(order.batches_per_epoch) + 1
        return np.concatenate([order.starts(number * steps + i) for i in range(steps)]).tolist()

    assert len({tuple(epoch(seed, number)) for seed in (1, 2) for number in (0, 1)}) == 4


def test_the_phase_shows_every_alignment() -> None:
    order = BatchOrder(200, 10, 1, seed=3)
    phases = {
        int(order.starts(step)[0]) % 10 for step in range(0, 60 * order.windows_per_epoch, order.windows_per_epoch)
    }
    assert phases == set(range(10))


def test_many_epochs_in_one_batch_keep_little_in_memory() -> None:
    order = BatchOrder(11, 10, 64, seed=1)
    assert order.starts(3).tolist() == [0] * 64
    assert order.batches_per_epoch == 1 / 64
    assert len(order._epochs) <= 2


def test_an_epoch_is_one_permutation_and_costs_four_bytes_a_window() -> None:
    order = BatchOrder(64_000_000, 64, 16, seed=5)
    tracemalloc.start()
    found = np.concatenate([order.starts(step) for step in range(100)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert order.windows_per_epoch == 999_999 and peak < 4.2e6
    generator = np.random.default_rng([5, 0])
    phase = generator.integers(64)
    assert (found == generator.permutation(999_999)[:1600] * 64 + phase).all()


def test_impossible_orders() -> None:
    with pytest.raises(ValueError):
        BatchOrder(10, 10, 1, seed=1)
    with pytest.raises(ValueError):
        BatchOrder(100, 10, 3, seed=1, world_size=2)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much of a file is mapped")
def test_windows_of_a_large_file_do_not_stay_in_memory(tmp_path: Path) -> None:
    count = 100_000_000
    with TokenWriter(tmp_path / "train.bin", np.uint16) as writer:
        writer._file.truncate(writer._header_size + 2 * count)  # a hole: zeros that take no room
        writer.length = count
    windows = TokenWindows(TokenStore.open(tmp_path / "train.bin"), 64)
    process, random = psutil.Process(), np.random.default_rng(0)
    before = process.memory_info().shared
    for _ in range(300):
        assert not windows.__getitems__(random.integers(len(windows), size=16))[0].any()
    # 4,800 windows on pages of their own: 19 MB at least if they stayed.
    assert process.memory_info().shared - before < 5e6


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_windows_are_shifted_by_one(dtype: type[np.unsignedinteger[Any]]) -> None:
    tokens = np.arange(50, dtype=dtype) * 7 % 50
    windows = TokenWindows(tokens, 8)
    assert len(windows) == 42
    inputs, targets = windows.__getitems__([0, 41, 5])
    assert inputs.shape == targets.shape == (3, 8)
    assert inputs.dtype == targets.dtype == torch.int64
    for row, start in enumerate([0, 41, 5]):
        assert inputs[row].tolist() == tokens[start : start + 8].tolist()
        assert targets[row].tolist() == tokens[start + 1 : start + 9].tolist()
    single = windows[5]
    assert torch.equal(single[0], inputs[2]) and torch.equal(single[1], targets[2])


def test_a_data_loader_takes_whole_batches() -> None:
    order = BatchOrder(500, 8, 4, seed=1)
    batches = [order.starts(step).tolist() for step in range(3)]
    loader = torch.utils.data.DataLoader(
        TokenWindows(np.arange(500, dtype=np.uint16), 8), batch_sampler=batches, collate_fn=lambda batch: batch
    )
    for starts, (inputs, targets) in zip(batches, loader, strict=True):
        assert inputs[:, 0].tolist() == starts
        assert torch.equal(inputs + 1, targets)


# --- token store -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_written_in_pieces_and_mapped(tmp_path: Path, dtype: type[np.unsignedinteger[Any]]) -> None:
    pieces = [np.arange(n, dtype=np.uint32) for n in (3, 0, 1000)]
    with TokenWriter(tmp_path / "a.bin", dtype) as writer:
        for piece in pieces:
            writer.write(piece)
        assert not (tmp_path / "a.bin").exists()
    store = TokenStore.open(tmp_path / "a.bin")
    assert isinstance(store.tokens, np.memmap)
    assert store.tokens.dtype == dtype
    assert len(store) == 1003
    np.testing.assert_array_equal(store.tokens, np.concatenate(pieces))
    with pytest.raises(ValueError):
        store.tokens[0] = 1


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), TokenWriter(tmp_path / "a.bin", np.uint16) as writer:
        writer.write(np.arange(3, dtype=np.uint16))
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"hello", None, "cut", "floats"])
def test_damaged_stores_are_a_sentence(tmp_path: Path, data: bytes | str | None) -> None:
    path = tmp_path / "a.bin"
    if data == "cut":
        with TokenWriter(path, np.uint16) as writer:
            writer.write(np.arange(100, dtype=np.uint16))
        path.write_bytes(path.read_bytes()[:-1])
    elif data == "floats":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif isinstance(data, bytes):
        path.write_bytes(data)
    with pytest.raises(CorpusError):
        TokenStore.open(path)


# --- preparation -----------------------------------------------------------------------------------------------------


def _check_prepared(data: PreparedData, text: str) -> None:
    split = data.train_characters
    assert data.tokenizer.decode(data.train.tokens) == text[:split]
    assert data.tokenizer.decode(data.validation.tokens) == data.validation_text() == text[split:]
    assert data.validation_characters == len(text) - split
    assert data.validation_bytes == len(text[split:].encode())
    assert data.corpus.characters == len(text)
    assert data.corpus.bytes == len(text.encode())


@pytest.mark.parametrize("kind", ["character", "bpe"])
@pytest.mark.parametrize("split", [0.5, 0.9])
def test_prepared_and_opened_again(tmp_path: Path, kind: str, split: float) -> None:
    told: list[float] = []
    config = DataConfig(tokenizer=kind, vocab_size=300, train_split=split)
    data = prepare(
        text_corpus(STORY, "story"), config, tmp_path, sequence_length=16, progress=lambda _, done: told.append(done)
    )
    _check_prepared(data, STORY)
    assert data.train_characters == int(len(STORY) * split)
    assert told == sorted(told) and told[0] == 0 and told[-1] == 1
    again = open_prepared(tmp_path)
    _check_prepared(again, STORY)
    assert again.corpus == data.corpus
    assert again.tokenizer.to_json() == data.tokenizer.to_json()
    assert again.train.tokens.dtype == np.uint16
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {
        "corpus.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokens/train.bin",
        "tokens/val.bin",
        "tokens/validation.txt",
    }


def test_the_vocabulary_comes_from_the_training_part_alone(tmp_path: Path) -> None:
    text = "abc" * 300 + "xyz" * 100
    data = prepare(text_corpus(text), DataConfig(train_split=0.75), tmp_path, sequence_length=8)
    assert isinstance(data.tokenizer, CharacterTokenizer)
    assert data.tokenizer.characters == "abc"
    assert set(data.validation.tokens.tolist()) == {data.tokenizer.unk_id}
    assert data.validation_text() == "xyz" * 100


def test_a_given_tokenizer_is_used(tmp_path: Path) -> None:
    tokenizer = CharacterTokenizer("".join(sorted(set(STORY) | {"€"})))
    data = prepare(text_corpus(STORY), DataConfig(), tmp_path, sequence_length=8, tokenizer=tokenizer)
    assert data.tokenizer.vocab_size == tokenizer.vocab_size
    _check_prepared(data, STORY)


def test_large_vocabularies_need_four_bytes(tmp_path: Path) -> None:
    tokenizer = CharacterTokenizer("".join(map(chr, range(0x10000, 0x10000 + 70_000))))
    text = chr(0x10000 + 69_999) * 1000
    data = prepare(text_corpus(text), DataConfig(), tmp_path, sequence_length=8, tokenizer=tokenizer)
    assert data.train.tokens.dtype == np.uint32
    _check_prepared(data, text)


def test_preparing_again_replaces(tmp_path: Path) -> None:
    prepare(text_corpus(STORY), DataConfig(), tmp_path, sequence_length=8)
    other = STORY[: len(STORY) // 2].upper()
    _check_prepared(prepare(text_corpus(other), DataConfig(), tmp_path, sequence_length=8), other)


@pytest.mark.parametrize("text", ["twelve chars", "a", STORY[:100]])
@pytest.mark.parametrize("kind", ["character", "bpe"])
def test_too_short_a_text_is_one_sentence(tmp_path: Path, text: str, kind: str) -> None:
    with pytest.raises(CorpusError) as error:
        prepare(text_corpus(text), DataConfig(tokenizer=kind), tmp_path / "run", sequence_length=64)
    sentence = str(error.value)
    assert f"{len(text)} characters" in sentence and "longer text or a smaller sequence_length" in sentence
    assert "\n" not in sentence
    assert [path for path in tmp_path.rglob("*.bin")] == []


@given(st.integers(2, 40), st.sampled_from([0.1, 0.5, 0.8, 0.9, 0.99]))
def test_the_needed_length_is_exact(length: int, split: float) -> None:
    needed = needed_characters(length, split)

    def smaller_part(characters: int) -> int:
        return min(int(characters * split), characters - int(characters * split))

    assert smaller_part(needed) >= length + 1
    assert smaller_part(needed - 1) < length + 1


def test_the_shortest_text_works(tmp_path: Path) -> None:
    needed = needed_characters(16, 0.9)
    data = prepare(text_corpus(STORY[:needed]), DataConfig(), tmp_path, sequence_length=16)
    assert len(data.validation) >= 17
    with pytest.raises(CorpusError):
        prepare(text_corpus(STORY[: needed - 1]), DataConfig(), tmp_path, sequence_length=16)


def test_bpe_that_leaves_too_few_tokens(tmp_path: Path) -> None:
    text = "the same words " * 200
    with pytest.raises(CorpusError) as error:
        prepare(text_corpus(text), DataConfig(tokenizer="bpe", vocab_size=400), tmp_path, sequence_length=128)
    assert "needs at least" in str(error.value)


def test_one_character_again_and_again_can_be_prepared(tmp_path: Path) -> None:
    _check_prepared(prepare(text_corpus("a" * 5000), DataConfig(), tmp_path, sequence_length=8), "a" * 5000)


@pytest.mark.parametrize("code, word", [(errno.ENOSPC, "disk is full"), (errno.EACCES, "permission denied")])
def test_a_full_disk_is_a_sentence_and_leaves_no_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, word: str
) -> None:
    def write(self: TokenWriter, ids: npt.NDArray[Any]) -> None:
        raise OSError(code, {errno.ENOSPC: "No space left on device", errno.EACCES: "Permission denied"}[code])

    monkeypatch.setattr(TokenWriter, "write", write)
    with pytest.raises(CorpusError) as error:
        prepare(text_corpus(STORY), DataConfig(), tmp_path, sequence_length=8)
    assert word in str(error.value)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CorpusError):
        prepare(text_corpus(STORY), DataConfig(), tmp_path / "file" / "run", sequence_length=8)


@pytest.mark.parametrize("name", ["corpus.json", "tokenizer.json", "tokens/train.bin", "tokens/val.bin"])
@pytest.mark.parametrize("damage", ["missing", "cut", "foreign"])
def test_damaged_folders_are_a_sentence(tmp_path: Path, name: str, damage: str) -> None:
    prepare(text_corpus(STORY), DataConfig(), tmp_path, sequence_length=8)
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:20])
    else:
        path.write_text("[1, 2]")
    with pytest.raises((CorpusError, CheckpointError)) as error:
        open_prepared(tmp_path)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_stream_larger_than_memory_would_be(tmp_path: Path) -> None:
    block = STORY * 30

    def read() -> Iterator[str]:
        return (block for _ in range(80))

    corpus = Corpus("long", [TextSource("long", read)])
    tracemalloc.start()
    data = prepare(corpus, DataConfig(), tmp_path, sequence_length=8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert data.corpus.characters == 80 * len(block)
    assert len(data.train) + len(data.validation) == 80 * len(block)
    # Tables of code points and a few pieces; the text itself is several times larger.
    assert peak < 60e6 < 80 * len(block) * 1.5


def test_fingerprint_is_that_of_the_text(tmp_path: Path) -> None:
    import hashlib

    info = measure(text_corpus(STORY.replace("\n", "\r\n")))
    assert info.sha256 == hashlib.sha256(STORY.encode()).hexdigest()


def test_description_is_plain_json(tmp_path: Path) -> None:
    prepare(text_corpus(STORY, "my <b>text</b>"), DataConfig(), tmp_path, sequence_length=8)
    description = json.loads((tmp_path / "corpus.json").read_text(encoding="utf-8"))
    assert description["name"] == "my <b>text</b>"
    assert description["characters"] == len(STORY)


# --- statistics ------------------------------------------------------------------------------------------------------


@given(st.text(alphabet=st.sampled_from("ab \n\té😀"), min_size=1), st.integers(1, 20))
def test_counts(text: str, size: int) -> None:
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    corpus = Corpus("pieces", [])
    corpus.chunks = lambda: iter(pieces)  # type: ignore[method-assign]
    found = describe(corpus)
    assert found.characters == len(text)
    assert found.bytes == len(text.encode())
    assert found.words == len(text.split())
    assert found.lines == len(text.split("\n")) - text.endswith("\n")
    assert dict(found.alphabet) == {character: text.count(character) for character in set(text)}
    assert found.train_characters + found.validation_characters == len(text)
    assert found.preview == text
    assert found.complete
    assert json.loads(json.dumps(found.as_dict()))["characters"] == len(text)


@pytest.mark.parametrize(
    "text, length, word",
    [
        ("short", 64, "longer text or a smaller sequence_length"),
        (STORY[:4000], 64, "by heart"),
        ("a" * 10_000, None, "one character"),
        ("the same line\n" * 1000, None, "one line again and again"),
        ("the same line\n" * 1000 + "another\n", None, "One line makes up"),
        ("".join(map(chr, range(0x4E00, 0x5400))), None, "bpe"),
    ],
)
def test_warnings(text: str, length: int | None, word: str) -> None:
    warnings = describe(text_corpus(text), sequence_length=length).warnings
    assert any(word in warning for warning in warnings), warnings
    assert all("\n" not in warning for warning in warnings)


def test_nothing_to_warn_of() -> None:
    assert describe(text_corpus(STORY * 5), sequence_length=64).warnings == ()
    assert describe(text_corpus("".join(map(chr, range(0x4E00, 0x5400)))), DataConfig(tokenizer="bpe")).warnings == ()


def test_notes_of_the_corpus_are_among_the_warnings() -> None:
    source = TextSource(
        "x", lambda: iter([STORY]), notes=["'x' is not UTF-8; it was read as cp1252, which is a guess."]
    )
    assert describe(Corpus("x", [source])).warnings == tuple(source.notes)


def test_a_very_long_text_is_judged_by_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "EXAMINED_CHARACTERS", 2_000_000)
    found = describe(text_corpus(STORY * 400))
    assert not found.complete
    assert 2_000_000 <= found.characters < 4_000_000
    assert "first" in found.warnings[-1]


# --- what is imported ------------------------------------------------------------------------------------------------


def test_only_batches_need_torch() -> None:
    heavy = ("torch", "gradio", "plotly", "click", "pypdf", "charset_normalizer", "tokenizers", "transformers")
    imports = "import sys, fundamentallm.data.token_store, fundamentallm.data.statistics"
    program = f"{imports}; print([m for m in {heavy!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
