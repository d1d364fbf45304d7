from __future__ import annotations

import pytest
import torch
from on_device import DEVICE

from fundamentallm.config import Config, ModelConfig
from fundamentallm.errors import TrainingError
from fundamentallm.models import build_model
from fundamentallm.training import estimate as module
from fundamentallm.training.estimate import count_parameters, estimate, memory_bytes, require_memory

SHAPE: dict[str, object] = {"vocab_size": 13, "d_model": 24, "num_heads": 4, "num_layers": 3, "sequence_length": 8}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_kv_heads": 2, "head_dim": 10, "tie_embeddings": False},
        {"norm": "layernorm", "bias": True, "activation": "gelu", "pos_encoding": "learned", "qk_norm": False},
        {"norm": "layernorm", "bias": False, "activation": "relu2", "pos_encoding": "sinusoidal"},
        {"norm": "layernorm", "bias": True, "pos_encoding": "none"},
        {"bias": True, "ffn_expansion": 1.3},
        {"architecture": "bigram"},
    ],
)
def test_counting_equals_building(changes: dict[str, object]) -> None:
    config = ModelConfig.model_validate(SHAPE | changes)
    assert count_parameters(config) == build_model(config).num_parameters()


def test_measures_real_steps_and_leaves_the_random_numbers_alone() -> None:
    config = Config().with_values(
        model=SHAPE, training={"batch_size": 2, "max_steps": 500, "gradient_accumulation_steps": 3, "device": DEVICE}
    )
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    result = estimate(config, vocab_size=29, steps=2)
    assert torch.equal(torch.rand(1), expected)
    assert result.parameters == count_parameters(ModelConfig.model_validate(SHAPE | {"vocab_size": 29}))
    assert result.tokens_per_second == pytest.approx(2 * 3 * 8 / result.seconds_per_step)
    assert result.total_seconds == pytest.approx(500 * result.seconds_per_step)
    limited = config.with_values(training={"max_minutes": 1e-4})
    assert estimate(limited, vocab_size=29, steps=1).total_seconds == pytest.approx(0.006)
    endless = config.with_values(training={"max_epochs": 3})
    assert estimate(endless, vocab_size=29, steps=1).total_seconds is None


def test_what_does_not_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config().with_values(model={"vocab_size": 100}, training={"batch_size": 64})
    monkeypatch.setattr(module, "_available_bytes", lambda device: memory_bytes(config) - 1)
    with pytest.raises(TrainingError, match=r"needs about .* GB .* training.batch_size 63 would fit") as error:
        require_memory(config, torch.device("cpu"))
    assert "\n" not in str(error.value)
    monkeypatch.setattr(module, "_available_bytes", lambda device: 1_000_000)
    with pytest.raises(TrainingError, match="million parameters would fit"):
        require_memory(config, torch.device("cpu"))
    monkeypatch.setattr(module, "_available_bytes", lambda device: None)
    require_memory(config, torch.device("cpu"))


def test_a_giant_is_refused_at_once() -> None:
    config = Config().with_values(model={"d_model": 65536, "num_layers": 1000})
    with pytest.raises(TrainingError, match="would fit"):
        estimate(config, vocab_size=100)
