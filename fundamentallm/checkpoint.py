"""A model at rest: config, tokenizer and weights as a Hugging Face folder, or as one file.

A checkpoint folder holds ``config.json``, ``model.safetensors``, ``tokenizer.json``, ``tokenizer_config.json`` and
``generation_config.json``, which transformers loads where the shape is a stock one, our own ``config.yaml``, and while
training ``trainer_state.pt``. Nothing is ever loaded by a means that could run code: weights are safetensors, and
``.pt`` files are read with ``weights_only``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file as write_safetensors
from torch import Tensor

from fundamentallm.config import Config, GenerationConfig, ModelConfig, load_config
from fundamentallm.data.tokenizers import BaseTokenizer, load_tokenizer, tokenizer_from_json
from fundamentallm.errors import CheckpointError, ConfigError, FundamentaLLMError, RunError
from fundamentallm.models import BaseModel, build_model
from fundamentallm.models.interchange import (
    export_weights,
    import_weights,
    model_config,
    transformers_config,
)
from fundamentallm.runs.files import (
    flush_to_disk,
    read_json,
    remove_tree,
    rename_into_place,
    temporary_name,
    write_atomically,
)
from fundamentallm.runs.run_directory import RunDirectory, checkpoint_step

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TRAINER_STATE_FILE = "trainer_state.pt"
_FORMAT = "fundamentallm"
_HEAD = "head.weight"


@dataclass
class Checkpoint:
    """A model with everything needed to use it, and where it came from."""

    model: BaseModel
    tokenizer: BaseTokenizer
    config: Config
    path: Path | None
    step: int


def save_checkpoint(
    directory: Path,
    model: BaseModel,
    tokenizer: BaseTokenizer,
    config: Config,
    *,
    trainer_state: Mapping[str, Any] | None = None,
    step: int = 0,
) -> None:
    """Write a checkpoint folder, all of it or nothing.

    A folder that does not exist appears complete, by a rename. In one that exists, ours are replaced file by file and
    other files stay.

    Raises:
        CheckpointError: There is no room, or no permission; what was there before is intact.
    """
    with _saving(directory) as temporary:
        temporary.mkdir(parents=True)
        weights = export_weights(_state(model), config.model)
        _save_safetensors(weights, temporary / WEIGHTS_FILE, metadata={"format": "pt", "step": str(step)})
        _write_json(temporary / "config.json", _config_json(config.model, tokenizer))
        _write_json(temporary / "generation_config.json", _generation_json(config.generation, tokenizer))
        (temporary / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        tokenizer.save(temporary)
        if trainer_state is not None:
            torch.save(dict(trainer_state), temporary / TRAINER_STATE_FILE)
        flush_to_disk(temporary)
        if not directory.exists():
            rename_into_place(temporary, directory)
        else:
            for file in temporary.iterdir():
                rename_into_place(file, directory / file.name)


def save_file(path: Path, model: BaseModel, tokenizer: BaseTokenizer, config: Config, *, step: int = 0) -> None:
    """Write everything into one ``.pt`` or ``.safetensors`` file, complete or not at all.

    Raises:
        CheckpointError: The name has another ending, or the file cannot be written.
    """
    texts = {"format": _FORMAT, "config": config.to_yaml(), "tokenizer": tokenizer.to_json(), "step": str(step)}
    with _saving(path) as temporary:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            # `format: pt` is what transformers and the Hub expect to find in a safetensors header.
            weights = export_weights(_state(model), config.model)
            _save_safetensors(weights, temporary, metadata=texts | {"format": "pt"})
        elif path.suffix == ".pt":
            torch.save(texts | {"weights": _state(model)}, temporary)
        else:
            raise CheckpointError(f"A model is saved as a folder, a .pt or a .safetensors file, not as {path.name!r}.")
        rename_into_place(temporary, path)


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> Checkpoint:
    """Load a run directory (its best checkpoint), a checkpoint folder, a ``.safetensors`` or a ``.pt`` file.

    Raises:
        CheckpointError: It is missing, damaged, or not one of ours; in one sentence.
    """
    path = Path(path)
    if RunDirectory(path).exists:
        return _load_from_run(RunDirectory(path), device)
    if path.is_dir():
        return _load_folder(path, device)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {str(path)!r}: check the path.")
    if path.suffix == ".safetensors":
        return _load_safetensors_file(path, device)
    if path.suffix == ".pt":
        return _load_pt_file(path, device)
    raise CheckpointError(f"{str(path)!r} is no checkpoint: give a run, a folder, a .safetensors or a .pt file.")


def load_trainer_state(directory: Path) -> dict[str, Any]:
    """The optimizer, random number generator and counters saved beside the weights.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    return _load_pt(directory / TRAINER_STATE_FILE)


def _load_from_run(run: RunDirectory, device: str | torch.device) -> Checkpoint:
    # While the run is training, the best checkpoint may be superseded and deleted just as it is read.
    for attempt in range(3):
        try:
            folder = run.checkpoint("best")
        except RunError as error:
            raise CheckpointError(str(error)) from None
        try:
            return _load_folder(folder, device)
        except CheckpointError:
            if folder.is_dir() or attempt == 2:
                raise
    raise AssertionError("unreachable")


def _load_folder(folder: Path, device: str | torch.device) -> Checkpoint:
    folder = folder.resolve()  # `best` may point elsewhere before the last file is read
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{str(folder)!r} is no checkpoint folder: it has no config.json.")
    weights_path = _weights_path(folder)
    config = folder_config(folder)
    tokenizer = load_tokenizer(folder)
    if not (folder / "config.yaml").is_file():
        config = config.with_values(data={"source": (), "tokenizer": tokenizer.name})
    weights, metadata = (
        _read_safetensors(weights_path) if weights_path.suffix != ".json" else _read_shards(weights_path)
    )
    model = _model_from(config, tokenizer, _imported(weights, config.model, weights_path), weights_path)
    return Checkpoint(model.to(device), tokenizer, config, folder, _step(metadata, folder))


def _weights_path(folder: Path) -> Path:
    """The file with the weights, or the index of several."""
    for name in (WEIGHTS_FILE, INDEX_FILE):
        if (folder / name).is_file():
            return folder / name
    pickled = next(
        (path.name for pattern in ("*.bin", "*.pth", "*.h5", "*.msgpack") for path in folder.glob(pattern)), None
    )
    if pickled is not None:
        raise CheckpointError(
            f"The weights in {str(folder)!r} are in {pickled}, a format that can run code or that is not read here: "
            f"convert them to {WEIGHTS_FILE}."
        )
    raise CheckpointError(f"The checkpoint {str(folder)!r} is incomplete: it has no {WEIGHTS_FILE}.")


def folder_config(folder: Path) -> Config:
    """The configuration of a checkpoint folder, from our ``config.yaml`` or from the ``config.json`` of somebody else.

    Raises:
        CheckpointError: The file is damaged, or describes a model that ours cannot be; in one sentence.
    """
    if (folder / "config.yaml").is_file():
        try:
            return load_config(file=folder / "config.yaml", environment=False)
        except ConfigError as error:
            raise CheckpointError(f"The config.yaml of {str(folder)!r} is damaged: {error}") from None
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise CheckpointError(f"The config.json of {str(folder)!r} is damaged.")
    generation = _generation_defaults(read_json(folder / "generation_config.json") or {})
    return Config(model=model_config(values), generation=generation)


def _generation_defaults(values: Mapping[str, Any]) -> GenerationConfig:
    """How the makers of a model recommend to draw from it, where our samplers can."""
    fields = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    given = (
        {field: values[field] for field in fields if values.get(field) is not None} if values.get("do_sample") else {}
    )
    try:
        return GenerationConfig.model_validate({field: value or None for field, value in given.items()})
    except ValueError:
        return GenerationConfig()


def _load_safetensors_file(path: Path, device: str | torch.device) -> Checkpoint:
    weights, metadata = _read_safetensors(path)
    if "config" not in metadata or "tokenizer" not in metadata:
        if path.name == WEIGHTS_FILE and (path.parent / "config.json").is_file():
            return _load_folder(path.parent, device)
        raise CheckpointError(f"{str(path)!r} holds weights only, without FundamentaLLM's config and tokenizer.")
    config = _parsed_config(metadata["config"], path)
    tokenizer = tokenizer_from_json(metadata["tokenizer"])
    model = _model_from(config, tokenizer, _imported(weights, config.model, path), path)
    return Checkpoint(model.to(device), tokenizer, config, path, _step(metadata, path))


def _load_pt_file(path: Path, device: str | torch.device) -> Checkpoint:
    content = _load_pt(path)
    texts = [content.get(key) for key in ("config", "tokenizer")]
    weights = content.get("weights")
    if content.get("format") != _FORMAT or not isinstance(weights, dict) or not all(isinstance(t, str) for t in texts):
        raise CheckpointError(f"{str(path)!r} was not saved by FundamentaLLM, so it cannot be loaded.")
    config = _parsed_config(str(texts[0]), path)
    tokenizer = tokenizer_from_json(str(texts[1]))
    model = _model_from(config, tokenizer, weights, path)
    return Checkpoint(model.to(device), tokenizer, config, path, _step(content, path))


def _load_pt(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"The file {str(path)!r} is missing.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a file by a stranger can fail in any way; none of them may run its code or crash ours
        raise CheckpointError(
            f"{str(path)!r} is damaged, or holds more than plain weights and was refused because it could run code."
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{str(path)!r} was not saved by FundamentaLLM, so it cannot be loaded.")
    return content


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError):
        raise CheckpointError(f"The weights in {str(path)!r} are damaged or incomplete.") from None


def _read_shards(index: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights that are spread over several files, as the index lists them."""
    names = (read_json(index) or {}).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) and Path(n).name == n for n in names.values()):
        raise CheckpointError(f"{str(index)!r} is damaged.")
    weights: dict[str, Tensor] = {}
    for name in sorted(set(names.values())):
        if not (index.parent / name).is_file():
            raise CheckpointError(f"The checkpoint {str(index.parent)!r} is incomplete: it has no {name}.")
        weights |= _read_safetensors(index.parent / name)[0]
    return weights, {}


def _save_safetensors(weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Equal models become equal files: the library writes its metadata in an order that changes from run to run."""
    path.touch()
    usual = path.stat().st_mode
    write_safetensors(dict(weights), path, metadata=dict(metadata))
    path.chmod(usual)  # the library lets only the owner read it, and a model is there to be shared
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(content) <= size:  # the library's own spelling of a string may be shorter: then its order stays
            file.seek(8)
            file.write(content.ljust(size))


def _parsed_config(text: str, path: Path) -> Config:
    try:
        tree = yaml.safe_load(text)
        if not isinstance(tree, dict):
            raise CheckpointError(f"The configuration inside {str(path)!r} is damaged.")
        return load_config(values=tree, environment=False)
    except (yaml.YAMLError, ConfigError, AttributeError) as error:
        reason = " ".join(str(error).split()).removesuffix(".")
        raise CheckpointError(f"The configuration inside {str(path)!r} is damaged: {reason}.") from None


def _imported(weights: dict[str, Tensor], config: ModelConfig, path: Path) -> dict[str, Tensor]:
    try:
        return import_weights(weights, config)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"The weights in {str(path)!r} do not fit the model they belong to: {error}.") from None


def _model_from(config: Config, tokenizer: BaseTokenizer, weights: Mapping[str, Any], path: Path) -> BaseModel:
    expected = config.model.vocab_size
    if expected is None or tokenizer.vocab_size > expected:
        raise CheckpointError(
            f"The tokenizer beside {str(path)!r} has {tokenizer.vocab_size} tokens, but the model knows {expected}."
        )
    try:
        model = build_model(config.model)
        state = {name: tensor.float() for name, tensor in weights.items()}
        names = model.state_dict().keys()
        if config.model.tie_embeddings and _HEAD in names:
            state[_HEAD] = state["embedding.weight"]
        model.load_state_dict(state)
    except FundamentaLLMError as error:
        raise CheckpointError(f"The model in {str(path)!r} cannot be built: {error}") from None
    except (RuntimeError, KeyError, AttributeError) as error:
        # torch's first line names the class; what follows says what is missing or of another shape.
        reason = " ".join(str(error).split(":", 1)[-1].split())[:200].rstrip(".")
        raise CheckpointError(f"The weights in {str(path)!r} do not fit the model they belong to: {reason}.") from None
    return model.eval()


def _state(model: BaseModel) -> dict[str, Tensor]:
    """The weights in float32 on the CPU; a tied output layer is left out, being the embedding."""
    state = model.state_dict()
    if model.config.tie_embeddings:
        state.pop(_HEAD, None)
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in state.items()}


def _config_json(config: ModelConfig, tokenizer: BaseTokenizer) -> dict[str, Any]:
    return transformers_config(
        config, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id
    )


def _generation_json(config: GenerationConfig, tokenizer: BaseTokenizer) -> dict[str, Any]:
    sampling: dict[str, Any] = {"do_sample": False}
    if config.strategy != "greedy" and config.temperature > 0:
        # transformers restricts to the 50 likeliest tokens unless told otherwise; 0 turns that off.
        sampling = {"do_sample": True, "temperature": config.temperature, "top_k": config.top_k or 0}
        sampling |= {name: value for name, value in (("top_p", config.top_p), ("min_p", config.min_p)) if value}
    return sampling | {
        "max_new_tokens": config.max_tokens,
        "repetition_penalty": config.repetition_penalty,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _step(values: Mapping[str, Any], path: Path) -> int:
    text = str(values.get("step", ""))
    return int(text) if text.isdecimal() else checkpoint_step(path)


@contextmanager
def _saving(target: Path) -> Iterator[Path]:
    """A temporary name to write to; whatever goes wrong leaves nothing behind and becomes one sentence."""
    if target.is_symlink():
        target = target.resolve()
    temporary = temporary_name(target)
    try:
        remove_tree(temporary)
        yield temporary
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _no_room(error, target) or " ".join(str(error).split())
        raise CheckpointError(f"{target.name} could not be saved: {reason}.") from error
    finally:
        with suppress(OSError):
            remove_tree(temporary)


def _no_room(error: Exception, target: Path) -> str | None:
    # torch and safetensors report a full disk in words of their own; the free space tells it apart from a bug.
    text = str(error)
    full = any(words in text for words in ("No space left", "File too large", "Disk quota exceeded"))
    existing = next((parent for parent in target.absolute().parents if parent.exists()), None)
    if not full and existing is not None and shutil.disk_usage(existing).free < 1 << 20:
        full = True
    return f"the disk that holds {os.fspath(existing or target)!r} is full" if full else None
