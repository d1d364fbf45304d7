"""Those we compare with: a nanoGPT checkout that the user has, and the transformers library if it is installed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.measuring import BenchmarkError, Report
from fundamentallm.config import ModelConfig
from fundamentallm.models import BaseModel
from fundamentallm.models.interchange import export_weights, transformers_config

NANOGPT = "nanoGPT"
TRANSFORMERS = "transformers"


class NanoGPT:
    """A checkout of https://github.com/karpathy/nanoGPT; nothing in it is changed or run in place.

    Args:
        directory: The checkout.

    Raises:
        BenchmarkError: It is none.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        for file in ("model.py", "train.py", "configurator.py"):
            if not (self.directory / file).is_file():
                raise BenchmarkError(f"{str(directory)!r} is no nanoGPT checkout (it has no {file}): ran without it.")
        self._module: ModuleType | None = None

    @property
    def module(self) -> ModuleType:
        """Its ``model.py``."""
        if self._module is None:
            spec = importlib.util.spec_from_file_location("nanogpt_model", self.directory / "model.py")
            assert spec is not None and spec.loader is not None
            self._module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(self._module)
        return self._module

    def model(self, config: ModelConfig) -> nn.Module:
        """A fresh model of our shape: the same width, depth, heads, context and vocabulary, without biases."""
        with contextlib.redirect_stdout(io.StringIO()):
            settings = self.module.GPTConfig(
                block_size=config.sequence_length,
                vocab_size=config.vocab_size,
                n_layer=config.num_layers,
                n_head=config.num_heads,
                n_embd=config.d_model,
                dropout=0.0,
                bias=False,
            )
            model: nn.Module = self.module.GPT(settings)
        return model

    def optimizer(self, model: Any, device: torch.device) -> torch.optim.Optimizer:
        """Its own, with the settings of its configuration for Shakespeare."""
        with contextlib.redirect_stdout(io.StringIO()):
            optimizer: torch.optim.Optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), device.type)
        return optimizer

    def trained_model(self, checkpoint: Path) -> nn.Module:
        """The model that its ``train.py`` saved."""
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        with contextlib.redirect_stdout(io.StringIO()):
            model: nn.Module = self.module.GPT(self.module.GPTConfig(**saved["model_args"]))
        model.load_state_dict(saved["model"])
        return model

    def workplace(self, parent: Path, text: str) -> Path:
        """A copy of its scripts with ``text`` prepared as its ``prepare.py`` does, to run ``train.py`` in."""
        place = parent / "nanogpt"
        data = place / "data" / "shakespeare_char"
        data.mkdir(parents=True)
        for file in ("model.py", "train.py", "configurator.py"):
            shutil.copy(self.directory / file, place)
        if (self.directory / "config").is_dir():
            shutil.copytree(self.directory / "config", place / "config")
        characters = sorted(set(text))
        number_of = {character: number for number, character in enumerate(characters)}
        cut = int(len(text) * 0.9)
        for file, part in (("train.bin", text[:cut]), ("val.bin", text[cut:])):
            np.array([number_of[character] for character in part], dtype=np.uint16).tofile(data / file)
        meta = {"vocab_size": len(characters), "stoi": number_of, "itos": dict(enumerate(characters))}
        (data / "meta.pkl").write_bytes(pickle.dumps(meta))
        return place


def nanogpt(directory: str | None, report: Report) -> NanoGPT | None:
    """The checkout, or None with a note in the report."""
    if directory is None:
        report.note("Without nanoGPT: --nanogpt DIR names a checkout to compare with.")
        return None
    try:
        return NanoGPT(directory)
    except BenchmarkError as error:
        report.note(str(error))
        return None


def transformers_is_installed(report: Report) -> bool:
    """Whether the library can be compared with; if not, the report gets a note."""
    if importlib.util.find_spec("transformers") is not None:
        return True
    report.note("Without transformers, which is not installed: `pip install transformers` to compare with it.")
    return False


def transformers_twin(model: BaseModel) -> nn.Module:
    """The library's own class for our architecture, with a copy of our weights."""
    transformers = importlib.import_module("transformers")
    values = transformers_config(model.config, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    name = values["architectures"][0]
    config_class = getattr(transformers, name.replace("ForCausalLM", "Config"))
    with _quiet(transformers):
        twin: Any = getattr(transformers, name)(config_class.from_dict(values))
        missing, unexpected = twin.load_state_dict(export_weights(model.state_dict(), model.config), strict=False)
        twin.tie_weights()
    assert not unexpected and all(name == "lm_head.weight" for name in missing), (missing, unexpected)
    result: nn.Module = twin.to(next(model.parameters()).device)
    return result


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
