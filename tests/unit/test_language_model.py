"""The one noun: what it writes is the same whole, in pieces, side by side, and after being saved and loaded."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_device import DEVICE

import fundamentallm as fl
from fundamentallm.config import Config, DataConfig, GenerationConfig
from fundamentallm.data.tokenizers import BPETokenizer, CharacterTokenizer
from fundamentallm.errors import CheckpointError, ConfigError, FundamentaLLMError
from fundamentallm.language_model import LanguageModel, _TextStream
from fundamentallm.models import build_model

TEXT = "The quick brown fox jumps over the lazy dog — naïve 猫と犬 🙂!\n" * 4
SMALL = {"d_model": 16, "num_heads": 2, "num_layers": 1, "sequence_length": 16}


def untrained(tokenizer: str) -> LanguageModel:
    data = DataConfig(tokenizer=tokenizer, vocab_size=300)
    vocabulary = (BPETokenizer if tokenizer == "bpe" else CharacterTokenizer).train([TEXT], data)
    config = Config().with_values(
        data=data.model_dump(), model={**SMALL, "vocab_size": vocabulary.vocab_size}, generation={"max_tokens": 60}
    )
    torch.manual_seed(0)
    return LanguageModel(build_model(config.model), vocabulary, config)


@pytest.fixture(scope="module", params=["character", "bpe"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return untrained(request.param)


def test_pieces_make_the_whole(lm: LanguageModel) -> None:
    whole = lm.generate("The", seed=1, temperature=1.5)
    assert "".join(lm.stream("The", seed=1, temperature=1.5)) == whole
    assert whole == lm.generate("The", seed=1, temperature=1.5)
    assert whole != lm.generate("The", seed=2, temperature=1.5)


def test_side_by_side_equals_one_after_the_other(lm: LanguageModel) -> None:
    columns = [
        lm.generation_config(strategy="greedy"),
        lm.generation_config(strategy="temperature", temperature=1.3),
        lm.generation_config(strategy="top-k", top_k=5),
        lm.generation_config(strategy="top-p", top_p=0.6),
    ]
    together = ["".join(pieces) for pieces in zip(*lm.compare("The fox", columns, seed=4), strict=True)]
    for text, config in zip(together, columns, strict=True):
        alone = lm.generate("The fox", **config.model_copy(update={"seed": 4}).model_dump())
        assert text == alone


def test_several_prompts_are_one_batch_with_seeds_of_their_own(lm: LanguageModel) -> None:
    prompts = ["The", "quick brown fox jumps", ""]
    together = lm.generate(prompts, seed=10)
    assert together == [lm.generate(prompt, seed=10 + i) for i, prompt in enumerate(prompts)]
    assert lm.generate([]) == []


def test_unseen_characters_are_named_and_no_crash() -> None:
    lm = untrained("character")
    assert lm.unknown_characters("The Ω fox Ж Ω") == ["Ω", "Ж"]
    assert len(lm.generate("Ω", seed=1, max_tokens=5)) <= 5
    assert lm.generate("<BOS><EOS>", seed=1, max_tokens=5) is not None


def test_writing_stops_before_a_stop_sequence(lm: LanguageModel) -> None:
    # An untrained model also draws <EOS>: take the longest of a few texts.
    texts = {seed: lm.generate("The", seed=seed, temperature=1.0, max_tokens=60) for seed in range(10)}
    seed, whole = max(texts.items(), key=lambda item: len(item[1]))
    stop = whole[20:23]
    cut = whole[: whole.index(stop)]
    assert lm.generate("The", seed=seed, temperature=1.0, max_tokens=60, stop_sequences=[stop]) == cut
    pieces = list(lm.stream("The", seed=seed, temperature=1.0, max_tokens=60, stop_sequences=[stop, "never written"]))
    assert "".join(pieces) == cut


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.integers(1, 40))
@settings(max_examples=200)
def test_stop_sequences_cut_at_the_earliest_and_hold_nothing_back(text: str, stops: list[str], limit: int) -> None:
    tokenizer = CharacterTokenizer.train(["ab"], DataConfig())
    stream = _TextStream(tokenizer, GenerationConfig(stop_sequences=tuple(stops), max_tokens=limit))
    written = "".join(stream.push(int(token)) for token in tokenizer.encode(text)) + stream.finish()
    ends = [end for stop in stops for end in range(len(text[:limit]) + 1) if text[:limit][:end].endswith(stop)]
    expected = text[:limit]
    if ends:  # what is read first decides, and of two that end together the longer
        end = min(ends)
        expected = text[: min(end - len(stop) for stop in stops if text[:end].endswith(stop))]
    assert written == expected


def test_a_stream_can_be_left_at_any_time(lm: LanguageModel) -> None:
    stream = lm.stream("The", max_tokens=1_000_000, strategy="greedy")
    assert len(list(islice(stream, 5))) == 5
    stream.close()  # type: ignore[attr-defined]


def test_impossible_options_get_one_sentence(lm: LanguageModel) -> None:
    for options in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"max_tokens": 0}, {"strategy": "beam"}):
        with pytest.raises(ConfigError, match=r"generation\.\w+ is .*, which cannot work"):
            lm.generate("The", **options)  # type: ignore[call-overload]


def test_next_tokens_are_a_distribution(lm: LanguageModel) -> None:
    ranked = lm.next_tokens("The quick brown fox jumps over")
    probabilities = [probability for _, probability in ranked]
    assert len(ranked) == lm.tokenizer.vocab_size
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["folder", "model.pt", "model.safetensors"])
def test_saved_and_loaded_it_writes_the_same(lm: LanguageModel, name: str, tmp_path: Path) -> None:
    lm.save(tmp_path / name)
    again = fl.load(tmp_path / name, device=DEVICE)
    assert again.generate("The", seed=1) == lm.generate("The", seed=1)
    assert again.config == lm.config
    assert again.evaluate(TEXT) == lm.evaluate(TEXT)
    assert repr(again) == repr(lm)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / "any").touch()
    usual = (tmp_path / "any").stat().st_mode
    assert all(path.stat().st_mode == usual for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(CheckpointError, match="give a text to evaluate"):
        again.evaluate()


def test_train_in_one_call(tmp_path: Path) -> None:
    text = tmp_path / "my.txt"
    text.write_text("abcdefghij" * 120)
    quick = {"model": SMALL, "training": {"batch_size": 8, "learning_rate": 0.02, "device": DEVICE}}
    lm = fl.train(text, preset="small", runs_directory=tmp_path / "runs", values=quick, max_steps=60, seed=2)
    run = lm.run
    assert run is not None and run.path.parent == tmp_path / "runs"
    assert lm.config.training.max_steps == 60
    assert lm.evaluate().loss < 1.0
    assert lm.evaluate().as_dict() == {k: v for k, v in (run.evaluation() or {}).items() if k != "step"}
    assert fl.load(run.path, device=DEVICE).generate("abc", strategy="greedy", max_tokens=4) == "defg"
    longer = fl.train(resume=run.path, max_steps=80)
    assert longer.run is not None and longer.run.path == run.path
    assert max(row["step"] for row in run.metrics()) == 80
    other = fl.train(text, runs_directory=tmp_path / "runs", values=quick, max_steps=2)
    assert other.run is not None and other.run.path != run.path


def test_train_refuses_contradictions(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not both"):
        fl.train("tiny-tales", preset="small", config=Config())
    with pytest.raises(FundamentaLLMError, match=r"nowhere\.txt"):
        fl.train("nowhere.txt", runs_directory=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
