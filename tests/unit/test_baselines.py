import math
import random
import time
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fundamentallm.errors import CorpusError
from fundamentallm.evaluation.baselines import MAX_COMPRESSED_BYTES, NGram, ladder
from fundamentallm.evaluation.memorization import copied_spans

VOCAB = 6
token_lists = st.lists(st.integers(0, VOCAB - 1), max_size=60)


@given(train=token_lists, context=st.lists(st.integers(0, VOCAB - 1), max_size=3), order=st.integers(1, 4))
@settings(deadline=None)
def test_probabilities_sum_to_one_in_every_context(train, context, order):
    model = NGram(np.array(train, np.uint16), VOCAB, order)
    each = [model.probabilities(np.array([token]), np.array(context, np.int64))[0] for token in range(VOCAB)]
    assert min(each) > 0
    assert sum(each) == pytest.approx(1)


def kneser_ney(train, vocab_size, context, token, order, level=None):
    """The formula of the class's docstring, written with dictionaries."""
    level = order if level is None else level
    if level == 0:
        return 1 / vocab_size
    grams = Counter(tuple(train[i : i + order]) for i in range(len(train) - order + 1))
    for _ in range(order - level):  # continuation counts
        grams = Counter(gram[1:] for gram in grams)
    below = kneser_ney(train, vocab_size, context[1:] if level > 1 else (), token, order, level - 1)
    once, twice = (sum(count == n for count in grams.values()) for n in (1, 2))
    discount = (once + 0.5) / (once + 2 * twice + 1)
    followers = {gram[-1]: count for gram, count in grams.items() if gram[:-1] == tuple(context)}
    total = sum(followers.values())
    if not total:
        return below
    return max(followers.get(token, 0) - discount, 0) / total + discount * len(followers) / total * below


@given(
    train=st.lists(st.integers(0, 3), min_size=3, max_size=40), text=st.lists(st.integers(0, 3), min_size=1, max_size=8)
)
@settings(deadline=None)
def test_trigram_equals_the_formula(train, text):
    previous = [1, 2]
    got = NGram(np.array(train), 4, 3).probabilities(np.array(text), np.array(previous))
    whole = previous + text
    wanted = [kneser_ney(train, 4, whole[i : i + 2], token, 3) for i, token in enumerate(text)]
    np.testing.assert_allclose(got, wanted)


def test_the_first_tokens_use_the_context_there_is():
    train = np.array([0, 1, 2] * 50)
    model = NGram(train, 3, 3)
    whole = model.probabilities(np.array([0, 1, 2, 0]))
    assert whole[3] > 0.9
    assert whole[0] == pytest.approx(1 / 3, abs=0.05)
    assert model.probabilities(np.array([0, 1]), np.array([1, 2]))[0] > 0.9


def test_ladder_descends_and_reports_bits():
    text = "the cat sat on the mat and the rat sat on the hat. " * 200
    alphabet = sorted(set(text))
    ids = np.array([alphabet.index(c) for c in text], np.uint16)
    rungs = {rung.name: rung for rung in ladder(ids[:9000], ids[9000:], len(alphabet), text[9000:])}
    assert list(rungs) == ["uniform", "unigram", "bigram", "trigram", "zlib", "bz2", "xz"]
    losses = [rungs[name].loss for name in ("uniform", "unigram", "bigram", "trigram")]
    assert losses == sorted(losses, reverse=True)
    assert rungs["uniform"].loss == pytest.approx(math.log(len(alphabet)))
    assert rungs["uniform"].bits_per_byte == pytest.approx(math.log2(len(alphabet)))
    assert rungs["trigram"].train_tokens == 9000
    compressed = len(zlib.compress(text[9000:].encode(), 9)) - 6  # the zlib header and checksum
    assert rungs["zlib"].bits_per_byte == pytest.approx(8 * compressed / len(text[9000:]))
    assert rungs["xz"].loss is None
    assert rungs["xz"].as_dict()["name"] == "xz"


def test_ladder_counts_bytes_and_characters_separately():
    text = "größe" * 40
    alphabet = sorted(set(text))
    ids = np.array([alphabet.index(c) for c in text])
    for rung in ladder(ids, ids, len(alphabet), text):
        assert rung.bits_per_character / rung.bits_per_byte == pytest.approx(7 / 5)


def test_ladder_caps_what_it_counts_and_compresses(monkeypatch):
    monkeypatch.setattr("fundamentallm.evaluation.baselines.MAX_TRAIN_TOKENS", 1000)
    monkeypatch.setattr("fundamentallm.evaluation.baselines.MAX_COMPRESSED_BYTES", 501)
    ids = np.zeros(5000, np.uint16)
    shares = []
    rungs = ladder(ids, ids[:1000], 3, "é" * 1000, progress=shares.append)
    assert rungs[1].train_tokens == 1000
    assert [rung.measured_bytes for rung in rungs] == [2000] * 4 + [501] * 3
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_empty_text_is_one_sentence():
    with pytest.raises(CorpusError, match="empty"):
        ladder(np.zeros(3), np.zeros(0), 3, "")


def test_too_large_a_vocabulary_is_refused():
    with pytest.raises(CorpusError, match="vocab_size"):
        NGram(np.zeros(3, np.uint32), 1 << 21, 3)


def test_large_vocabulary_takes_memory_by_tokens_not_by_vocabulary():
    generator = np.random.default_rng(1)
    tokens = generator.zipf(1.3, 50_000) % 50_000
    started = time.perf_counter()
    loss = NGram(tokens[:45_000], 50_000, 3).loss(tokens[45_000:])
    assert loss < math.log(50_000)
    assert time.perf_counter() - started < 2
    assert MAX_COMPRESSED_BYTES >= 1_000_000


def test_copied_spans_are_found_with_their_place():
    generator = random.Random(3)
    corpus = "".join(generator.choice("abcdefgh \n") for _ in range(1_050_000))
    text = (
        corpus[5000:5600] + "§§" + corpus[1_048_560:1_048_700] + "".join(generator.choice("xyz") for _ in range(1200))
    )
    started = time.perf_counter()
    spans = copied_spans(text, corpus)
    assert time.perf_counter() - started < 1.5  # 0.1 s alone on a core
    assert [(span.start, span.end, span.corpus_position) for span in spans] == [
        (0, 600, 5000),
        (602, 742, 1_048_560),
    ]
    assert spans[0].length == 600


@given(
    text=st.text("ab", max_size=30),
    corpus=st.text("ab", max_size=60),
    min_length=st.integers(1, 8),
)
def test_copied_spans_equal_the_slow_way(text, corpus, min_length):
    wanted, start = [], 0
    while start < len(text):
        length = 0
        while start + length < len(text) and text[start : start + length + 1] in corpus:
            length += 1
        if length >= min_length:
            wanted.append((start, start + length, corpus.find(text[start : start + length])))
            start += length
        else:
            start += 1
    got = copied_spans(text, corpus, min_length)
    assert [(span.start, span.end, span.corpus_position) for span in got] == wanted


def test_copied_spans_take_any_text():
    assert copied_spans("", "abc", 1) == []
    assert copied_spans("abc", "", 1) == []
    assert copied_spans("\ud800x\0", "..\ud800x\0", 2)[0].corpus_position == 2
    with pytest.raises(ValueError, match="min_length"):
        copied_spans("a", "a", 0)
