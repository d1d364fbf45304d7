"""Small models and tokenizers as other people make them, with `transformers` and `tokenizers` alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from on_device import seeded
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = "Once upon a time the fox, naïve and 12 years old, met a hen.\nThey sang: la la la!\n\nÜber 3.5 km — 🦊\n" * 20
LENGTH = 24


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter random, gains and biases too, and large enough that no two logits are nearly equal."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.2 if parameter.ndim == 2 else parameter + 0.3 * noise)


def gpt2_tokenizer() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return backend


def llama3_tokenizer() -> Tokenizer:
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"
    )
    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    backend.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    first = backend.token_to_id("<|begin_of_text|>")
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", first)]
    )
    return backend


def llama2_tokenizer() -> Tokenizer:
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    words = [word for line in TEXT.split("\n") for word in line.split(" ") if word.isascii() and word]
    trained.train_from_iterator(words, trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False))
    document = json.loads(trained.to_str())
    # As in real ones, the byte tokens are words like any other, and only three tokens are special.
    document["added_tokens"] = [token for token in document["added_tokens"] if token["id"] < 3]
    backend = Tokenizer.from_str(json.dumps(document))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


def unigram_tokenizer() -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        [TEXT],
        trainers.UnigramTrainer(
            vocab_size=100, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    return backend


FOREIGN = {
    "gpt2": (gpt2_tokenizer(), {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
    "llama3": (llama3_tokenizer(), {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}),
    "llama2": (llama2_tokenizer(), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "unigram": (unigram_tokenizer(), {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}),
}


def save_theirs(kind: str, folder: Path) -> Any:
    backend, special = FOREIGN[kind]
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    theirs.save_pretrained(folder)
    return theirs


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LENGTH}


def their_model(kind: str, tokenizer: Any = None, **options: Any) -> Any:
    vocab = 64 if tokenizer is None else len(tokenizer)
    ids = {} if tokenizer is None else {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if kind == "gpt2":
        config: Any = transformers.GPT2Config(vocab_size=vocab, **(SMALL_GPT2 | ids | options))
        model: Any = transformers.GPT2LMHeadModel(config)
    else:
        base = SMALL | ids | {"max_position_embeddings": LENGTH, "num_key_value_heads": 2}
        if kind == "qwen3":
            base |= {"head_dim": 8}
            config = transformers.Qwen3Config(vocab_size=vocab, **(base | options))
            model = transformers.Qwen3ForCausalLM(config)
        else:
            config = transformers.LlamaConfig(vocab_size=vocab, **(base | options))
            model = transformers.LlamaForCausalLM(config)
    randomise(model)
    model.tie_weights()
    return model.eval()
