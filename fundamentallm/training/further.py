"""Training that starts from a checkpoint instead of from random weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fundamentallm.checkpoint import Checkpoint, load_checkpoint
from fundamentallm.config import Config, load_config, read_yaml
from fundamentallm.data.foreign_tokenizer import ForeignTokenizer
from fundamentallm.errors import ConfigError
from fundamentallm.hub.download import find_checkpoint
from fundamentallm.models import BaseModel

# What was learned should bend and not break: a tenth of the rate it was learned at.
_SLOWER = 0.1
# Usual for further training of published models, which were trained by AdamW.
_FOREIGN_LEARNING_RATE = 5e-5
# The rest of the shape is in the weights.
_FREE = ("sequence_length", "dropout")


def starting_point(name: str) -> Checkpoint:
    """The checkpoint that ``training.from_checkpoint`` names, here or on the Hub.

    Raises:
        CheckpointError: It is missing or damaged.
        HubError: It is nowhere here, and the Hub does not have it either.
    """
    return load_checkpoint(find_checkpoint(name))


def inherited(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """The settings that a further training takes over where nothing else is said: ``base`` of ``load_config``.

    The shape of the model and the kind of its vocabulary, and how it was trained, more slowly.
    """
    before = checkpoint.config.training
    if isinstance(checkpoint.tokenizer, ForeignTokenizer):
        recipe: dict[str, Any] = {"optimizer": "adamw", "learning_rate": _FOREIGN_LEARNING_RATE}
    else:
        # A second further training is not ten times slower again.
        factor = _SLOWER if before.from_checkpoint is None else 1.0
        recipe = {
            "optimizer": before.optimizer,
            "learning_rate": float(f"{before.learning_rate * factor:.3g}"),
            "muon_learning_rate": float(f"{before.muon_learning_rate * factor:.3g}"),
        }
    vocabulary = {"tokenizer": checkpoint.tokenizer.name, "vocab_size": checkpoint.config.data.vocab_size}
    return {"model": checkpoint.config.model.model_dump(), "data": vocabulary, "training": recipe}


def further_config(
    checkpoint: Checkpoint,
    *,
    preset: str | None = None,
    file: str | Path | None = None,
    overrides: Iterable[str] = (),
    values: Mapping[str, Mapping[str, object]] | None = None,
) -> Config:
    """``load_config`` for a further training: the checkpoint's settings come between file and environment.

    A file that itself says ``training.from_checkpoint`` was written for this, and its settings stay.

    Raises:
        ConfigError: A setting cannot work, or contradicts the weights.
    """
    base = inherited(checkpoint)
    written = read_yaml(file) if file is not None else {}
    training = written.get("training")
    if isinstance(training, Mapping) and training.get("from_checkpoint") is not None:
        base["training"] = {name: value for name, value in base["training"].items() if name not in training}
    config = load_config(preset=preset, file=file, overrides=overrides, values=values, base=base)
    require_same_shape(config, checkpoint)
    return config


def require_same_shape(config: Config, checkpoint: Checkpoint) -> None:
    """Refuse to change what is fixed by the weights; raises ConfigError naming the field."""
    old, new = checkpoint.config.model.model_dump(), config.model.model_dump()
    changed = [field for field in old if field not in _FREE and old[field] != new[field]]
    if changed:
        field = changed[0]
        raise ConfigError(
            f"model.{field} comes with the checkpoint's weights and is {old[field]!r}: leave it out, or train from "
            "scratch."
        )
    if checkpoint.config.model.pos_encoding == "learned" and new["sequence_length"] > old["sequence_length"]:
        raise ConfigError(
            f"model.sequence_length is {new['sequence_length']}, but the checkpoint has learned only "
            f"{old['sequence_length']} positions: use at most that many."
        )
    if config.data.tokenizer != checkpoint.tokenizer.name:
        raise ConfigError(
            f"data.tokenizer comes with the checkpoint and is {checkpoint.tokenizer.name!r}: leave it out, or train "
            "from scratch."
        )


def copy_weights(model: BaseModel, checkpoint: Checkpoint) -> None:
    """Give ``model`` the weights of ``checkpoint``; of learned positions only as many as it has."""
    weights: dict[str, Tensor] = checkpoint.model.state_dict()
    for name, wanted in model.state_dict().items():
        weights[name] = weights[name][: wanted.shape[0]]
    model.load_state_dict(weights)
