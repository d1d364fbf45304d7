"""The settings of a training as the Train tab asks for them: which fields, their labels, and what was changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import yaml

from fundamentallm.config import Config, field_help, load_config, presets
from fundamentallm.data.examples import BUILT_IN
from fundamentallm.data.hub_dataset import PREFIX
from fundamentallm.errors import ConfigError
from fundamentallm.playground.settings import SOURCE_PASTE, SOURCE_UPLOAD

_ORDER = ("small", "default", "large")
_PURPOSE = {
    "small": "Readable text within a minute",
    "default": "Better text after some minutes",
    "large": "The best text, for patience or a GPU",
}
CUSTOM_TIME = 0.0
TIMES = [("30 s", 0.5), ("1 min", 1.0), ("5 min", 5.0), ("Custom", CUSTOM_TIME)]


@dataclass(frozen=True)
class Field:
    """A setting shown under Advanced."""

    section: str
    name: str
    label: str
    choices: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """As in ``--set``."""
        return f"{self.section}.{self.name}"

    def value(self, config: Config) -> Any:
        """What ``config`` says."""
        return config.model_dump()[self.section][self.name]

    def component(self, config: Config) -> gr.Number | gr.Dropdown | gr.Textbox:
        """The input for it, holding what ``config`` says, explained by the field's own documentation."""
        value = self.value(config)
        info = field_help(self.section, self.name).replace("`", "")
        identifier = f"field-{self.name}"
        if self.choices:
            return gr.Dropdown(list(self.choices), value=value, label=self.label, info=info, elem_id=identifier)
        if isinstance(value, str):
            return gr.Textbox(value, label=self.label, info=info, elem_id=identifier, max_lines=2)
        precision = 0 if isinstance(value, int) else None
        return gr.Number(value, label=self.label, info=info, elem_id=identifier, precision=precision)


# The ones a learner turns; every other setting goes into the box below them.
FIELDS = (
    Field("model", "num_layers", "Layers"),
    Field("model", "d_model", "Width"),
    Field("model", "num_heads", "Heads"),
    Field("model", "sequence_length", "Context"),
    Field("model", "dropout", "Dropout"),
    Field("data", "tokenizer", "Tokens", ("character", "bpe")),
    Field("data", "vocab_size", "Vocabulary of BPE"),
    Field("training", "batch_size", "Batch size"),
    Field("training", "optimizer", "Optimizer", ("muon", "adamw", "adam", "sgd")),
    Field("training", "learning_rate", "Learning rate"),
    Field("training", "lr_scheduler", "Schedule", ("wsd", "cosine", "linear", "constant")),
    Field("training", "weight_decay", "Weight decay"),
    Field("training", "seed", "Seed"),
    Field("training", "sample_prompt", "Prompt of the samples"),
)


def preset_choices() -> list[tuple[str, str]]:
    """Label (name, what it is for, its shape) and name of every preset, smallest first."""
    names = sorted(presets(), key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    choices = []
    for name in names:
        model = load_config(preset=name, environment=False).model
        shape = f"{model.num_layers} layers · {model.d_model} wide · sees {model.sequence_length} tokens"
        lines = [name.capitalize(), *([_PURPOSE[name]] if name in _PURPOSE else []), shape]
        choices.append(("\n".join(lines), name))
    return choices


def field_values(preset: str) -> list[object]:
    """What a preset says in every field of the form."""
    config = load_config(preset=preset)
    return [field.value(config) for field in FIELDS]


def changed_settings(preset: str, more: str | None, values: Sequence[object]) -> dict[str, object]:
    """The settings that differ from the preset, by path, such as ``{"model.d_model": 64}``.

    Raises:
        ConfigError: A line of ``more`` is no setting.
    """
    before = field_values(preset)
    changed = {
        field.path: value
        for field, value, old in zip(FIELDS, values, before, strict=True)
        if value is not None and value != old
    }
    return changed | parse_settings(more or "")


def parse_settings(text: str) -> dict[str, object]:
    """Lines ``section.field=value``, the value read as YAML; empty lines and ``#`` comments are skipped.

    Raises:
        ConfigError: A line has another form.
    """
    settings: dict[str, object] = {}
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        path, separator, value = stripped.partition("=")
        if not separator or "." not in path:
            raise ConfigError(f"{stripped!r} is no setting: write section.field=value, as in training.seed=1.")
        try:
            settings[path.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            settings[path.strip()] = value.strip()
    return settings


def corpus_title(source: str, files: Sequence[str] | None) -> str:
    """What the button calls the chosen text."""
    if source == SOURCE_PASTE:
        return "your text"
    if source == SOURCE_UPLOAD:
        if files and len(files) > 1:
            return f"{len(files)} files"
        return Path(files[0]).name if files else "your files"
    if source.startswith(PREFIX):
        return source.removeprefix(PREFIX) or "a Hub dataset"
    return BUILT_IN[source].title if source in BUILT_IN else source


def duration(minutes: float) -> str:
    """Minutes for people."""
    if minutes < 1.5 and minutes != 1:
        return f"{minutes * 60:g} s"
    return f"{minutes:g} min" if minutes < 90 else f"{minutes / 60:.3g} h"


def button_label(source: str, files: Sequence[str] | None, preset: str, minutes: float) -> str:
    """What the primary button says: what it will do, and how long it takes."""
    return f"Train {preset} on {corpus_title(source, files)} for {duration(minutes)}"
