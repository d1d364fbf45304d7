"""Every setting, defined and documented once.

``Config`` is one frozen tree of four sections. The sentence under a field is its only documentation: command-line help,
the playground's tooltips and the reference in docs/ are made from it. Values are resolved in this order, later ones
winning: the defaults below, a preset or YAML file, environment variables (``FUNDAMENTALLM_TRAINING__SEED=1``), and
explicit overrides (``--set training.learning_rate=3e-4``).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fundamentallm import registry
from fundamentallm.errors import ConfigError

# In a wheel the YAML files lie inside the package, in a clone beside it.
_PACKAGE = Path(__file__).parent
CONFIGS_DIRECTORY = next((d for d in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if d.is_dir()), _PACKAGE)


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=()
    )


class DataConfig(_Section):
    """What is read, how it becomes tokens, and how much of it is held out."""

    source: tuple[str, ...] = ("tiny-tales",)
    """Files, folders, `-` for standard input, or the name of a built-in corpus."""
    tokenizer: str = "character"
    """`character` (one token per character) or `bpe` (byte-level byte pair encoding)."""
    vocab_size: int = Field(1024, ge=260, le=262_144)
    """Vocabulary size that BPE is trained to; a character vocabulary is as large as the text's alphabet."""
    min_frequency: int = Field(1, ge=1)
    """Characters (or BPE pairs) rarer than this in the training part become `<UNK>` (or are not merged)."""
    train_split: float = Field(0.9, gt=0.0, lt=1.0)
    """Share of the text that is trained on; the rest, at the end, is held out for validation."""


class ModelConfig(_Section):
    """The shape of the network."""

    architecture: str = "transformer"
    """`transformer`, or `bigram`, which sees only the token before."""
    vocab_size: int | None = Field(None, ge=1)
    """Number of tokens; filled in from the tokenizer when training starts."""
    d_model: int = Field(192, ge=1)
    """Width of the residual stream."""
    num_heads: int = Field(4, ge=1)
    """Number of query heads."""
    num_kv_heads: int | None = Field(None, ge=1)
    """Number of key and value heads (grouped-query attention); as many as query heads when not given."""
    head_dim: int | None = Field(None, ge=1)
    """Width of one head; d_model / num_heads when not given."""
    num_layers: int = Field(4, ge=1)
    """Number of transformer blocks."""
    sequence_length: int = Field(256, ge=2)
    """How many tokens the model sees at once (its context)."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Probability of dropping an activation during training; worth raising only when many epochs overfit."""
    ffn_expansion: float | None = Field(None, gt=0.0)
    """Feed-forward width over d_model; when not given 8/3 for swiglu and 4 otherwise, rounded to a multiple of 32."""
    activation: Literal["swiglu", "gelu", "relu2"] = "swiglu"
    """Nonlinearity of the feed-forward layer."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalisation in front of every sublayer."""
    norm_epsilon: float = Field(1e-6, gt=0.0)
    """Added to the variance inside a normalisation."""
    pos_encoding: Literal["rope", "learned", "sinusoidal", "none"] = "rope"
    """How the model knows where a token stands."""
    qk_norm: bool = True
    """Normalise queries and keys per head, which keeps attention stable at high learning rates."""
    bias: bool = False
    """Biases in linear layers and LayerNorms."""
    tie_embeddings: bool = True
    """Use the token embedding as the output layer too."""
    rope_theta: float = Field(10_000.0, gt=0.0)
    """Base of the rotary wavelengths."""

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.d_model // self.num_heads

    @property
    def ffn_width(self) -> int:
        """Width of the feed-forward layer."""
        if self.ffn_expansion is not None:
            return max(1, round(self.d_model * self.ffn_expansion))
        expansion = 8 / 3 if self.activation == "swiglu" else 4
        return max(32, int(self.d_model * expansion / 32) * 32)

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        heads = self.num_heads
        if self.head_dim is None and self.d_model % heads:
            below, above = self.d_model // heads * heads, (self.d_model // heads + 1) * heads
            choices = f"{below} or {above}" if below else str(above)
            raise ValueError(f"d_model ({self.d_model}) must be divisible by num_heads ({heads}): try {choices}")
        if heads % self.kv_heads:
            fitting = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            raise ValueError(f"num_kv_heads ({self.num_kv_heads}) must divide num_heads ({heads}): try {fitting}")
        if self.pos_encoding == "rope" and self.head_width % 2:
            raise ValueError(
                f"rope needs an even head width, but d_model / num_heads is {self.head_width}: "
                f"try d_model {(self.head_width + 1) * heads}, or another pos_encoding"
            )
        return self


class TrainingConfig(_Section):
    """How the weights are found, and for how long."""

    batch_size: int = Field(16, ge=1)
    """Sequences per step (per accumulation round)."""
    max_steps: int | None = Field(800, ge=1)
    """Stop after this many optimizer steps."""
    max_epochs: float | None = Field(None, gt=0.0)
    """Stop after this many passes over the training part."""
    max_minutes: float | None = Field(None, gt=0.0)
    """Stop after this many minutes; the learning rate finishes its decay in time."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Batches summed into one optimizer step."""
    gradient_clip_norm: float | None = Field(1.0, gt=0.0)
    """Gradients are scaled down to this global norm; off when not given."""
    optimizer: Literal["muon", "adamw", "adam", "sgd"] = "muon"
    """`muon` orthogonalises the update of every weight matrix and leaves the rest to AdamW."""
    learning_rate: float = Field(3e-3, gt=0.0)
    """Peak learning rate of AdamW, Adam or SGD (with `muon`: of embeddings and gains)."""
    muon_learning_rate: float = Field(0.03, gt=0.0)
    """Peak learning rate of the matrices under `muon`."""
    weight_decay: float = Field(0.1, ge=0.0)
    """Weight decay on matrices only: decoupled under `muon` and `adamw`, an L2 penalty under `adam` and `sgd`."""
    lr_scheduler: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    """`wsd`: warm up, stay, decay linearly; the others as their names say."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps of linear warm-up; takes precedence over warmup_fraction."""
    warmup_fraction: float = Field(0.0125, ge=0.0, lt=1.0)
    """Share of the training spent warming up."""
    decay_fraction: float = Field(0.8, gt=0.0, le=1.0)
    """Share of the training that `wsd` spends decaying."""
    min_lr_ratio: float = Field(0.0, ge=0.0, le=1.0)
    """Final learning rate over peak learning rate."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of matrix products; `auto` takes bf16 where the processor has it."""
    log_every_n_steps: int = Field(5, ge=1)
    """Steps between two points of the loss curve."""
    eval_every_n_steps: int = Field(50, ge=1)
    """Steps between two measurements of the validation loss."""
    eval_tokens: int | None = Field(32_768, ge=1)
    """Held-out tokens measured while training, spread evenly; all when not given. The end always measures all."""
    save_every_n_steps: int = Field(200, ge=1)
    """Steps between two checkpoints."""
    keep_last_n_checkpoints: int = Field(2, ge=1)
    """Older checkpoints are deleted; the best one always stays."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after this many validation measurements without improvement; off when not given."""
    target_val_loss: float | None = Field(None, gt=0.0)
    """Stop once the loss on the whole held-out part is this low."""
    from_checkpoint: str | None = None
    """A checkpoint, or a repository on the Hub, whose weights and vocabulary training starts from."""
    sample_prompt: str = ""
    """The model continues this prompt at every validation, so that one can watch it learn."""
    seed: int = Field(1337, ge=0)
    """Determines initialisation, batch order and dropout."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for the best one present."""
    compile: bool = False
    """Compile the model with torch.compile: half a minute of start-up, worth it for a large model on a GPU."""

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.max_steps is None and self.max_epochs is None and self.max_minutes is None:
            raise ValueError("training needs an end: set max_steps, max_epochs or max_minutes")
        return self


class GenerationConfig(_Section):
    """How text is drawn from the model."""

    strategy: str = "auto"
    """`greedy`, `temperature`, `top-k`, `top-p`, `min-p` or a plugin's; `auto` uses every filter that is set."""
    max_tokens: int = Field(200, ge=1, le=1_000_000)
    """Number of tokens to write."""
    temperature: float = Field(0.8, ge=0.0, le=100.0)
    """Below 1 safer, above 1 wilder; 0 always takes the likeliest token."""
    top_k: int | None = Field(None, ge=1)
    """Draw only from this many likeliest tokens."""
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    """Draw only from the likeliest tokens that together reach this probability."""
    min_p: float | None = Field(None, ge=0.0, le=1.0)
    """Draw only from tokens at least this share as probable as the likeliest one."""
    repetition_penalty: float = Field(1.0, gt=0.0, le=10.0)
    """Above 1 makes tokens that already occurred less likely."""
    seed: int | None = Field(None, ge=0)
    """Makes the text repeatable; a new one each time when not given."""
    stop_sequences: tuple[str, ...] = ()
    """Writing ends when one of these appears; it is not part of the text."""

    @field_validator("strategy")
    @classmethod
    def _is_registered(cls, strategy: str) -> str:
        if strategy != "auto" and strategy not in registry.samplers:
            raise PydanticCustomError(
                "strategy", "Input should be one of auto, " + ", ".join(sorted(registry.samplers))
            )
        return strategy

    @model_validator(mode="after")
    def _no_empty_stop(self) -> Self:
        if "" in self.stop_sequences:
            raise ValueError("stop_sequences must not contain an empty text: it would stop before the first token")
        return self


class Config(_Section):
    """The whole configuration: data, model, training, generation."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    generation: GenerationConfig = GenerationConfig()

    def with_values(self, **sections: Mapping[str, object]) -> Config:
        """A validated copy with some fields replaced: ``config.with_values(training={"seed": 2})``.

        As everywhere, one of the three ends of training, given here, replaces those given earlier.
        """
        return _validated(_merged(_without_other_ends(self.model_dump(), sections), sections))

    def to_yaml(self) -> str:
        """The whole tree as YAML, as it is saved beside the weights."""
        # Escaped rather than in plain Unicode, of which YAML folds some line separators into others.
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def presets() -> dict[str, Path]:
    """Name and file of every preset in configs/."""
    return {path.stem: path for path in sorted(CONFIGS_DIRECTORY.glob("*.yaml"))}


def load_config(
    *,
    preset: str | None = None,
    file: str | Path | None = None,
    overrides: Iterable[str] = (),
    values: Mapping[str, Mapping[str, object]] | None = None,
    environment: bool = True,
    base: Mapping[str, Mapping[str, object]] | None = None,
) -> Config:
    """Resolve a configuration: defaults < preset or file < base < environment < overrides < values.

    Args:
        preset: Name of a file in configs/, such as ``"small"``.
        file: A YAML file; excludes ``preset``.
        overrides: ``"section.field=value"`` strings; the value is read as YAML.
        values: Sections already parsed, ``{"training": {"seed": 1}}``.
        environment: Whether ``FUNDAMENTALLM_*`` variables count.
        base: Sections that a preset or file yields to, such as the shape of a model that is trained further.

    Raises:
        ConfigError: One sentence naming the first field that cannot work, and what would.
    """
    if preset is not None and file is not None:
        raise ConfigError("Give a preset or a configuration file, not both.")
    if preset is not None:
        if preset not in presets():
            raise ConfigError(f"There is no preset named {preset!r}: choose one of {', '.join(presets())}.")
        file = presets()[preset]
    tree: Mapping[str, object] = read_yaml(file) if file is not None else {}
    # One of the three ends of training, given later, replaces those given earlier: `--minutes 1` on top of a preset
    # of 800 steps means one minute.
    layers: list[Mapping[str, object]] = [base or {}, *([_environment_values()] if environment else [])]
    layers += [_parse_override(text) for text in overrides]
    layers += [values or {}]
    for layer in layers:
        tree = _merged(_without_other_ends(tree, layer), layer)
    return _validated(tree)


def read_yaml(path: str | Path) -> dict[str, object]:
    """Read a YAML file into a tree of plain values; raises ConfigError if it is missing or not a mapping."""
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration file {str(path)!r}: check the path.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"The configuration file {str(path)!r} cannot be read as YAML: {reason}.") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"The configuration file {str(path)!r} must hold sections such as `training:`.")
    return tree


def field_help(section: str, field: str) -> str:
    """The sentence that documents a field, e.g. ``field_help("training", "seed")``."""
    return _section_class(section).model_fields[field].description or ""


def _section_class(section: str) -> type[BaseModel]:
    annotation = Config.model_fields[section].annotation
    assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation


def _validated(tree: Mapping[str, object]) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from None


def _merged(base: Mapping[str, object], layer: Mapping[str, Any]) -> dict[str, object]:
    result = dict(base)
    for key, value in layer.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


_ENDS = ("max_steps", "max_epochs", "max_minutes")


def _without_other_ends(tree: Mapping[str, object], layer: Mapping[str, Any]) -> Mapping[str, object]:
    given = layer.get("training")
    if not isinstance(given, Mapping) or all(given.get(end) is None for end in _ENDS):
        return tree
    return _merged(tree, {"training": dict.fromkeys(_ENDS)})


def _parse_override(text: str) -> dict[str, dict[str, object]]:
    name, separator, value = text.partition("=")
    section, dot, field = name.strip().partition(".")
    if not separator or not dot:
        raise ConfigError(f"{text!r} is not an override: write section.field=value, as in training.seed=1.")
    try:
        return {section: {field: yaml.safe_load(value)}}
    except yaml.YAMLError:
        return {section: {field: value}}


def _environment_values() -> dict[str, dict[str, Any]]:
    # Imported here: pydantic-settings costs start-up time that `import fundamentallm` need not pay.
    from pydantic_settings import BaseSettings, SettingsConfigDict

    class Environment(BaseSettings):
        model_config = SettingsConfigDict(
            env_prefix="FUNDAMENTALLM_", env_nested_delimiter="__", extra="ignore", protected_namespaces=()
        )
        data: dict[str, Any] = {}
        model: dict[str, Any] = {}
        training: dict[str, Any] = {}
        generation: dict[str, Any] = {}

    return {section: values for section, values in Environment().model_dump().items() if values}


def _sentence(error: ValidationError) -> str:
    """One sentence for the first thing that is wrong."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        section, _, field = path.rpartition(".")
        known = list(_section_class(section).model_fields if section in Config.model_fields else Config.model_fields)
        near = difflib.get_close_matches(field, known, n=1)
        prefix = f"{section}." if section else ""
        advice = f"did you mean {prefix}{near[0]}?" if near else f"choose one of {', '.join(known)}."
        return f"There is no setting {path}: {advice}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return message[0].upper() + message[1:] + "."
    return f"{path} is {first['input']!r}, which cannot work: {message[0].lower()}{message[1:]}."
