"""GGUF files, read back by `gguf` and `transformers`, and by llama.cpp where it is installed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from foreign_models import FOREIGN, TEXT, randomise
from on_device import seeded

import fundamentallm as fl
from fundamentallm.cli.commands import main
from fundamentallm.config import Config, DataConfig, ModelConfig
from fundamentallm.data.foreign_tokenizer import ForeignTokenizer
from fundamentallm.data.tokenizers import BaseTokenizer, BPETokenizer, CharacterTokenizer
from fundamentallm.errors import CheckpointError
from fundamentallm.hub.gguf_export import save_gguf
from fundamentallm.language_model import LanguageModel
from fundamentallm.models import build_model
from fundamentallm.models.interchange import transformers_config

gguf = pytest.importorskip("gguf", reason="gguf, an extra, is not installed")

BPE = BPETokenizer.train([TEXT], DataConfig(tokenizer="bpe", vocab_size=320))
GPT2 = {"norm": "layernorm", "pos_encoding": "learned", "activation": "gelu", "bias": True, "qk_norm": False}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3": {"num_kv_heads": 2, "head_dim": 12},
    "qwen3-untied": {"tie_embeddings": False, "rope_theta": 500_000.0},
    "llama": {"qk_norm": False, "num_kv_heads": 1},
    "llama-untied": {"qk_norm": False, "tie_embeddings": False},
    "gpt2": GPT2,
}


def model_of(changes: dict[str, Any], tokenizer: BaseTokenizer = BPE) -> LanguageModel:
    shape = {"d_model": 32, "num_heads": 4, "num_layers": 2, "sequence_length": 32, "vocab_size": tokenizer.vocab_size}
    config = Config(model=ModelConfig.model_validate(shape | changes))
    network = build_model(config.model)
    randomise(network)
    return LanguageModel(network, tokenizer, config)


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_reads_the_same_model(name: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate, which is not installed")
    lm = model_of(SHAPES[name])
    save_gguf(tmp_path / "m.gguf", lm.model, lm.tokenizer, lm.config, half=False)
    assert list(tmp_path.iterdir()) == [tmp_path / "m.gguf"]
    # Of a GGUF file transformers 5 reads neither Qwen3's head_dim nor GPT-2's n_positions, so it is told the shape.
    described = transformers_config(lm.config.model, bos_token_id=2, eos_token_id=3, pad_token_id=0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32, config=transformers.AutoConfig.for_model(**described)
    )
    tokens = torch.randint(BPE.vocab_size, (2, 32), generator=seeded(0))
    with torch.inference_mode():
        torch.testing.assert_close(theirs.eval()(tokens).logits, lm.model(tokens), atol=1e-3, rtol=1e-3)


def test_the_vocabulary_is_written_as_llama_cpp_wants_it(tmp_path: Path) -> None:
    lm = model_of({"vocab_size": 330})
    lm.save(tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    read = {name: field.contents() for name, field in fields.items()}
    assert (read["tokenizer.ggml.model"], read["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert read["tokenizer.ggml.tokens"][:4] == ["<PAD>", "<UNK>", "<BOS>", "<EOS>"]
    assert read["tokenizer.ggml.token_type"][:5] == [3, 3, 3, 3, 1] and read["tokenizer.ggml.token_type"][-1] == 5
    assert len(read["tokenizer.ggml.tokens"]) == 330
    assert read["tokenizer.ggml.eos_token_id"] == 3 and not read["tokenizer.ggml.add_bos_token"]


@pytest.mark.parametrize(("kind", "words"), [("gpt2", "gpt-2"), ("llama3", "llama-bpe")])
def test_vocabularies_from_elsewhere(kind: str, words: str, tmp_path: Path) -> None:
    tokenizer = ForeignTokenizer(*FOREIGN[kind])
    lm = model_of({"qk_norm": False}, tokenizer)
    lm.save(tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == words
    assert fields["tokenizer.ggml.add_bos_token"].contents() == bool(tokenizer.prefix)


@pytest.mark.parametrize(
    ("tokenizer", "changes", "says"),
    [
        (CharacterTokenizer.train([TEXT], DataConfig()), {}, "A character vocabulary cannot be expressed in GGUF"),
        (ForeignTokenizer(*FOREIGN["unigram"]), {}, "A foreign vocabulary cannot be expressed in GGUF"),
        (ForeignTokenizer(*FOREIGN["llama2"]), {}, "A foreign vocabulary cannot be expressed in GGUF"),
        (BPE, {"activation": "relu2"}, "cannot be written as GGUF. This shape is FundamentaLLM's alone"),
    ],
)
def test_what_llama_cpp_has_not_is_refused(
    tokenizer: BaseTokenizer, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=says):
        model_of(changes, tokenizer).save(tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_without_the_package_it_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(CheckpointError, match="pip install gguf"):
        model_of({}).save(tmp_path / "m.gguf")


def test_the_command_line_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_of({}).save(tmp_path / "m")
    for name in ("m.gguf", "m.pt", "m.safetensors", "copy"):
        with pytest.raises(SystemExit) as ended:
            main(["export", str(tmp_path / "m"), str(tmp_path / name)])
        assert ended.value.code == 0 and capsys.readouterr().out == f"{tmp_path / name}\n"
        assert (tmp_path / name).exists()
    assert fl.load(tmp_path / "copy", "cpu").config == fl.load(tmp_path / "m", "cpu").config


@pytest.mark.parametrize("name", SHAPES)
def test_llama_cpp_computes_the_same(name: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    lm = model_of(SHAPES[name])
    save_gguf(tmp_path / "m.gguf", lm.model, lm.tokenizer, lm.config, half=False)
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=32, logits_all=True, verbose=False, n_threads=1)
    text = "Once upon a time, naïve 12!"
    tokens = lm.tokenizer.encode(text).tolist()
    assert theirs.tokenize(text.encode(), add_bos=False) == tokens
    assert theirs.detokenize(tokens).decode() == text
    theirs.eval(tokens)
    ours = lm.model(torch.tensor([tokens])).detach()[0]
    logits = torch.tensor(theirs.scores[: len(tokens)])
    assert math.isfinite(float(logits.sum()))
    # llama.cpp keeps its cache of keys and values in 16 bits.
    torch.testing.assert_close(logits, ours, atol=5e-3, rtol=5e-3)
    assert logits.argmax(-1).tolist() == ours.argmax(-1).tolist()


@pytest.mark.parametrize("kind", ["gpt2", "llama3"])
def test_llama_cpp_reads_vocabularies_from_elsewhere(kind: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    tokenizer = ForeignTokenizer(*FOREIGN[kind])
    model_of({"qk_norm": False}, tokenizer).save(tmp_path / "m.gguf")
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=32, vocab_only=True, verbose=False)
    for text in (TEXT, "la\n\n la  la 12345!?\n", " x"):
        assert theirs.tokenize(text.encode(), add_bos=False) == tokenizer.encode(text).tolist()
        assert theirs.tokenize(text.encode()) == [*tokenizer.prefix, *tokenizer.encode(text).tolist()]
