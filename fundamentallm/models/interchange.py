"""Our weights and shapes in the words of `transformers`, and back.

Three stock architectures fit our transformer exactly: Qwen3 (RMSNorm, RoPE, SwiGLU, QK-norm; our default), Llama (the
same without QK-norm) and GPT-2 (LayerNorm, learned positions, GELU, biases). A configuration of one of these shapes is
saved under the stock class's own names, so that `AutoModelForCausalLM.from_pretrained(folder)` loads it as it is. Any
other is saved under our names with ``model_type: fundamentallm`` and loads with us alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, cat, split

from fundamentallm.config import ModelConfig
from fundamentallm.errors import CheckpointError

Family = Literal["qwen3", "llama", "gpt2", "fundamentallm"]
_CLASS_NAMES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel"}


def family(config: ModelConfig) -> Family:
    """The stock architecture that has exactly this shape, or ``"fundamentallm"`` if none has."""
    if config.architecture != "transformer":
        return "fundamentallm"
    style = (config.norm, config.pos_encoding, config.activation, config.bias)
    if style == ("rmsnorm", "rope", "swiglu", False):
        return "qwen3" if config.qk_norm else "llama"
    gpt2_like = style == ("layernorm", "learned", "gelu", True)
    usual_heads = config.kv_heads == config.num_heads and config.head_width * config.num_heads == config.d_model
    if gpt2_like and usual_heads and not config.qk_norm and config.tie_embeddings:
        return "gpt2"
    return "fundamentallm"


def transformers_config(
    config: ModelConfig, *, bos_token_id: int | None, eos_token_id: int | None, pad_token_id: int | None
) -> dict[str, Any]:
    """The content of ``config.json`` for a model of this shape."""
    kind = family(config)
    common: dict[str, Any] = {
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "dtype": "float32",
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
    }
    if kind == "fundamentallm":
        # Everything else is in config.yaml beside it, which only we read.
        return common
    common["architectures"] = [_CLASS_NAMES[kind]]
    if kind == "gpt2":
        return common | {
            "n_embd": config.d_model,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_positions": config.sequence_length,
            "n_inner": config.ffn_width,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.norm_epsilon,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "resid_pdrop": 0.0,
        }
    return common | {
        "hidden_size": config.d_model,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.sequence_length,
        "rms_norm_eps": config.norm_epsilon,
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
    }


def model_config(values: Mapping[str, Any]) -> ModelConfig:
    """The shape that a Qwen3 or Llama ``config.json`` describes, for a folder that somebody else wrote.

    Raises:
        CheckpointError: It is another architecture, or uses a feature that our transformer lacks.
    """
    kind = values.get("model_type")
    if kind not in ("qwen3", "llama"):
        raise CheckpointError(
            f"This folder holds a model of type {kind!r} and no config.yaml: "
            "only checkpoints of FundamentaLLM and plain qwen3 or llama folders can be loaded."
        )
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    required = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False}
    found = {field: values.get(field, wanted) for field, wanted in required.items()}
    required["rope_type"], found["rope_type"] = "default", rope.get("rope_type", "default")
    for field, wanted in required.items():
        if found[field] != wanted:
            raise CheckpointError(f"This {kind} model has {field} {found[field]!r}, but only {wanted!r} can be loaded.")
    try:
        return ModelConfig.model_validate(
            {
                "vocab_size": values["vocab_size"],
                "d_model": values["hidden_size"],
                "num_heads": values["num_attention_heads"],
                "num_kv_heads": values.get("num_key_value_heads"),
                "head_dim": values.get("head_dim"),
                "num_layers": values["num_hidden_layers"],
                "sequence_length": values["max_position_embeddings"],
                "ffn_expansion": values["intermediate_size"] / values["hidden_size"],
                "norm_epsilon": values.get("rms_norm_eps", 1e-6),
                "qk_norm": kind == "qwen3",
                "tie_embeddings": values.get("tie_word_embeddings", False),
                "rope_theta": rope.get("rope_theta", values.get("rope_theta", 10_000.0)),
            }
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"The config.json of this {kind} model is damaged: {' '.join(str(error).split())}."
        ) from None


def export_weights(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """A state dict of ours under the names of the stock class that has this shape (ours, if none has)."""
    kind = family(config)
    if config.tie_embeddings:
        # safetensors stores no tensor twice; whoever loads ties them again.
        state = {name: tensor for name, tensor in state.items() if name != "head.weight"}
    if kind == "fundamentallm":
        return {name: tensor.contiguous() for name, tensor in state.items()}
    exported: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if kind == "gpt2":
            # GPT-2 keeps its linear weights as (inputs, outputs), the transpose of everybody else's.
            linear = name.startswith("blocks.") and tensor.ndim == 2
            exported[_renamed(name, _GPT2_NAMES)] = (tensor.T if linear else tensor).contiguous()
        else:
            exported |= _split(_renamed(name, _LLAMA_NAMES), tensor, config)
    return exported


def import_weights(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The inverse of :func:`export_weights`; raises KeyError when a tensor is missing."""
    kind = family(config)
    if kind == "fundamentallm":
        return _tied(dict(tensors), config)
    names = {theirs: ours for ours, theirs in (_GPT2_NAMES if kind == "gpt2" else _LLAMA_NAMES).items()}
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ours = _renamed(name, names)
        if kind == "gpt2":
            linear = ours.startswith("blocks.") and tensor.ndim == 2
            state[ours] = tensor.T.contiguous() if linear else tensor
        elif ".k_proj" in name or ".v_proj" in name or ".up_proj" in name:
            continue  # joined below, with the first part of its fused matrix
        elif ".q_proj" in name:
            keys, values = name.replace("q_proj", "k_proj"), name.replace("q_proj", "v_proj")
            state[ours.replace("q_proj", "qkv")] = cat([tensor, tensors[keys], tensors[values]])
        elif ".gate_proj" in name:
            state[ours.replace("gate_proj", "gate_up")] = cat([tensor, tensors[name.replace("gate_proj", "up_proj")]])
        else:
            state[ours] = tensor
    return _tied(state, config)


def _tied(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    if config.tie_embeddings and "embedding.weight" in state:
        state["head.weight"] = state["embedding.weight"]
    return state


def _split(name: str, tensor: Tensor, config: ModelConfig) -> dict[str, Tensor]:
    """Take a fused matrix apart into the stock class's separate ones."""
    if name.endswith("qkv.weight"):
        queries, keys = config.num_heads * config.head_width, config.kv_heads * config.head_width
        parts = zip(("q_proj", "k_proj", "v_proj"), split(tensor, [queries, keys, keys]), strict=True)
        return {name.replace("qkv", part): weight.contiguous() for part, weight in parts}
    if name.endswith("gate_up.weight"):
        parts = zip(("gate_proj", "up_proj"), tensor.chunk(2), strict=True)
        return {name.replace("gate_up", part): weight.contiguous() for part, weight in parts}
    return {name: tensor.contiguous()}


_LLAMA_NAMES = {
    "embedding.": "model.embed_tokens.",
    "blocks.": "model.layers.",
    ".attention_norm.": ".input_layernorm.",
    ".attention.output.": ".self_attn.o_proj.",
    ".attention.query_norm.": ".self_attn.q_norm.",
    ".attention.key_norm.": ".self_attn.k_norm.",
    ".attention.": ".self_attn.",
    ".feed_forward_norm.": ".post_attention_layernorm.",
    ".feed_forward.down.": ".mlp.down_proj.",
    ".feed_forward.": ".mlp.",
    "final_norm.": "model.norm.",
    "head.": "lm_head.",
}
_GPT2_NAMES = {
    "embedding.": "transformer.wte.",
    "positions.": "transformer.wpe.",
    "blocks.": "transformer.h.",
    ".attention_norm.": ".ln_1.",
    ".attention.qkv.": ".attn.c_attn.",
    ".attention.output.": ".attn.c_proj.",
    ".feed_forward_norm.": ".ln_2.",
    ".feed_forward.up.": ".mlp.c_fc.",
    ".feed_forward.down.": ".mlp.c_proj.",
    "final_norm.": "transformer.ln_f.",
}


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """Apply the first matching prefix and the first matching inner part, in the table's order."""
    for old, new in table.items():
        if not old.startswith(".") and name.startswith(old):
            name = new + name.removeprefix(old)
            break
    for old, new in table.items():
        if old.startswith(".") and old in name:
            return name.replace(old, new, 1)
    return name
