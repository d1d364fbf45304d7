"""What a training will take, before it starts: memory by counting, time by a few real steps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache

import psutil
import torch
import torch.nn.functional as F

from fundamentallm.config import Config, ModelConfig
from fundamentallm.devices import autocast, resolve_device, resolve_precision
from fundamentallm.errors import TrainingError
from fundamentallm.models import BaseModel, build_model
from fundamentallm.training.optimizers import build_optimizers

_FLOAT32_BYTES = 4
# Numbers of optimizer state per weight: Muon has one average for matrices, Adam two.
_STATE_PER_WEIGHT = {"muon": 1, "adamw": 2, "adam": 2, "sgd": 1}


@dataclass(frozen=True)
class Estimate:
    """What a training takes on this machine."""

    parameters: int
    """Trainable numbers."""
    memory_bytes: int
    """Weights, gradients, optimizer state and activations together."""
    seconds_per_step: float
    """Measured, without validation and checkpoints."""
    tokens_per_second: float
    total_seconds: float | None
    """Until the first limit in steps or minutes; None when only epochs limit it, whose length the text decides."""


def estimate(config: Config, vocab_size: int, steps: int = 3) -> Estimate:
    """Measure a few steps of the configured training on random tokens.

    The first, slower one is not counted. The state of torch's random numbers is left as it was.

    Raises:
        TrainingError: It would not fit in memory.
        ConfigError: The device is not there.
    """
    config = config.with_values(model={"vocab_size": vocab_size})
    device = resolve_device(config.training.device)
    require_memory(config, device)
    with torch.random.fork_rng():
        model = build_model(config.model).to(device).train()
        seconds = _seconds_per_step(model, config, device, steps)
    training = config.training
    tokens = training.batch_size * training.gradient_accumulation_steps * config.model.sequence_length
    limits = [training.max_steps * seconds] if training.max_steps is not None else []
    limits += [60 * training.max_minutes] if training.max_minutes is not None else []
    return Estimate(
        parameters=model.num_parameters(),
        memory_bytes=memory_bytes(config),
        seconds_per_step=seconds,
        tokens_per_second=tokens / seconds,
        total_seconds=min(limits, default=None),
    )


@lru_cache(maxsize=32)
def count_parameters(config: ModelConfig) -> int:
    """The number of weights of a model. A transformer is counted without being built, however large it is."""
    if config.architecture != "transformer":
        return build_model(config).num_parameters()
    assert config.vocab_size is not None
    width, bias = config.d_model, int(config.bias)
    norm = 1 + (bias if config.norm == "layernorm" else 0)  # numbers per component
    heads, queries = (config.num_heads + 2 * config.kv_heads) * config.head_width, config.num_heads * config.head_width
    attention = (width + bias) * heads + (queries + bias) * width
    attention += 2 * config.head_width if config.qk_norm else 0
    inside = (2 if config.activation == "swiglu" else 1) * config.ffn_width
    feed_forward = (width + bias) * inside + (config.ffn_width + bias) * width
    embedding = config.vocab_size * width * (1 if config.tie_embeddings else 2)
    positions = config.sequence_length * width if config.pos_encoding == "learned" else 0
    return embedding + positions + config.num_layers * (attention + feed_forward + 2 * norm * width) + norm * width


def memory_bytes(config: Config) -> int:
    """Memory that training needs, by counting: weights, gradients, optimizer state, activations, logits."""
    model, training = config.model, config.training
    parameters = count_parameters(model)
    weights = parameters * _FLOAT32_BYTES * (2 + _STATE_PER_WEIGHT[training.optimizer])
    return weights + training.batch_size * model.sequence_length * _activation_bytes_per_token(model)


def _activation_bytes_per_token(model: ModelConfig) -> int:
    """Bytes kept for the backward pass, in float32; Korthikanti et al. 2022, section 4.1, counted for our blocks."""
    assert model.vocab_size is not None
    logits = 3 * model.vocab_size  # themselves, their log-softmax, its gradient
    if model.architecture != "transformer":
        return _FLOAT32_BYTES * logits
    heads = (model.num_heads + 2 * model.kv_heads) * model.head_width
    # Per block: the stream, two norms and two sums; queries, keys, values, each also normalised and turned, and the
    # mixed heads; the feed-forward layer's inside three times. Attention weights are never kept by the fused kernel.
    block = 5 * model.d_model + 3 * heads + model.num_heads * model.head_width + 3 * model.ffn_width
    return _FLOAT32_BYTES * (model.num_layers * block + 2 * model.d_model + logits)


def require_memory(config: Config, device: torch.device) -> None:
    """Refuse a training that cannot fit.

    Raises:
        TrainingError: One sentence with what would.
    """
    needed, available = memory_bytes(config), _available_bytes(device)
    if available is None or needed <= available:
        return
    raise TrainingError(
        f"This training needs about {_gigabytes(needed)} of memory and {_gigabytes(available)} are free: "
        f"{_what_would_fit(config, available)}."
    )


def _what_would_fit(config: Config, available: int) -> str:
    tokens = config.training.batch_size * config.model.sequence_length
    per_token = _activation_bytes_per_token(config.model)
    room = available - (memory_bytes(config) - tokens * per_token)
    batch_size = int(room // (per_token * config.model.sequence_length))
    if batch_size >= 1:
        return f"training.batch_size {batch_size} would fit"
    parameters = int(available / 2 / _FLOAT32_BYTES / (2 + _STATE_PER_WEIGHT[config.training.optimizer]))
    return (
        f"a model of about {parameters / 1e6:.0f} million parameters would fit, "
        f"this one has {count_parameters(config.model) / 1e6:.0f}, so lower model.d_model or model.num_layers"
    )


def _available_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2g} GB" if count < 1e11 else f"{count / 1e9:.0f} GB"


def _seconds_per_step(model: BaseModel, config: Config, device: torch.device, steps: int) -> float:
    training, vocab_size = config.training, model.vocab_size
    precision = resolve_precision(training.precision, device)
    optimizers = build_optimizers(model, training)
    shape = (training.batch_size, config.model.sequence_length)
    durations = []
    for _ in range(steps + 1):
        inputs, targets = (torch.randint(vocab_size, shape, device=device) for _ in range(2))
        started = time.perf_counter()
        with autocast(device, precision):
            logits = model(inputs)  # (B, T, V)
        F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()).backward()
        forward_and_backward = time.perf_counter() - started
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        whole = time.perf_counter() - started
        durations.append(whole + (training.gradient_accumulation_steps - 1) * forward_and_backward)
    return sum(durations[1:]) / steps
