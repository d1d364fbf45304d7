"""A saved model is the same model, for us and for transformers; a damaged or hostile one is refused in one sentence."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from on_device import DEVICE
from safetensors.torch import load_file
from safetensors.torch import save_file as save_safetensors

from fundamentallm.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_trainer_state,
    save_checkpoint,
    save_file,
)
from fundamentallm.config import Config, DataConfig
from fundamentallm.data.tokenizers import BaseTokenizer, CharacterTokenizer
from fundamentallm.errors import CheckpointError
from fundamentallm.models import BaseModel, build_model
from fundamentallm.runs import RunDirectory

TEXT = "the quick brown fox\njumps over the lazy dog"
SHAPES: dict[str, dict[str, object]] = {
    "qwen3": {},
    "qwen3-untied-grouped": {"tie_embeddings": False, "num_kv_heads": 1, "head_dim": 6},
    "llama": {"qk_norm": False},
    "gpt2": {"norm": "layernorm", "bias": True, "activation": "gelu", "pos_encoding": "learned", "qk_norm": False},
    "ours": {"activation": "relu2", "pos_encoding": "none", "norm": "layernorm"},
    "bigram": {"architecture": "bigram"},
}


def model_of(**shape: object) -> tuple[BaseModel, BaseTokenizer, Config]:
    tokenizer = CharacterTokenizer.train([TEXT], DataConfig())
    size = {"d_model": 16, "num_heads": 2, "num_layers": 2, "sequence_length": 8, "vocab_size": tokenizer.vocab_size}
    config = Config().with_values(model=size | shape)
    torch.manual_seed(0)
    model = build_model(config.model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, tokenizer, config


def assert_same(loaded: Checkpoint, model: BaseModel, tokenizer: BaseTokenizer, config: Config) -> None:
    assert loaded.config == config
    assert not loaded.model.training
    for (name, a), b in zip(model.state_dict().items(), loaded.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert list(loaded.tokenizer.encode(TEXT)) == list(tokenizer.encode(TEXT))
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(TEXT)) == TEXT


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", ["folder", "model.pt", "model.safetensors"])
def test_saved_and_loaded_is_the_same(tmp_path: Path, shape: dict[str, object], name: str) -> None:
    model, tokenizer, config = model_of(**shape)
    path = tmp_path / "new" / name
    if path.suffix:
        save_file(path, model, tokenizer, config, step=7)
    else:
        save_checkpoint(path, model, tokenizer, config, step=7)
    loaded = load_checkpoint(path, DEVICE)
    assert_same(loaded, model, tokenizer, config)
    assert loaded.step == 7 and loaded.path == path
    assert [p.name for p in path.parent.iterdir()] == [name]  # no temporary file is left


@pytest.mark.parametrize("shape", ["qwen3", "qwen3-untied-grouped", "llama", "gpt2"])
def test_transformers_opens_a_saved_checkpoint(tmp_path: Path, shape: str) -> None:
    transformers = pytest.importorskip("transformers")
    model, tokenizer, config = model_of(**SHAPES[shape])
    save_checkpoint(tmp_path / "folder", model, tokenizer, config)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder").eval()
    assert theirs.dtype == torch.float32
    tokens = torch.tensor(tokenizer.encode(TEXT)[None, :8].astype(int))
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert their_tokenizer.encode(TEXT) == list(tokenizer.encode(TEXT))
    assert theirs.generation_config.max_new_tokens == config.generation.max_tokens


@pytest.mark.parametrize("family", ["Qwen3", "Llama"])
def test_a_folder_that_transformers_wrote(tmp_path: Path, family: str) -> None:
    transformers = pytest.importorskip("transformers")
    _, tokenizer, _ = model_of()
    shape = {
        "hidden_size": 16,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    config = getattr(transformers, f"{family}Config")(
        **shape, vocab_size=tokenizer.vocab_size, num_key_value_heads=1, max_position_embeddings=8
    )
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    ours = load_checkpoint(tmp_path, DEVICE).model
    tokens = torch.tensor(tokenizer.encode(TEXT)[None, :8].astype(int))
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


def test_weights_are_saved_in_float32_once(tmp_path: Path) -> None:
    model, tokenizer, config = model_of()
    save_checkpoint(tmp_path / "a", model.bfloat16(), tokenizer, config)
    weights = load_file(tmp_path / "a" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert "lm_head.weight" not in weights  # it is the embedding


def test_saving_into_a_folder_keeps_other_files(tmp_path: Path) -> None:
    model, tokenizer, config = model_of()
    (tmp_path / "thesis.txt").write_text("years of work")
    save_checkpoint(tmp_path, model, tokenizer, config)
    save_checkpoint(tmp_path, model, tokenizer, config, step=3)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert load_checkpoint(tmp_path).step == 3
    assert not list(tmp_path.glob(".*"))


def test_trainer_state(tmp_path: Path) -> None:
    model, tokenizer, config = model_of()
    with pytest.raises(CheckpointError, match="missing"):
        load_trainer_state(tmp_path)
    save_checkpoint(tmp_path / "a", model, tokenizer, config, trainer_state={"step": 3, "tensor": torch.ones(2)})
    assert load_trainer_state(tmp_path / "a")["step"] == 3


def test_a_run_is_its_best_checkpoint(tmp_path: Path) -> None:
    model, tokenizer, config = model_of()
    run = RunDirectory.create(tmp_path, config=config)
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        load_checkpoint(run.path)
    for step in (10, 20):
        save_checkpoint(run.checkpoint_path(step), model, tokenizer, config, step=step)
    run.mark_checkpoint("best", 10)
    assert load_checkpoint(run.path).step == 10
    assert load_checkpoint(str(run.checkpoints_path / "best")).path == run.checkpoint_path(10)
    assert load_checkpoint(run.checkpoint("last") / "model.safetensors").step == 20


class Weapon:
    """What a malicious file holds: unpickling it runs a command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"format": "fundamentallm", "weights": Weapon(trace)}, tmp_path / "torch.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Weapon(trace)))
    for name in ("torch.pt", "plain.pt"):
        with pytest.raises(CheckpointError, match="refused because it could run code"):
            load_checkpoint(tmp_path / name)
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(tmp_path / "torch.pt", folder / "trainer_state.pt")
    with pytest.raises(CheckpointError):
        load_trainer_state(folder)
    assert not trace.exists()


def damaged(folder: Path, change: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.yaml"
    match change:
        case "no weights":
            weights.unlink()
        case "truncated weights":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "empty weights":
            weights.write_bytes(b"")
        case "foreign weights":
            save_safetensors({"something": torch.ones(3)}, weights)
        case "weights of another shape":
            tensors = load_file(weights)
            tensors["model.norm.weight"] = torch.ones(99)
            save_safetensors(tensors, weights)
        case "a tensor missing":
            tensors = load_file(weights)
            del tensors["model.layers.1.self_attn.k_proj.weight"]
            save_safetensors(tensors, weights)
        case "no config.json":
            (folder / "config.json").unlink()
        case "broken config":
            config.write_text("model: [")
        case "unknown setting":
            config.write_text(config.read_text() + "surprise: 1\n")
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "broken tokenizer":
            (folder / "tokenizer.json").write_text("{")
        case "another architecture":
            config.unlink()
            (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
        case "broken config.json":
            config.unlink()
            (folder / "config.json").write_text("[1]")
        case "no vocabulary size":
            tree = Config.model_validate(load_checkpoint(folder).config.model_dump())
            config.write_text(tree.with_values(model={"vocab_size": None}).to_yaml())


@pytest.mark.parametrize(
    "change",
    [
        "no weights",
        "truncated weights",
        "empty weights",
        "foreign weights",
        "weights of another shape",
        "a tensor missing",
        "no config.json",
        "broken config",
        "unknown setting",
        "no tokenizer",
        "broken tokenizer",
        "another architecture",
        "broken config.json",
        "no vocabulary size",
    ],
)
def test_a_damaged_folder_is_one_sentence(tmp_path: Path, change: str) -> None:
    save_checkpoint(tmp_path / "folder", *model_of())
    damaged(tmp_path / "folder", change)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "folder")
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_other_files_are_one_sentence(tmp_path: Path) -> None:
    model, tokenizer, config = model_of()
    save_file(tmp_path / "good.safetensors", model, tokenizer, config)
    save_file(tmp_path / "good.pt", model, tokenizer, config)
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:200])
    (tmp_path / "short.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:200])
    (tmp_path / "empty.pt").touch()
    (tmp_path / "picture.png").touch()
    (tmp_path / "empty-folder").mkdir()
    save_safetensors({"x": torch.ones(1)}, tmp_path / "foreign.safetensors")
    save_safetensors({"x": torch.ones(1)}, tmp_path / "lies.safetensors", {"config": "model: 3", "tokenizer": "{}"})
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(torch.load(tmp_path / "good.pt") | {"weights": {"a": 1}}, tmp_path / "numbers.pt")
    names = ["short.safetensors", "short.pt", "empty.pt", "picture.png", "empty-folder", "foreign.safetensors"]
    for name in [*names, "lies.safetensors", "foreign.pt", "list.pt", "numbers.pt", "missing"]:
        with pytest.raises(CheckpointError) as error:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(error.value) and str(error.value).endswith("."), name


def test_saving_where_one_cannot(tmp_path: Path) -> None:
    model, tokenizer, config = model_of()
    with pytest.raises(CheckpointError, match=r"a \.pt or a \.safetensors file"):
        save_file(tmp_path / "model.onnx", model, tokenizer, config)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="could not be saved"):
        save_checkpoint(tmp_path / "file" / "folder", model, tokenizer, config)
    with pytest.raises(CheckpointError, match="could not be saved"):
        save_checkpoint(tmp_path / "file", model, tokenizer, config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_save_that_fails_halfway_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, config = model_of()
    save_checkpoint(tmp_path / "folder", model, tokenizer, config, step=1)
    save_file(tmp_path / "one.pt", model, tokenizer, config, step=1)

    def full(*args: object, **options: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"the disk that holds .* is full"):
        save_checkpoint(tmp_path / "folder", model, tokenizer, config, trainer_state={}, step=2)
    with pytest.raises(CheckpointError, match="is full"):
        save_file(tmp_path / "one.pt", model, tokenizer, config, step=2)
    assert load_checkpoint(tmp_path / "folder").step == load_checkpoint(tmp_path / "one.pt").step == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "one.pt"]
