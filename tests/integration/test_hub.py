"""To the Hub and back: the real client of the Hugging Face Hub against a small Hub on the loopback interface."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from foreign_models import save_theirs, their_model
from hub_server import Hub, running_hub, stand_in
from huggingface_hub import ModelCard, constants
from on_device import DEVICE

import fundamentallm as fl
from fundamentallm.cli.commands import main
from fundamentallm.config import Config, DataConfig, ModelConfig
from fundamentallm.data.corpus import text_corpus
from fundamentallm.data.tokenizers import CharacterTokenizer
from fundamentallm.errors import CheckpointError, ConfigError, HubError
from fundamentallm.hub.download import fetch, find_checkpoint
from fundamentallm.hub.model_card import CARD_MARK, Sample, model_card
from fundamentallm.hub.publish import push
from fundamentallm.language_model import LanguageModel
from fundamentallm.models import build_model
from fundamentallm.training.further import further_config, starting_point

TEXT = "Once upon a time a fox met a hen. They sang la la la and went home.\n" * 60
SECRET = "hf_secretOfAlice0123456789"
SETTINGS: dict[str, dict[str, object]] = {
    "model": {"d_model": 32, "num_heads": 2, "num_layers": 1, "sequence_length": 16},
    "training": {"max_steps": 12, "eval_every_n_steps": 4, "log_every_n_steps": 2, "batch_size": 4, "device": DEVICE},
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub on which Alice may write and Bob too, in place of the one the client would ask; nobody is signed in."""
    with running_hub() as hub:
        hub.users = {SECRET: "alice", "hf_bob": "bob", "hf_reader": "alice"}
        hub.readers = {"hf_reader"}
        stand_in(hub, monkeypatch, tmp_path)
        yield hub


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A model with a run around it, made from a file in a folder with a telling name."""
    folder = tmp_path_factory.mktemp("confidential")
    (folder / "my tales.txt").write_text(TEXT)
    return fl.train(folder / "my tales.txt", preset="small", run_dir=folder / "run", values=SETTINGS)


def small_model(**changes: Any) -> LanguageModel:
    tokenizer = CharacterTokenizer.train([TEXT], DataConfig())
    shape = {"d_model": 16, "num_heads": 2, "num_layers": 1, "sequence_length": 16, "vocab_size": tokenizer.vocab_size}
    config = Config(model=ModelConfig.model_validate(shape | changes))
    return LanguageModel(build_model(config.model), tokenizer, config)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sentence(error: pytest.ExceptionInfo[Exception]) -> str:
    """The message, which must be one sentence without a secret."""
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 400, text
    assert SECRET not in text and "Traceback" not in text
    return text


# Push and pull -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("large_files", [False, True])
def test_push_and_pull(hub: Hub, trained: LanguageModel, large_files: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.large_files = large_files
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    assert trained.path is not None
    before, told = contents(trained.path.parents[1]), []
    url = trained.push_to_hub("alice/tales", token=SECRET, progress=lambda what, share: told.append((what, share)))
    assert url == f"{hub.endpoint}/alice/tales"
    assert [share for _, share in told] == sorted(share for _, share in told) and told[-1][1] == 1.0
    assert contents(trained.path.parents[1]) == before

    repository = hub.model("alice/tales")
    assert repository.private and len(repository.commits) == 2  # its creation, and one more
    assert set(repository.files) == {
        ".gitattributes", "README.md", "config.json", "config.yaml", "generation_config.json", "loss.png",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    everything = b"".join(repository.files.values())
    assert b"confidential" not in everything and SECRET.encode() not in everything

    loaded = fl.load("alice/tales", device=DEVICE, token=SECRET)
    assert loaded.generate("Once", strategy="greedy") == trained.generate("Once", strategy="greedy")
    fetched = {path for method, path, _ in hub.requests if "/resolve/" in path}
    assert not any("README" in path or "loss.png" in path for path in fetched)
    # transformers, by its own means, finds the same model.
    theirs = transformers.AutoModelForCausalLM.from_pretrained("alice/tales", token=SECRET)
    tokens = torch.arange(16)[None]
    torch.testing.assert_close(theirs(tokens).logits, trained.model(tokens), atol=1e-4, rtol=1e-4)
    assert all(SECRET not in path for _, path, _ in hub.requests)


def test_a_second_push_is_one_more_commit_and_an_equal_one_is_none(hub: Hub) -> None:
    model = small_model()
    model.push_to_hub("alice/m", token=SECRET)
    hub.model("alice/m").tags["v1"] = hub.model("alice/m").commits[-1][0]
    first = model.generate("Once", strategy="greedy")
    model.push_to_hub("alice/m", token=SECRET)
    assert len(hub.model("alice/m").commits) == 2
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.push_to_hub("alice/m", token=SECRET, message="louder")
    assert [message for _, message, _ in hub.model("alice/m").commits[2:]] == ["louder"]
    second = model.generate("Once", strategy="greedy")
    assert fl.load("alice/m", "cpu", token=SECRET).generate("Once", strategy="greedy") == second != first
    assert fl.load("alice/m@v1", "cpu", token=SECRET).generate("Once", strategy="greedy") == first
    assert fl.load("alice/m", "cpu", token=SECRET, revision="v1").generate("Once", strategy="greedy") == first


def test_a_bare_name_belongs_to_the_owner_of_the_token(hub: Hub) -> None:
    assert small_model().push_to_hub("m", token=SECRET, private=False) == f"{hub.endpoint}/alice/m"
    assert not hub.model("alice/m").private
    assert fl.load("alice/m", "cpu").config.model.d_model == 16  # everybody may


def test_what_lies_in_the_folder_besides_stays_at_home(hub: Hub, tmp_path: Path) -> None:
    small_model().save(tmp_path / "m")
    for name in ("trainer_state.pt", "notes.txt", ".env", "pytorch_model.bin", "run.py"):
        (tmp_path / "m" / name).write_text("private")
    there = {"model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}", "LICENSE": b""}
    hub.add("alice/m", there, private=True)
    push(tmp_path / "m", "alice/m", token=SECRET)
    files = set(hub.model("alice/m").files)
    assert files == {
        "LICENSE", "README.md", "config.json", "config.yaml", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_an_edited_card_is_left_alone(hub: Hub, trained: LanguageModel) -> None:
    trained.push_to_hub("alice/m", token=SECRET)
    repository = hub.model("alice/m")
    own = repository.files["README.md"].replace(CARD_MARK.encode(), b"My own words.")
    repository.commit("edited", repository.files | {"README.md": own})
    small_model().push_to_hub("alice/m", token=SECRET)
    assert repository.files["README.md"] == own


def test_visibility_is_never_other_than_asked(hub: Hub) -> None:
    model = small_model()
    hub.add("alice/open", {}, private=False)
    with pytest.raises(HubError, match="everybody can see it") as error:
        model.push_to_hub("alice/open", token=SECRET)
    sentence(error)
    hub.add("alice/closed", {}, private=True)
    with pytest.raises(HubError, match="is private") as error:
        model.push_to_hub("alice/closed", token=SECRET, private=False)
    sentence(error)
    assert len(hub.model("alice/open").commits) == len(hub.model("alice/closed").commits) == 1


# What goes wrong -----------------------------------------------------------------------------------------------------


def test_without_a_token_nothing_is_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match="needs a token") as error:
        small_model().push_to_hub("alice/m")
    sentence(error)
    # On a Space the token in the environment is its owner's, not the visitor's.
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("SPACE_ID", "alice/space")
    with pytest.raises(HubError, match="needs a token"):
        small_model().push_to_hub("alice/m")
    hub.add("alice/private", {}, private=True)
    with pytest.raises(HubError, match="no such repository"):
        fl.load("alice/private")
    assert not any(authorization for *_, authorization in hub.requests)


def test_the_token_of_this_machine_is_used(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    small_model().push_to_hub("alice/m")
    assert fl.load("alice/m", "cpu").config.model.d_model == 16


@pytest.mark.parametrize(
    ("token", "repo_id", "says"),
    [
        ("hf_wrong", "alice/m", "does not accept the token"),
        ("hf_reader", "alice/m", "no right"),
        (SECRET, "bob/m", "no right"),
        (SECRET, "alice/bad name!", "no name of a repository"),
        (SECRET, "a/b/c", "no name of a repository"),
    ],
)
def test_refused_pushes(hub: Hub, token: str, repo_id: str, says: str) -> None:
    with pytest.raises(HubError, match=says) as error:
        small_model().push_to_hub(repo_id, token=token)
    assert repr(repo_id) in sentence(error)
    assert not hub.repositories


FAILURES = [
    ("POST", r"/api/repos/create", 500, "problem of its own"),
    ("POST", r"/api/repos/create", 403, "no right"),
    ("POST", r"/api/repos/create", 429, "allows no more requests"),
    ("POST", r"/api/repos/create", None, "connection to the Hub was cut"),
    ("GET", r"/api/models/", 503, "problem of its own"),
    ("GET", r"/api/models/", None, "connection to the Hub was cut"),
    ("POST", r"/preupload/", 500, "problem of its own"),
    ("POST", r"/preupload/", 429, "allows no more requests"),
    ("POST", r"/validate-yaml", 500, "problem of its own"),
    ("POST", r"/batch", 403, "no right"),
    ("PUT", r"/storage/", 500, "problem of its own"),
    ("PUT", r"/storage/", None, "connection to the Hub was cut"),
    ("POST", r"/commit/", 403, "no right"),
    ("POST", r"/commit/", 409, "somebody else is changing"),
    ("POST", r"/commit/", 412, "at the same moment"),
    ("POST", r"/commit/", 413, "larger than the Hub accepts"),
    ("POST", r"/commit/", 418, "status 418"),
    ("POST", r"/commit/", 502, "problem of its own"),
    ("POST", r"/commit/", None, "connection to the Hub was cut"),
]


@pytest.mark.parametrize(("method", "path", "status", "says"), FAILURES)
def test_a_push_that_fails_is_one_sentence_and_can_be_repeated(
    hub: Hub, method: str, path: str, status: int | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    hub.large_files = True
    small_model().save(tmp_path / "m")
    before = contents(tmp_path / "m")
    hub.fail(method, path, status, headers={"Retry-After": "30"} if status == 429 else None)
    with pytest.raises(HubError, match=says) as error:
        push(tmp_path / "m", "alice/m", token=SECRET)
    sentence(error)
    assert contents(tmp_path / "m") == before
    # All or nothing for a reader: the repository is missing, or empty.
    assert not hub.repositories or len(hub.model("alice/m").commits) == 1
    hub.failures.clear()
    push(tmp_path / "m", "alice/m", token=SECRET)
    assert len(hub.model("alice/m").commits) == 2
    assert fl.load("alice/m", "cpu", token=SECRET).config.model.d_model == 16


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    model.push_to_hub("alice/m", token=SECRET)
    fl.load("alice/m", "cpu", token=SECRET)
    hub.close()
    with pytest.raises(HubError, match="cannot be reached") as error:
        model.push_to_hub("alice/m", token=SECRET)
    sentence(error)
    with pytest.raises(HubError, match="cannot be reached") as error:
        fl.load("alice/other", token=SECRET)
    sentence(error)
    # What was fetched before is still there, but not for the visitors of a Space.
    assert fl.load("alice/m", "cpu", token=SECRET).config.model.d_model == 16
    monkeypatch.setenv("SPACE_ID", "alice/space")
    with pytest.raises(HubError, match="cannot be reached"):
        fl.load("alice/m", "cpu", token=SECRET)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        model.push_to_hub("alice/m", token=SECRET)


@pytest.mark.parametrize(
    ("token", "name", "says"),
    [
        (None, "alice/nothing", "There is no checkpoint at 'alice/nothing' here"),
        ("hf_bob", "alice/private", "no such repository"),
        (None, "alice/private", "no such repository"),
        (SECRET, "alice/private@v9", "no such revision"),
        ("hf_wrong", "alice/private", "no such repository|does not accept the token"),
        (None, "alice/gated", "admits people one by one"),
    ],
)
def test_refused_pulls(hub: Hub, token: str | None, name: str, says: str) -> None:
    hub.add("alice/private", {}, private=True)
    hub.add("alice/gated", {}).gated = True
    with pytest.raises(HubError, match=says) as error:
        fl.load(name, token=token)
    sentence(error)


def test_what_cannot_be_loaded_is_refused_before_its_weights_are_fetched(hub: Hub, tmp_path: Path) -> None:
    config = {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2}}
    files = {"config.json": json.dumps(config).encode(), "tokenizer.json": b"{}", "model.safetensors": b"x" * 10}
    hub.add("a/scaled", files)
    hub.add("a/pickled", {"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b""})
    hub.add("a/empty", {"README.md": b""})
    hub.add("a/untold", {"config.json": b"{}", "model.safetensors": b""})
    for name, says in (
        ("a/scaled", "rope_scaling.rope_type 'linear'"),
        ("a/pickled", "only pytorch_model.bin, a format that can run code"),
        ("a/empty", "no weights that are read here"),
        ("a/untold", "no tokenizer.json"),
    ):
        with pytest.raises(CheckpointError, match=says) as error:
            fl.load(name)
        sentence(error)
    assert not any("safetensors" in path for _, path, _ in hub.requests)


def test_a_cut_download_is_one_sentence_and_can_be_repeated(hub: Hub) -> None:
    small_model().push_to_hub("alice/m", token=SECRET)
    hub.fail("GET", r"/resolve/.*/model\.safetensors", None)
    with pytest.raises(HubError) as error:
        fl.load("alice/m", token=SECRET)
    sentence(error)
    hub.failures.clear()
    assert fl.load("alice/m", "cpu", token=SECRET).config.model.d_model == 16


def test_sharded_models_of_others_are_fetched_and_trained_further(hub: Hub, tmp_path: Path) -> None:
    tokenizer = save_theirs("llama3", tmp_path / "theirs")
    theirs = their_model("llama", tokenizer, tie_word_embeddings=True).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    files = contents(tmp_path / "theirs") | {"original/consolidated.pth": b"pickle", "modeling.py": b"code"}
    hub.add("meta/llama", files)
    told: list[str] = []
    folder = fetch("meta/llama", progress=lambda what, _share: told.append(what))
    assert "meta/llama" in told[0] and "MB" in told[0]
    assert not list(folder.rglob("*.py")) and not list(folder.rglob("*.pth"))
    assert len(list(folder.glob("model-*.safetensors"))) > 1

    lm = fl.train(
        text_corpus(TEXT, "tales"),
        preset="small",
        from_checkpoint="meta/llama",
        run_dir=tmp_path / "run",
        values={"training": {"max_steps": 6, "eval_every_n_steps": 3, "batch_size": 2, "device": DEVICE}},
    )
    training, before = lm.config.training, fl.load("meta/llama", DEVICE)
    assert (training.optimizer, training.learning_rate) == ("adamw", 5e-5)
    assert training.from_checkpoint == "meta/llama" and lm.config.data.tokenizer == "foreign"
    assert lm.evaluate(TEXT[:500]).loss < before.evaluate(TEXT[:500]).loss
    assert any(not torch.equal(a, b) for a, b in zip(lm.model.parameters(), before.model.parameters(), strict=True))
    lm.push_to_hub("alice/finetuned", token=SECRET)
    card = ModelCard(hub.model("alice/finetuned").files["README.md"].decode())
    assert card.data.base_model == "meta/llama" and "trained further from `meta/llama`" in card.text
    pushed = tmp_path / "pushed"
    pushed.mkdir()
    for name, content in hub.model("alice/finetuned").files.items():
        (pushed / name).write_bytes(content)
    again = transformers.AutoModelForCausalLM.from_pretrained(pushed)
    assert type(again).__name__ == "LlamaForCausalLM"
    assert transformers.AutoTokenizer.from_pretrained(pushed)(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]


# Further training ----------------------------------------------------------------------------------------------------


def test_training_further_starts_where_the_checkpoint_is(trained: LanguageModel, tmp_path: Path) -> None:
    run = trained.path.parents[1] if trained.path else tmp_path
    step = {"max_steps": 1, "device": DEVICE, "batch_size": 4}
    new = "A hen sang to a fox and a fox sang to a hen.\n" * 80
    (tmp_path / "new.txt").write_text(new)
    lm = fl.train(tmp_path / "new.txt", preset="small", from_checkpoint=run, run_dir=tmp_path / "further",
                  values={"training": step, "model": {"sequence_length": 8}})  # fmt: skip
    assert lm.tokenizer.to_json() == trained.tokenizer.to_json()
    expected = trained.config.model.model_copy(update={"sequence_length": 8})
    assert lm.config.model == expected
    assert lm.config.training.optimizer == trained.config.training.optimizer
    assert lm.config.training.learning_rate == pytest.approx(trained.config.training.learning_rate / 10)
    # One slow step away from where it began.
    for ours, theirs in zip(lm.model.parameters(), trained.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=0.05)
    # It is resumed like any other, although the checkpoint it began with may be gone.
    resumed = fl.train(resume=tmp_path / "further", max_steps=2)
    assert resumed.config.model == expected and (tmp_path / "further" / "checkpoints" / "step-000002").is_dir()
    # Its own settings are taken as they are where its config.yaml is used again.
    again = further_config(starting_point(str(run)), file=tmp_path / "further" / "config.yaml")
    assert again.training == resumed.config.training
    with pytest.raises(ConfigError, match=r"model\.num_layers comes with the checkpoint's weights and is 1"):
        fl.train(new, preset="small", from_checkpoint=run, values={"model": {"num_layers": 2}})
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        fl.train(new, preset="small", from_checkpoint=tmp_path / "nowhere" / "at" / "all")


def test_learned_positions_can_be_fewer_but_not_more(tmp_path: Path) -> None:
    gpt2 = {"norm": "layernorm", "pos_encoding": "learned", "activation": "gelu", "bias": True, "qk_norm": False}
    start = small_model(**gpt2)
    start.save(tmp_path / "start")
    corpus = text_corpus(TEXT, "tales")
    values = {"training": {"max_steps": 1, "device": DEVICE}, "model": {"sequence_length": 8}}
    lm = fl.train(corpus, preset="small", from_checkpoint=tmp_path / "start", run_dir=tmp_path / "a", values=values)
    assert lm.model.state_dict()["positions.weight"].shape == (8, 16)
    values["model"] = {"sequence_length": 32}
    with pytest.raises(ConfigError, match="has learned only 16 positions"):
        fl.train(corpus, preset="small", from_checkpoint=tmp_path / "start", run_dir=tmp_path / "b", values=values)


# The card ------------------------------------------------------------------------------------------------------------


def test_the_card_tells_what_there_is_to_know(trained: LanguageModel) -> None:
    assert trained.path is not None
    run = fl.language_model.RunDirectory(trained.path.parents[1])
    card = model_card(trained.path, "alice/tales", run=run)
    parsed = ModelCard(card.text)
    assert parsed.data.library_name == "transformers" and parsed.data.pipeline_tag == "text-generation"
    results = {result.metric_type: result.metric_value for result in parsed.data.eval_results or []}
    evaluation = run.evaluation()
    corpus = run.corpus()
    assert evaluation is not None and corpus is not None
    assert results["perplexity"] == pytest.approx(evaluation["perplexity"], rel=1e-5)
    assert set(results) == {"loss", "perplexity", "bits_per_character", "bits_per_byte", "accuracy"}
    for part in (corpus["sha256"], "my tales.txt", "Qwen3", "alice/tales", "config.yaml", "12 steps", "loss.png"):
        assert part in card.text
    assert "confidential" not in card.text
    sample = run.samples()[-1]["text"]
    assert TEXT[:40] not in card.text.replace(sample, "")
    from io import BytesIO

    from PIL import Image

    assert card.curve is not None
    assert Image.open(BytesIO(card.curve)).size == (1000, 480)


def test_a_text_in_the_card_stays_a_text(tmp_path: Path) -> None:
    model = small_model(activation="relu2")
    model.save(tmp_path / "m")
    nasty = "```\n<script>alert(1)</script>\n# Title\n`````\n---\n\x1b[31m $curve {{x}} \ud800"
    card = model_card(tmp_path / "m", "alice/m", samples=[Sample('"""\n```', nasty)])
    body = card.text.partition(CARD_MARK)[2]
    outside = []
    fence = ""
    for line in body.splitlines():
        if fence:
            fence = "" if line == fence else fence
        elif line.startswith("```"):
            fence = line[: len(line) - len(line.lstrip("`"))]
        else:
            outside.append(line)
    assert not fence and not any("script" in line or "Title" in line for line in outside)
    assert "\x1b" not in card.text and card.text.encode()
    assert "FundamentaLLM's alone" in card.text and "AutoModel" not in card.text
    assert ModelCard(card.text).data.library_name == "fundamentallm"


# The command line ----------------------------------------------------------------------------------------------------


def command_line(hub: Hub, home: Path, *arguments: str, token: str | None = SECRET) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SPACE_"))}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if token is not None:
        environment["HF_TOKEN"] = token
    command = [sys.executable, "-m", "fundamentallm", *arguments]
    result = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, cwd=home, timeout=120
    )
    assert SECRET not in result.stdout + result.stderr
    return result


def test_the_command_line_pushes_and_generates(hub: Hub, trained: LanguageModel, tmp_path: Path) -> None:
    assert trained.path is not None
    run = str(trained.path.parents[1])
    pushed = command_line(hub, tmp_path, "push", run, "alice/tales", "--public", "--message", "first")
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout == f"{hub.endpoint}/alice/tales\n"
    assert hub.model("alice/tales").commits[-1][1] == "first" and not hub.model("alice/tales").private
    options = ("--prompt", "Once", "--strategy", "greedy", "--max-tokens", "30")
    written = command_line(hub, tmp_path, "generate", "alice/tales", *options, token=None)
    assert written.stdout == "Once" + trained.generate("Once", strategy="greedy", max_tokens=30) + "\n", written.stderr


def test_the_command_line_says_what_is_wrong(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.chdir(tmp_path)
    small_model().save("m")
    for arguments, says in (
        (["push", "m", "bob/tales"], "no right"),
        (["push", "m", "bob/tales", "--debug"], "no right"),
        (["push", "gone", "alice/m"], "There is no checkpoint at 'gone'"),
        (["generate", "alice/nothing"], "no such repository"),
        (["train", "tiny-tales", "--from", "alice/nothing"], "no such repository"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        shown = capsys.readouterr()
        assert ended.value.code == 2 and says in shown.err and SECRET not in shown.err + shown.out
        assert ("Traceback" in shown.err) == ("--debug" in arguments)
    assert not hub.repositories and not (tmp_path / "runs").exists()
    small_model().push_to_hub("alice/m")
    with pytest.raises(SystemExit) as ended:
        main(["info", "alice/m"])
    assert ended.value.code == 0 and "qwen3" in capsys.readouterr().out


def test_a_slip_in_a_path_is_not_asked_of_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert find_checkpoint("runs/my-modle") == Path("runs/my-modle")
    for name in ("runs/my-modle", "/nowhere/x", "model.pt", "a/b/c", "../x", "~/x"):
        with pytest.raises(CheckpointError, match="There is no checkpoint"):
            fl.load(name)
    assert not hub.requests
