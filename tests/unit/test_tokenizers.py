"""Tokenizers: lossless, the same as what transformers makes of the saved folder, and blind to typed special tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fundamentallm import registry
from fundamentallm.config import DataConfig
from fundamentallm.data.tokenizers import (
    SPECIAL_TOKENS,
    BaseTokenizer,
    BPETokenizer,
    CharacterTokenizer,
    load_tokenizer,
    stream_decoder,
    tokenizer_from_json,
    train_tokenizer,
)
from fundamentallm.errors import CheckpointError, ConfigError

TEXT = (
    "Once upon a time, there was a mouse. It said: “Hello, naïve world!” 😀 1234567890\n"
    "  Two  blanks,\ttabs\u00a0and\u2003odd ones;\n\n\nTypes like <b> and <BO were there too. Don't they'll we've?\n"
    "吾輩は猫である。Съешь ещё этих мягких булок. e\u0301 \U0001f468\u200d\U0001f469\u200d\U0001f467\n"
) * 20

characters = CharacterTokenizer.train([TEXT], DataConfig())
bpe = BPETokenizer.train([TEXT], DataConfig(tokenizer="bpe", vocab_size=420))
BOTH = pytest.mark.parametrize("tokenizer", [characters, bpe], ids=["character", "bpe"])

# Text as people write it, and text as nobody does.
any_text = st.one_of(
    st.text(),
    st.text(alphabet=sorted(set(TEXT))),
    st.lists(st.sampled_from([" ", "\n", "the", "'s", "\u00a0", "\x1c", "\x85", "1", "é", "😀", "<BOS>", "  "])).map(
        "".join
    ),
)
known_text = st.text(alphabet=sorted(set(TEXT)))


@pytest.fixture(scope="module")
def transformers_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    loaded = {}
    for tokenizer in (characters, bpe):
        folder = tmp_path_factory.mktemp(tokenizer.name)
        tokenizer.save(folder)
        loaded[tokenizer.name] = transformers.AutoTokenizer.from_pretrained(folder)
    return loaded


# --- lossless --------------------------------------------------------------------------------------------------------


@given(known_text)
def test_characters_come_back(text: str) -> None:
    ids = characters.encode(text)
    assert ids.dtype == np.uint32 and ids.shape == (len(text),)
    assert characters.decode(ids) == text
    assert characters.decode(ids.tolist()) == text


@given(any_text)
def test_bpe_brings_back_any_text(text: str) -> None:
    ids = bpe.encode(text)
    assert ids.dtype == np.uint32
    assert bpe.decode(ids) == text
    assert bpe.unknown_characters(text) == []


@given(any_text)
def test_unknown_characters_are_named_and_replaced(text: str) -> None:
    unknown = characters.unknown_characters(text)
    assert unknown == list(dict.fromkeys(character for character in text if character not in characters.characters))
    ids = characters.encode(text)
    assert (ids == characters.unk_id).sum() == sum(character in unknown for character in text)
    assert characters.decode(ids) == "".join(character for character in text if character not in unknown)


@BOTH
def test_lone_surrogates_do_no_harm(tokenizer: BaseTokenizer) -> None:
    text = "a\ud800b\udfff"
    assert tokenizer.unknown_characters(text) == ["\ud800", "\udfff"]
    assert tokenizer.decode(tokenizer.encode(text)).replace("\ufffd", "") == "ab"
    trained = type(tokenizer).train([text * 10], DataConfig(vocab_size=300))
    assert json.loads(trained.to_json())
    assert "\ud800" not in trained.to_json()


@BOTH
def test_vocabulary_begins_with_the_special_tokens(tokenizer: BaseTokenizer) -> None:
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    assert [tokenizer.token_text(i) for i in range(4)] == list(SPECIAL_TOKENS)
    assert tokenizer.decode([0, 1, 2, 3]) == ""


@BOTH
@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, "a", " "])).map("".join))
def test_typed_special_tokens_stay_text(tokenizer: BaseTokenizer, text: str) -> None:
    trained = type(tokenizer).train([TEXT + "".join(SPECIAL_TOKENS)], DataConfig(vocab_size=300))
    ids = trained.encode(text)
    assert ids.min(initial=4) >= 4
    assert trained.decode(ids) == text


@BOTH
@given(st.lists(st.integers(0, 10_000)))
def test_any_tokens_decode(tokenizer: BaseTokenizer, numbers: list[int]) -> None:
    ids = [number % tokenizer.vocab_size for number in numbers]
    text = tokenizer.decode(ids)
    assert text == tokenizer.decode(np.array(ids, np.uint16))
    decode = stream_decoder(tokenizer)
    assert "".join(map(decode, ids)) + decode.finish() == text


@given(known_text)
def test_a_stream_shows_only_complete_characters(text: str) -> None:
    decode = stream_decoder(bpe)
    pieces = [decode(int(token)) for token in bpe.encode(text)]
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert decode.finish() == ""


# --- long texts ------------------------------------------------------------------------------------------------------


@BOTH
@given(any_text, st.integers(1, 40))
def test_pieces_give_the_same_tokens_as_the_whole(tokenizer: BaseTokenizer, text: str, size: int) -> None:
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    ids = [np.empty(0, np.uint32), *tokenizer.encode_chunks(pieces)]
    np.testing.assert_array_equal(np.concatenate(ids), tokenizer.encode(text))


@given(any_text)
def test_bpe_by_words_equals_the_library(text: str) -> None:
    assert bpe.encode(text).tolist() == bpe._backend.encode(text, add_special_tokens=False).ids


def test_a_text_that_is_one_endless_word() -> None:
    text = "a" * 300_000
    tokenizer = BPETokenizer.train([text], DataConfig(vocab_size=300))
    ids = np.concatenate(list(tokenizer.encode_chunks(text[i : i + 7000] for i in range(0, len(text), 7000))))
    assert len(ids) < len(text) / 8
    assert tokenizer.decode(ids) == text


def test_bpe_learns_from_a_bounded_part_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BPETokenizer, "training_characters", 1000)
    endless = (("abc " * 50) for _ in iter(int, 1))
    assert BPETokenizer.train(endless, DataConfig(vocab_size=300)).vocab_size < 300


def test_what_bpe_learns_does_not_depend_on_how_the_trainer_is_fed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = BPETokenizer.train([TEXT], DataConfig(vocab_size=400)).document()
    monkeypatch.setattr("fundamentallm.data.byte_pair_encoding._TRAINING_PIECE", 40)
    assert BPETokenizer.train([TEXT], DataConfig(vocab_size=400)).document() == whole


# --- training --------------------------------------------------------------------------------------------------------


@given(st.text(), st.integers(1, 5), st.integers(1, 7))
def test_alphabet_is_what_is_frequent_enough(text: str, minimum: int, size: int) -> None:
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    trained = CharacterTokenizer.train(pieces, DataConfig(min_frequency=minimum))
    expected = sorted(character for character in set(text) if text.count(character) >= minimum)
    assert trained.characters == "".join(expected)
    assert trained.vocab_size == 4 + len(expected)


def test_bpe_reaches_its_vocabulary_and_shortens_the_text() -> None:
    assert bpe.vocab_size == 420
    assert len(bpe.encode(TEXT)) < 0.6 * len(TEXT.encode())


def test_training_by_name() -> None:
    assert isinstance(train_tokenizer(["abc"], DataConfig(tokenizer="character")), CharacterTokenizer)
    with pytest.raises(ConfigError):
        train_tokenizer(["abc"], DataConfig(tokenizer="word"))


# --- display ---------------------------------------------------------------------------------------------------------


def test_every_token_is_visible() -> None:
    shown = {character: characters.token_text(int(characters.encode(character)[0])) for character in set(TEXT)}
    assert shown["a"] == "a" and shown["😀"] == "😀"
    assert shown[" "] == "·" and shown["\n"] == "↵" and shown["\t"] == "⇥" and shown["\u00a0"] == "U+00A0"
    for tokenizer in (characters, bpe):
        assert all(tokenizer.token_text(token).strip() for token in range(tokenizer.vocab_size))
    shown_by_bpe = {bpe.token_text(token) for token in range(bpe.vocab_size)}
    assert {"e", "·", "·w", "\ufffd"} <= shown_by_bpe


# --- transformers ----------------------------------------------------------------------------------------------------


@BOTH
@given(text=any_text)
def test_transformers_encodes_the_same(
    tokenizer: BaseTokenizer, transformers_tokenizer: dict[str, Any], text: str
) -> None:
    for special in SPECIAL_TOKENS:  # which it recognises when they are typed, and we do not
        text = text.replace(special, "")
    theirs = transformers_tokenizer[tokenizer.name]
    assert theirs.encode(text) == tokenizer.encode(text).tolist()
    assert theirs.decode(theirs.encode(text), skip_special_tokens=True) == tokenizer.decode(tokenizer.encode(text))


@BOTH
@given(st.lists(st.integers(0, 10_000)))
def test_transformers_decodes_the_same(
    tokenizer: BaseTokenizer, transformers_tokenizer: dict[str, Any], numbers: list[int]
) -> None:
    ids = [number % tokenizer.vocab_size for number in numbers]
    theirs = transformers_tokenizer[tokenizer.name].decode(ids, skip_special_tokens=True)
    assert theirs == tokenizer.decode(ids)


@BOTH
def test_transformers_knows_the_special_tokens(
    tokenizer: BaseTokenizer, transformers_tokenizer: dict[str, Any]
) -> None:
    theirs = transformers_tokenizer[tokenizer.name]
    assert (theirs.pad_token_id, theirs.unk_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, 1, 2, 3)
    assert len(theirs) == tokenizer.vocab_size


# --- saved and loaded ------------------------------------------------------------------------------------------------


@BOTH
def test_saved_and_loaded_is_the_same(tokenizer: BaseTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert (tmp_path / "tokenizer.json").read_text(encoding="utf-8") == tokenizer.to_json()
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    for loaded in (
        load_tokenizer(tmp_path),
        load_tokenizer(tmp_path / "alone"),
        type(tokenizer).load(tmp_path),
        BaseTokenizer.from_json(tokenizer.to_json()),
        tokenizer_from_json(tokenizer.to_json()),
    ):
        assert type(loaded) is type(tokenizer)
        assert loaded.to_json() == tokenizer.to_json()
        np.testing.assert_array_equal(loaded.encode(TEXT), tokenizer.encode(TEXT))
        assert loaded.decode(loaded.encode("<BOS>")) == tokenizer.decode(tokenizer.encode("<BOS>"))


@BOTH
@settings(max_examples=25)
@given(data=st.data())
def test_damage_is_a_sentence(tokenizer: BaseTokenizer, data: st.DataObject) -> None:
    text = tokenizer.to_json()
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(CheckpointError):
        tokenizer_from_json(text[:cut])


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", '{"model": {"type": "BPE"}}', '{"model": {"type": "Unigram"}}']
)
def test_foreign_files_are_a_sentence(text: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        tokenizer_from_json(text)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError) as error:
        load_tokenizer(tmp_path)
    assert "tokenizer.json" in str(error.value)


def test_damaged_character_vocabularies() -> None:
    def changed(**vocabulary: int) -> str:
        document = characters.document()
        document["model"]["vocab"].update(vocabulary)
        return json.dumps(document)

    for text in (changed(word=characters.vocab_size), changed(a=100_000), changed(**{"<PAD>": 5})):
        with pytest.raises(CheckpointError):
            tokenizer_from_json(text)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError):
        BPETokenizer.from_json(characters.to_json())


class ReversedTokenizer(BaseTokenizer):
    """What a plugin might bring: bytes, counted backwards."""

    name = "test-reversed"
    vocab_size = 256

    def __init__(self, greeting: str = "hello") -> None:
        self.greeting = greeting

    @classmethod
    def train(cls, chunks: Iterable[str], config: DataConfig) -> Self:
        return cls("".join(chunks)[:5])

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        return 255 - np.frombuffer(text.encode(), np.uint8).astype(np.uint32)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(255 - int(i) for i in ids).decode("utf-8", "replace")

    def unknown_characters(self, text: str) -> list[str]:
        return []

    def token_text(self, token_id: int) -> str:
        return f"{255 - token_id:02x}"

    def document(self) -> dict[str, Any]:
        return {"greeting": self.greeting}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        return cls(document["greeting"])


def test_a_plugin_saves_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "tokenizers", registry.Registry("tokenizer", dict(registry.tokenizers._classes)))  # type: ignore[arg-type]
    tokenizer = ReversedTokenizer("howdy")
    tokenizer.save(tmp_path)
    with pytest.raises(CheckpointError) as error:
        load_tokenizer(tmp_path)
    assert "test-reversed" in str(error.value)
    registry.tokenizers.add(ReversedTokenizer.name, ReversedTokenizer)
    for loaded in (load_tokenizer(tmp_path), tokenizer_from_json(tokenizer.to_json())):
        assert isinstance(loaded, ReversedTokenizer)
        assert loaded.greeting == "howdy"
        assert loaded.decode(loaded.encode("naïve")) == "naïve"
    trained = train_tokenizer(["good morning"], DataConfig(tokenizer="test-reversed"))
    decode = stream_decoder(trained)
    assert "".join(map(decode, trained.encode("naïve 😀"))) == "naïve 😀"
    assert decode.finish() == ""
