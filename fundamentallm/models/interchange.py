"""Our weights and shapes in the words of `transformers`, and back.

Three stock architectures fit our transformer exactly: Qwen3 (RMSNorm, RoPE, SwiGLU, QK-norm; our default), Llama (the
same without QK-norm, with or without biases) and GPT-2 (LayerNorm, learned positions, GELU, biases). A configuration of
one of these shapes is saved under the stock class's own names, so that `AutoModelForCausalLM.from_pretrained(folder)`
loads it as it is. Any other is saved under our names with ``model_type: fundamentallm`` and loads with us alone.

The other way, a folder of one of the three families that somebody else wrote becomes a configuration and weights of
ours, unless it uses something that our transformer has not: that is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError
from torch import Tensor, cat, equal, split

from fundamentallm.config import ModelConfig
from fundamentallm.errors import CheckpointError

Family = Literal["qwen3", "llama", "gpt2", "fundamentallm"]
_CLASS_NAMES: dict[Family, str] = {
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}

# Our shape → theirs -------------------------------------------------------------------------------------------------

_SHAPES: dict[Family, dict[str, object]] = {
    "qwen3": {"norm": "rmsnorm", "pos_encoding": "rope", "activation": "swiglu", "qk_norm": True, "bias": False},
    "llama": {"norm": "rmsnorm", "pos_encoding": "rope", "activation": "swiglu", "qk_norm": False},
    "gpt2": {"norm": "layernorm", "pos_encoding": "learned", "activation": "gelu", "qk_norm": False, "bias": True},
}


def family(config: ModelConfig) -> Family:
    """The stock architecture that has exactly this shape, or ``"fundamentallm"`` if none has."""
    return next((kind for kind in _SHAPES if not _misfits(config, kind)), "fundamentallm")


def why_ours_alone(config: ModelConfig) -> str | None:
    """What keeps a shape from being one of `transformers`' own, in one sentence; None where nothing does."""
    if family(config) != "fundamentallm":
        return None
    nearest = min(_SHAPES, key=lambda kind: len(_misfits(config, kind)))
    return (
        f"This shape is FundamentaLLM's alone and no stock class of transformers can load it: to be a {nearest} model "
        f"it would need {', '.join(_misfits(config, nearest))}."
    )


def _misfits(config: ModelConfig, kind: Family) -> list[str]:
    """What would have to be different for the shape to be of this family."""
    if config.architecture != "transformer":
        return ["architecture=transformer"]
    shape = config.model_dump()
    wrong = [f"{field}={str(value).lower()}" for field, value in _SHAPES[kind].items() if shape[field] != value]
    if kind == "llama" and config.d_model % config.num_heads:
        wrong.append("a d_model divisible by num_heads")
    if kind == "gpt2" and config.kv_heads != config.num_heads:
        wrong.append("as many num_kv_heads as num_heads")
    if kind == "gpt2" and config.head_width * config.num_heads != config.d_model:
        wrong.append("a head_dim of d_model / num_heads")
    return wrong


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
        return common | {"note": f"{why_ours_alone(config)} Load it with fundamentallm.load(folder)."}
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
    biases = {"attention_bias": config.bias} | ({"mlp_bias": config.bias} if kind == "llama" else {})
    return (
        common
        | biases
        | {
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
            "attention_dropout": 0.0,
        }
    )


# Their shape → ours -------------------------------------------------------------------------------------------------

# What transformers assumes where config.json is silent.
_ROTARY_DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen3": _ROTARY_DEFAULTS
    | {
        "vocab_size": 151_936,
        "intermediate_size": 22_016,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32_768,
    },
    "llama": _ROTARY_DEFAULTS | {"vocab_size": 32_000, "intermediate_size": 11_008, "max_position_embeddings": 2048},
    "gpt2": {
        "vocab_size": 50_257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
}
# Where a field has another value than these, the first being the default, our transformer would compute something else.
_ROTARY_LIMITS: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "use_sliding_window": (False,),
}
_LIMITS: dict[str, dict[str, tuple[object, ...]]] = {
    "qwen3": _ROTARY_LIMITS | {"attention_bias": (False,)},
    "llama": _ROTARY_LIMITS,
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
        "add_cross_attention": (False,),
    },
}


def model_config(values: Mapping[str, Any]) -> ModelConfig:
    """The shape that a Qwen3, Llama or GPT-2 ``config.json`` describes, for a folder that somebody else wrote.

    Raises:
        CheckpointError: It is of another family, or uses a feature that our transformer lacks; the field is named.
    """
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in _DEFAULTS:
        raise CheckpointError(
            f"This is a model of the type {kind!r}: besides FundamentaLLM's own, only {', '.join(_DEFAULTS)} can be "
            "loaded (model_type in config.json)."
        )
    given = {field: value for field, value in values.items() if value is not None}
    _require_plain(kind, given)
    read = _DEFAULTS[kind] | given
    try:
        shape = _gpt2_shape(read) if kind == "gpt2" else _rotary_shape(kind, read)
        return ModelConfig.model_validate(shape)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())
    raise CheckpointError(f"The config.json of this {kind} model is damaged: {reason}.")


def _gpt2_shape(read: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": read["vocab_size"],
        "d_model": read["n_embd"],
        "num_heads": read["n_head"],
        "num_layers": read["n_layer"],
        "sequence_length": read["n_positions"],
        "ffn_expansion": read.get("n_inner", 4 * read["n_embd"]) / read["n_embd"],
        "activation": "gelu",
        "norm": "layernorm",
        "norm_epsilon": read["layer_norm_epsilon"],
        "pos_encoding": "learned",
        "qk_norm": False,
        "bias": True,
        "tie_embeddings": read["tie_word_embeddings"],
    }


def _rotary_shape(kind: str, read: Mapping[str, Any]) -> dict[str, Any]:
    rope = read.get("rope_parameters", {})
    return {
        "vocab_size": read["vocab_size"],
        "d_model": read["hidden_size"],
        "num_heads": read["num_attention_heads"],
        "num_kv_heads": read.get("num_key_value_heads"),
        "head_dim": read.get("head_dim"),
        "num_layers": read["num_hidden_layers"],
        "sequence_length": read["max_position_embeddings"],
        "ffn_expansion": read["intermediate_size"] / read["hidden_size"],
        "norm_epsilon": read["rms_norm_eps"],
        "qk_norm": kind == "qwen3",
        "bias": read.get("attention_bias", False),
        "tie_embeddings": read["tie_word_embeddings"],
        "rope_theta": rope.get("rope_theta", read.get("rope_theta", 10_000.0)),
    }


def _require_plain(kind: str, given: Mapping[str, Any]) -> None:
    """Refuse by name what our transformer would compute differently."""
    for field, allowed in _LIMITS[kind].items():
        if given.get(field, allowed[0]) not in allowed:
            raise _unsupported(kind, field, given[field], allowed[0])
    if "quantization_config" in given:
        raise _unsupported(kind, "quantization_config", "set", "weights that are not quantized")
    if kind == "gpt2":
        return
    for field in ("rope_parameters", "rope_scaling"):
        rope = given.get(field, {})
        if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
            raise _unsupported(kind, field, rope, "one set of rotary wavelengths")
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type != "default":
            raise _unsupported(kind, f"{field}.rope_type", rope_type, "default")
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise _unsupported(kind, f"{field}.partial_rotary_factor", rope["partial_rotary_factor"], 1.0)
    other = [layer for layer in given.get("layer_types", ()) if layer != "full_attention"]
    if other:
        raise _unsupported(kind, "layer_types", other[0], "full_attention")
    if kind == "llama" and given.get("mlp_bias", False) != given.get("attention_bias", False):
        raise _unsupported(kind, "mlp_bias", given.get("mlp_bias", False), "the value of attention_bias")


def _unsupported(kind: str, field: str, found: object, supported: object) -> CheckpointError:
    return CheckpointError(
        f"This {kind} model cannot be loaded: its config.json has {field} {found!r}, "
        f"and FundamentaLLM supports only {supported!r} there."
    )


# Weights -------------------------------------------------------------------------------------------------------------


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
    for name, tensor in _plain_names(tensors, kind).items():
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


# Tables that older versions of transformers stored among the weights, and that follow from the configuration.
_COMPUTED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


def _plain_names(tensors: Mapping[str, Tensor], kind: Family) -> dict[str, Tensor]:
    """Only what was learned, under the names that today's classes use."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(_COMPUTED)}
    if kind == "gpt2" and "wte.weight" in kept:  # the first GPT-2 checkpoints were saved without their head
        return {name if name.startswith("lm_head.") else f"transformer.{name}": t for name, t in kept.items()}
    return kept


def _tied(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    if not config.tie_embeddings or "embedding.weight" not in state:
        return state
    embedding = state["embedding.weight"]
    head = state.setdefault("head.weight", embedding)
    if not equal(head, embedding):
        raise CheckpointError(
            "The config.json of this model has tie_word_embeddings true, but its output layer is not its embedding: "
            "set it to false there."
        )
    return state


def _split(name: str, tensor: Tensor, config: ModelConfig) -> dict[str, Tensor]:
    """Take a fused matrix, or its bias, apart into the stock class's separate ones."""
    if ".qkv." in name:
        queries, keys = config.num_heads * config.head_width, config.kv_heads * config.head_width
        parts = zip(("q_proj", "k_proj", "v_proj"), split(tensor, [queries, keys, keys]), strict=True)
        return {name.replace("qkv", part): weight.contiguous() for part, weight in parts}
    if ".gate_up." in name:
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
    "head.": "lm_head.",
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
