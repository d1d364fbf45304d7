"""What the tabs stand on: the cache of models, work that is followed and stopped, what the columns are told."""

from __future__ import annotations

import os
import shutil
import threading
import time

import pytest

import fundamentallm as fl
from fundamentallm.config import Config, GenerationConfig
from fundamentallm.data.corpus import text_corpus
from fundamentallm.errors import CheckpointError, ConfigError, CorpusError, FundamentaLLMError, GenerationError
from fundamentallm.playground.api import uploaded_paths
from fundamentallm.playground.compare_tab import STRATEGIES, Comparison, checked_prompt, column_settings, unknown_note
from fundamentallm.playground.corpus_tab import character_name, chosen_corpus, visible_character
from fundamentallm.playground.measuring import (
    SURPRISE_TOKENS,
    Progress,
    followed,
    held_out_baselines,
    measure,
    stored_evaluation,
    subject_of,
    surprise_of,
)
from fundamentallm.playground.model_cache import ModelCache
from fundamentallm.playground.settings import Limits, PlaygroundSettings, Visitor, bundled_checkpoint
from fundamentallm.runs.run_directory import RunDirectory


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A playground with one finished run, named ``run``."""
    directory = tmp_path_factory.mktemp("runs")
    config = Config().with_values(
        model={"d_model": 16, "num_heads": 1, "num_layers": 1, "sequence_length": 16},
        training={"max_steps": 10, "batch_size": 4, "device": "cpu"},
    )
    text = "".join(f"{n} and {n + 1} are numbers.\n" for n in range(300))
    fl.train(text_corpus(text), config=config, run_dir=directory / "run")
    return PlaygroundSettings(runs_directory=directory)


def test_a_run_measured_again_gives_the_stored_numbers(settings):
    subject = subject_of(settings, "run", Visitor(), None)
    result, stored = measure(subject), stored_evaluation(settings, "run", Visitor())
    assert result["loss"] == pytest.approx(stored["loss"], rel=1e-4)
    assert [rung["name"] for rung in result["baselines"]][:4] == ["uniform", "unigram", "bigram", "trigram"]
    assert held_out_baselines(settings, "run", Visitor()) == result["baselines"]
    surprise = surprise_of(subject)
    assert len(surprise) == min(SURPRISE_TOKENS, result["tokens"])
    if len(surprise) == result["tokens"]:
        assert sum(loss for _, loss in surprise) / len(surprise) == pytest.approx(result["loss"], rel=1e-4)


def test_a_page_may_measure_the_beginning_only(settings):
    capped = PlaygroundSettings(settings.runs_directory, limits=Limits(evaluated_tokens=100))
    text = "1 and 2 are numbers.\n" * 1_000_000
    for given, note in ((None, True), (text, True), (text[:100], False)):
        subject = subject_of(capped, "run", Visitor(), given)
        result = measure(subject)
        assert result["tokens"] == result["characters"] == len(subject.text) == 100
        assert result.get("note", "").endswith("its first 100 characters.") is note
    whole = subject_of(settings, "run", Visitor(), None)
    assert subject_of(capped, "run", Visitor(), None).text == whole.text[:100]
    assert list(subject_of(capped, "run", Visitor(), None).tokens) == list(whole.tokens[:100])


def test_where_a_character_is_several_tokens_the_tokens_are_capped(tmp_path):
    config = Config().with_values(
        data={"tokenizer": "bpe", "vocab_size": 300},
        model={"d_model": 16, "num_heads": 1, "num_layers": 1, "sequence_length": 16},
        training={"max_steps": 2, "batch_size": 4, "device": "cpu"},
    )
    fl.train(text_corpus("one and two are numbers. " * 100), config=config, run_dir=tmp_path / "run")
    capped = PlaygroundSettings(tmp_path, limits=Limits(evaluated_tokens=100))
    subject = subject_of(capped, "run", Visitor(), "日本語" * 1000)
    assert 60 < len(subject.tokens) <= 100 and ("日本語" * 100).startswith(subject.text)
    assert subject.note


def test_a_run_whose_text_is_gone_still_measures_other_texts(settings, tmp_path):
    shutil.copytree(settings.runs_directory / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "tokens")
    bare = PlaygroundSettings(runs_directory=tmp_path)
    with pytest.raises(FundamentaLLMError):
        held_out_baselines(bare, "run", Visitor())
    with pytest.raises(CorpusError, match="paste a text"):
        subject_of(bare, "run", Visitor(), None)
    result = measure(subject_of(bare, "run", Visitor(), "1 and 2 are numbers."))
    assert result["characters"] == 20
    assert result["baselines"] == []


@pytest.fixture
def checkpoints(tmp_path):
    return [shutil.copytree(bundled_checkpoint(), tmp_path / name) for name in "abc"]


def test_the_cache_keeps_the_models_used_last_and_loads_new_weights(checkpoints):
    first, second, third = checkpoints
    cache = ModelCache(capacity=2)
    kept = cache.load(first)
    assert cache.load(first) is kept
    other = cache.load(second)
    assert cache.load(first) is kept
    cache.load(third)  # the second was used longest ago
    assert cache.load(first) is kept
    assert cache.load(second) is not other
    os.utime(first / "model.safetensors", (1, 1))
    assert cache.load(first) is not kept


def test_the_cache_says_what_is_wrong_and_goes_on(checkpoints):
    cache = ModelCache()
    (checkpoints[0] / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        cache.load(checkpoints[0])
    assert cache.load(checkpoints[1]).generate("One", max_tokens=3, seed=1)


def test_a_damaged_model_is_named_without_the_way_to_it(settings, tmp_path):
    shutil.copytree(settings.runs_directory / "run", tmp_path / "damaged", symlinks=True)
    weights = RunDirectory(tmp_path / "damaged").checkpoint("best") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for path in (tmp_path / "damaged", weights.parent):
        with pytest.raises(CheckpointError) as error:
            ModelCache().load(path)
        assert weights.parent.name in str(error.value)
        assert str(tmp_path) not in str(error.value)


def test_two_threads_share_one_model(checkpoints):
    cache, found = ModelCache(), []
    threads = [threading.Thread(target=lambda: found.append(cache.load(checkpoints[0]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1


def test_followed_work_shows_progress_and_gives_its_result():
    def work(report, cancelled):
        report(0.5, "half")
        time.sleep(0.4)
        return {"done": True}

    *steps, result = followed(work)
    assert steps[-1] == Progress(0.5, "half")
    assert result == {"done": True}


def test_an_error_in_followed_work_arrives():
    def work(report, cancelled):
        raise CorpusError("The text is empty.")

    with pytest.raises(CorpusError, match="empty"):
        list(followed(work))


def test_closing_stops_followed_work():
    ended = threading.Event()

    def work(report, cancelled):
        while not cancelled():
            time.sleep(0.01)
        ended.set()
        return {}

    steps = followed(work)
    next(steps)
    steps.close()
    assert ended.wait(5)


def test_the_columns_differ_only_in_how_they_choose():
    columns = column_settings(PlaygroundSettings(), 50, 0.7, 3, 0.8, 1)
    assert tuple(column.strategy for column in columns) == STRATEGIES
    assert [column.top_k for column in columns] == [None, None, 3, None]
    assert [column.top_p for column in columns] == [None, None, None, 0.8]
    assert {column.max_tokens for column in columns} == {50}
    with pytest.raises(ConfigError, match="temperature"):
        column_settings(PlaygroundSettings(), 50, -1, 3, 0.8, 1)
    with pytest.raises(GenerationError, match="at most 10"):
        column_settings(PlaygroundSettings(limits=Limits(generated_tokens=10)), 50, 0.7, 3, 0.8, 1)
    with pytest.raises(GenerationError):
        checked_prompt("x" * 100_000)
    assert checked_prompt(None) == ""


def test_where_a_column_leaves_greedy():
    comparison = Comparison("p", [GenerationConfig(strategy=strategy) for strategy in STRATEGIES], "m")
    for pieces in (["a", "a", "a", "x"], ["b", "b", "c", "y"], ["c", "", "d", "z"]):
        comparison.add(pieces)
    view = comparison.view("done")
    assert [column["text"] for column in view["columns"]] == ["abc", "ab", "acd", "xyz"]
    assert [column.get("parts_at") for column in view["columns"]] == [None, None, 1, 0]
    assert view["columns"][1]["parting"] == "The same as greedy"
    assert view["columns"][2]["parting"] == "Leaves greedy at character 2"


def test_unknown_characters_are_named(checkpoints):
    model = ModelCache().load(checkpoints[0])
    assert unknown_note(model, "Once") == ""
    assert unknown_note(model, "日") == "This model has never seen “日”: it reads it as unknown."
    assert "and 3 more" in unknown_note(model, "日本語漢字仮名平片文章")


@pytest.mark.parametrize("files", ["x", [3], ["/etc/passwd"], [{"path": "/etc/passwd"}], [{"meta": {}, "path": "a"}]])
def test_only_what_gradio_has_checked_is_an_upload(files):
    with pytest.raises(CorpusError, match="handle_file"):
        uploaded_paths(files)


def test_a_source_is_a_name_and_never_a_path():
    for source in ("/etc/passwd", "../secret", "", None, ["tiny-tales"]):
        with pytest.raises(CorpusError):
            chosen_corpus(PlaygroundSettings(), source, None, None)
    with pytest.raises(CorpusError, match="at most 0 MB"):
        chosen_corpus(PlaygroundSettings(limits=Limits(corpus_bytes=10)), "paste", "much too long", None)


def test_characters_without_a_shape_are_named():
    assert visible_character("a") == "a"
    assert visible_character("\n") == "↵"
    assert visible_character("\u200b") == "U+200B"
    assert character_name("é") == "latin small letter e with acute, U+00E9"
