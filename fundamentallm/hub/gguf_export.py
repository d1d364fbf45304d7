"""A model as one GGUF file, the format of llama.cpp and the programs built on it.

llama.cpp has Qwen3, Llama and GPT-2 and byte-level BPE; a vocabulary of single characters it has not.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fundamentallm.config import Config, ModelConfig
from fundamentallm.data.tokenizers import BaseTokenizer
from fundamentallm.errors import CheckpointError
from fundamentallm.models import BaseModel
from fundamentallm.models.interchange import Family, export_weights, family, why_ours_alone
from fundamentallm.runs.files import remove_tree, rename_into_place, temporary_name

if TYPE_CHECKING:
    from gguf import GGUFWriter

# How text is cut into words before merging, under llama.cpp's names. It knows these expressions by heart and none else.
_GPT2_WORDS = "gpt-2"
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_QWEN_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
_WORDS = {_LLAMA3_WORDS: "llama-bpe", _QWEN_WORDS: "qwen2"}


def save_gguf(path: Path, model: BaseModel, tokenizer: BaseTokenizer, config: Config, *, half: bool = True) -> None:
    """Write a GGUF file, complete or not at all.

    Args:
        path: The file to make, or to replace.
        model: Its weights.
        tokenizer: Byte-level BPE, ours or that of a model from elsewhere.
        config: Its shape.
        half: Store matrices in 16 bits, as is usual there; in 32 otherwise.

    Raises:
        CheckpointError: llama.cpp could not run it, or the package `gguf` is missing, or the file cannot be written.
    """
    kind, words, document = _requirements(tokenizer, config)
    import gguf

    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(temporary, kind)
        writer.add_name(path.stem)
        _add_shape(writer, config.model, half)
        _add_vocabulary(writer, tokenizer, document, words, config.model)
        for name, tensor in _tensors(model, config.model, kind).items():
            matrix = tensor.ndim == 2 and half and "position_embd" not in name
            writer.add_tensor(name, tensor.to(torch.float16 if matrix else torch.float32).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        rename_into_place(temporary, path)
    except OSError as error:
        raise CheckpointError(f"{path.name} could not be saved: {(error.strerror or str(error)).lower()}.") from error
    finally:
        remove_tree(temporary)


def require_gguf(tokenizer: BaseTokenizer, config: Config) -> None:
    """Raise CheckpointError, with one sentence on the reason, where a model cannot be written as GGUF."""
    _requirements(tokenizer, config)


def _requirements(tokenizer: BaseTokenizer, config: Config) -> tuple[Family, str, dict[str, Any]]:
    """The architecture, and what :func:`_require_byte_level_bpe` returns."""
    if find_spec("gguf") is None:  # an extra: only for this
        raise CheckpointError("Writing GGUF needs the package gguf: run `pip install gguf`.")
    kind = family(config.model)
    if kind == "fundamentallm":
        raise CheckpointError(f"This model cannot be written as GGUF. {why_ours_alone(config.model)}")
    return kind, *_require_byte_level_bpe(tokenizer)


def _require_byte_level_bpe(tokenizer: BaseTokenizer) -> tuple[str, dict[str, Any]]:
    """The name of the word splitting and the tokenizer's description, or one sentence on why there is none."""
    document = tokenizer.document()
    if document["model"].get("type") != "BPE" or '"ByteLevel"' not in str(document["decoder"]).replace("'", '"'):
        raise CheckpointError(
            f"A {tokenizer.name} vocabulary cannot be expressed in GGUF: llama.cpp reads byte-level BPE; train with "
            "data.tokenizer=bpe for that."
        )
    step = document["pre_tokenizer"] or {}
    steps = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    words = None
    match steps:
        case [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            words = _GPT2_WORDS
        case [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}]:
            words = "smollm"
        case [{"type": "Split", "pattern": {"Regex": str(expression)}}, {"type": "ByteLevel", "use_regex": False}]:
            words = _WORDS.get(expression)
        case _:
            pass
    if words is None:
        raise CheckpointError(
            "This vocabulary cannot be expressed in GGUF: it cuts text into words in a way that llama.cpp does not "
            "know."
        )
    return words, document


def _add_shape(writer: GGUFWriter, shape: ModelConfig, half: bool) -> None:
    import gguf

    writer.add_context_length(shape.sequence_length)
    writer.add_embedding_length(shape.d_model)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.ffn_width)
    writer.add_head_count(shape.num_heads)
    if shape.norm == "layernorm":
        writer.add_layer_norm_eps(shape.norm_epsilon)
    else:
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_key_length(shape.head_width)
        writer.add_value_length(shape.head_width)
        writer.add_rope_dimension_count(shape.head_width)
        writer.add_rope_freq_base(shape.rope_theta)
        writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)


def _add_vocabulary(
    writer: GGUFWriter, tokenizer: BaseTokenizer, document: dict[str, Any], words: str, shape: ModelConfig
) -> None:
    import gguf

    assert shape.vocab_size is not None
    # A model may have room for more tokens than there are.
    contents = [f"[PAD{number}]" for number in range(shape.vocab_size)]
    types = [gguf.TokenType.UNUSED] * shape.vocab_size
    for content, number in document["model"]["vocab"].items():
        contents[number], types[number] = content, gguf.TokenType.NORMAL
    for token in document["added_tokens"]:
        contents[token["id"]] = token["content"]
        types[token["id"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    merges = document["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words)
    writer.add_token_list(contents)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for number, add in (
        (tokenizer.bos_id, writer.add_bos_token_id),
        (tokenizer.eos_id, writer.add_eos_token_id),
        (tokenizer.unk_id, writer.add_unk_token_id),
        (tokenizer.pad_id, writer.add_pad_token_id),
    ):
        if number is not None:
            add(number)
    writer.add_add_bos_token(bool(tokenizer.prefix))


def _tensors(model: BaseModel, shape: ModelConfig, kind: Family) -> dict[str, Tensor]:
    """The weights under the names of llama.cpp."""
    import gguf

    architecture = {"qwen3": gguf.MODEL_ARCH.QWEN3, "llama": gguf.MODEL_ARCH.LLAMA, "gpt2": gguf.MODEL_ARCH.GPT2}[kind]
    names = gguf.get_tensor_name_map(architecture, shape.num_layers)
    state = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in model.state_dict().items()}
    tensors: dict[str, Tensor] = {}
    for theirs, tensor in export_weights(state, shape).items():
        name = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert name is not None, theirs
        if kind == "gpt2" and theirs.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            tensors[name] = tensor.T.contiguous()  # GPT-2 keeps these as (inputs, outputs), llama.cpp does not
        elif kind == "llama" and (".q_proj." in theirs or ".k_proj." in theirs):
            tensors[name] = _interleaved(tensor, shape.num_heads if ".q_proj." in theirs else shape.kv_heads)
        else:
            tensors[name] = tensor.contiguous()
    return tensors


def _interleaved(tensor: Tensor, heads: int) -> Tensor:
    """llama.cpp's Llama rotates neighbouring components together, where everybody else rotates the two halves."""
    halves = tensor.view(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])  # (H, 2, D/2, ...)
    return halves.transpose(1, 2).reshape(tensor.shape)
