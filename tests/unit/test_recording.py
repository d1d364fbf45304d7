"""Recorded and replayed: the same logits, the same losses. Without a GPU the work is done anew instead of replayed."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from foreign_models import randomise
from on_device import DEVICE, seeded
from torch import Tensor

from fundamentallm.config import Config, ModelConfig
from fundamentallm.data.corpus import text_corpus
from fundamentallm.data.token_store import PreparedData, prepare
from fundamentallm.generation import generate
from fundamentallm.generation.samplers import TemperatureSampler
from fundamentallm.models import BaseModel, KVCache, build_model
from fundamentallm.models.recorded_decoder import RecordedDecoder
from fundamentallm.recording import Recording
from fundamentallm.runs import RunDirectory
from fundamentallm.training.trainer import Trainer

VOCAB, LENGTH = 29, 16
SHAPE = {"vocab_size": VOCAB, "d_model": 32, "num_heads": 4, "num_layers": 2, "sequence_length": LENGTH}
TEXT = "the cat sat on the mat, and the dog sat on the cat. " * 40


@pytest.fixture(autouse=True)
def _without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for a recording keeps its promise: it works on its own inputs, and records by working thrice."""
    if DEVICE != "cpu":
        return

    def record(self: Recording, *inputs: Tensor) -> None:
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        for _ in range(3):
            self._work(*self._inputs)

    def replay(self: Recording, *inputs: Tensor) -> Tensor:
        if not self._inputs:
            self.record(*inputs)
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        return self._work(*self._inputs)

    monkeypatch.setattr(Recording, "suits", staticmethod(lambda device: True))
    monkeypatch.setattr(Recording, "record", record)
    monkeypatch.setattr(Recording, "__call__", replay)


def randomised(**changes: object) -> BaseModel:
    model = build_model(ModelConfig.model_validate(SHAPE | changes)).eval()
    randomise(model)
    return model


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (rows, length), generator=seeded(seed))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_kv_heads": 2, "tie_embeddings": False},
        {"pos_encoding": "learned", "norm": "layernorm", "bias": True, "activation": "gelu", "qk_norm": False},
        {"pos_encoding": "sinusoidal", "activation": "relu2"},
        {"pos_encoding": "none"},
    ],
    ids=str,
)
@pytest.mark.parametrize("padding", [None, [0, 3, 1]], ids=str)
def test_a_recorded_decoder_is_the_same_model(changes: dict[str, object], padding: list[int] | None) -> None:
    model = randomised(**changes)
    decoders = [RecordedDecoder(model), BaseModel.decoder(model)]
    caches = [model.new_cache(3) for _ in decoders]
    for text in range(2):  # the second time with a cache that was used before
        for cache in caches:
            cache.reset()
            cache.padding = None if padding is None else torch.tensor(padding)
            with torch.inference_mode():
                model(tokens(3, 4, seed=text), cache)
        # Past the context too, where the cache rolls.
        for step in range(4, 2 * LENGTH + 3 if model.rolls else LENGTH):
            new = tokens(3, 1, seed=step)[:, 0]
            ours, theirs = (decode(new, cache) for decode, cache in zip(decoders, caches, strict=True))
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
            assert caches[0].length == caches[1].length == step + 1


def test_a_recorded_decoder_follows_a_cache_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fundamentallm.models.kv_cache._FIRST_TOKENS", 4)
    model = randomised()
    decoders = [RecordedDecoder(model), BaseModel.decoder(model)]
    caches = [model.new_cache(1) for _ in decoders]
    with torch.inference_mode():
        for cache in caches:
            model(tokens(1, 2), cache)
    for step in range(LENGTH + 4):
        ours, theirs = (decode(tokens(1, 1, step)[:, 0], cache) for decode, cache in zip(decoders, caches, strict=True))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    assert caches[0].keys.size(3) == LENGTH


def test_texts_written_at_the_same_time_do_not_disturb_each_other() -> None:
    model, sampler = randomised(), TemperatureSampler(1.0)

    def write(seed: int) -> list[list[int | None]]:
        return list(generate(model, [[seed % VOCAB]], [sampler], [seed], max_tokens=2 * LENGTH))

    alone = [write(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(write, range(8))) == alone


def test_a_decoder_leaves_no_recording_behind() -> None:
    """Freed by the collector at any time, it would spoil one that is being made."""
    model = randomised()
    decoder = RecordedDecoder(model)
    decoder(torch.tensor([1]), model.new_cache(1))
    gone = weakref.ref(decoder)
    gc.disable()
    try:
        del decoder
        assert gone() is None
    finally:
        gc.enable()


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    return prepare(text_corpus(TEXT), Config().data, tmp_path / "data", sequence_length=LENGTH)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_a_recorded_training_step_is_the_same_step(
    rounds: int, precision: str, data: PreparedData, tmp_path: Path
) -> None:
    config = Config().with_values(
        # A GPU draws what to drop from another place in its sequence when it replays.
        model=SHAPE | {"vocab_size": data.tokenizer.vocab_size, "dropout": 0.1 if DEVICE == "cpu" else 0.0},
        training={"batch_size": 4, "gradient_accumulation_steps": rounds, "precision": precision, "device": DEVICE},
    )
    trainers = []
    for name in ("recorded", "plain"):
        torch.manual_seed(0)
        model = build_model(config.model).to(DEVICE)
        model.replayable = name == "recorded"
        run = RunDirectory.create(tmp_path, name, config=config)
        trainers.append(Trainer(config, model, data, run))
        for _ in range(12):
            trainers[-1].train_step()
        assert (trainers[-1]._recording is not None) == (name == "recorded")
    ours, theirs = trainers
    tolerance = {} if precision == "fp32" else {"atol": 5e-3, "rtol": 5e-2}
    assert ours._mean_train_loss() == pytest.approx(theirs._mean_train_loss(), rel=1e-5 if not tolerance else 1e-2)
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_other_models_are_not_recorded() -> None:
    """Their forward pass may do something else every time."""

    class Own(BaseModel):
        def forward(self, tokens: Tensor, cache: object = None) -> Tensor:
            raise NotImplementedError

        def new_cache(self, batch_size: int) -> KVCache:
            raise NotImplementedError

    assert not Own.replayable


def test_a_training_leaves_no_recording_behind(data: PreparedData, tmp_path: Path) -> None:
    """It refers to the trainer, which holds the model and an open file."""
    config = Config().with_values(
        model=SHAPE | {"vocab_size": data.tokenizer.vocab_size},
        training={"batch_size": 4, "max_steps": 2, "device": DEVICE},
        generation={"max_tokens": 4},
    )
    run = RunDirectory.create(tmp_path, "whole", config=config)
    trainer = Trainer(config, build_model(config.model).to(DEVICE), data, run)
    gone = weakref.ref(trainer)
    assert trainer.train().step == 2
    gc.disable()
    try:
        del trainer
        assert gone() is None
    finally:
        gc.enable()
