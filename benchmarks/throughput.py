"""Training speed over sizes and contexts: tokens a second, and the share of what the processor can multiply."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import peers
from benchmarks.measuring import (
    BenchmarkError,
    Column,
    Report,
    Table,
    alternate,
    corpus_file,
    medians,
    ratio,
    repeated,
)
from fundamentallm.cli.train import keep_freed_memory
from fundamentallm.config import Config
from fundamentallm.data.batches import TokenWindows
from fundamentallm.data.corpus import open_corpus
from fundamentallm.data.token_store import PreparedData, prepare
from fundamentallm.devices import Precision, autocast, resolve_device, resolve_precision
from fundamentallm.models import BaseModel, build_model
from fundamentallm.runs.run_directory import RunDirectory
from fundamentallm.training.estimate import count_parameters
from fundamentallm.training.trainer import Trainer

# Layers, width, context, batch. First size grows at one context, then context at one size and equal tokens a step.
SHAPES = ("2x128x64x16", "4x128x64x12", "4x192x256x16", "6x256x256x16", "8x512x256x16")
CONTEXTS = ("6x256x64x64", "6x256x128x32", "6x256x512x8", "6x256x1024x4")
_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)x(\d+)")
_PEAK_SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192, 16384), "mps": (2048, 4096)}
_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OURS, COMPILED, PEAK = "fundamentallm", "fundamentallm, compiled", "matrix products"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", metavar="FILE", help="a text file instead of Tiny Shakespeare")
    parser.add_argument("--nanogpt", metavar="DIR", help="a checkout of nanoGPT")
    parser.add_argument("--no-transformers", action="store_true", help="leave transformers out")
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=[*SHAPES, *CONTEXTS],
        metavar="LxWxTxB",
        help="layers x width x context x batch, heads of 64 (or four); default: " + " ".join((*SHAPES, *CONTEXTS)),
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of every measurement in a round (default: 2)")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")


def run(options: argparse.Namespace, directory: Path) -> Report:
    device = resolve_device(options.device)
    precision = resolve_precision(options.precision, device)
    keep_freed_memory()  # as the command that trains does; here for the peers too
    report = Report("throughput", vars(options) | {"precision": precision}, device)
    text = corpus_file(options.corpus, directory, report)
    configs = [shape_config(shape, precision, device) for shape in options.shapes]
    longest = max(config.model.sequence_length for config in configs)
    data = prepare(open_corpus([text]), configs[0].data, directory / "data", sequence_length=longest)
    nanogpt = peers.nanogpt(options.nanogpt, report)
    with_transformers = not options.no_transformers and peers.transformers_is_installed(report)
    table = report.table(
        f"Training in {precision}",
        Column("shape", "layers × width × context × batch"),
        Column("parameters", "parameters", ",.0f"),
        Column("tokens", "tokens/s", ",.0f"),
        Column("flops", "6·N·tokens, GFLOP/s", ",.0f"),
        Column("peak", "matrix products, GFLOP/s", ",.0f"),
        Column("share", "share of them", ".0%"),
        Column("compiled", "compiled, tokens/s", ",.0f"),
        Column("nanogpt", "nanoGPT, tokens/s", ",.0f"),
        Column("nanogpt_ratio", "times nanoGPT", ".2f"),
        Column("transformers", "transformers, tokens/s", ",.0f"),
        Column("transformers_ratio", "times transformers", ".2f"),
    )
    size = best_size(device, _DTYPES[precision], options.seconds / 4)
    for shape, config in zip(options.shapes, configs, strict=True):
        full = config.with_values(model={"vocab_size": data.tokenizer.vocab_size})
        contestants = _contestants(full, data, device, directory / f"run-{shape}", options, nanogpt, with_transformers)
        measured = {
            name: repeated(step, device, at_least=options.seconds)
            for name, step in {PEAK: square_product(size, device, _DTYPES[precision]), **contestants}.items()
        }
        samples = alternate(measured, options.rounds)
        report.keep(samples, prefix=f"{shape}: ")
        _add_row(table, shape, full, medians(samples), 2 * size**3)
    report.settings["matrix_size"] = size
    return report


def _add_row(table: Table, shape: str, config: Config, seconds: dict[str, float], peak_operations: int) -> None:
    parameters = count_parameters(config.model)
    tokens = config.training.batch_size * config.model.sequence_length
    peak = peak_operations / seconds[PEAK]
    flops = 6 * parameters * tokens / seconds[OURS]
    speed = {name: tokens / value for name, value in seconds.items()}
    table.add(
        shape=shape.replace("x", " × "),
        parameters=parameters,
        tokens=speed[OURS],
        flops=flops / 1e9,
        peak=peak / 1e9,
        share=flops / peak,
        compiled=speed.get(COMPILED),
        nanogpt=speed.get(peers.NANOGPT),
        nanogpt_ratio=ratio(speed[OURS], speed.get(peers.NANOGPT)),
        transformers=speed.get(peers.TRANSFORMERS),
        transformers_ratio=ratio(speed[OURS], speed.get(peers.TRANSFORMERS)),
    )


def shape_config(shape: str, precision: str, device: torch.device) -> Config:
    """The default architecture in the shape ``layers x width x context x batch``; heads of 64, but at least four."""
    match = _SHAPE.fullmatch(shape)
    if match is None:
        raise BenchmarkError(f"{shape!r} is no shape: write layers x width x context x batch, as in 6x256x256x16.")
    layers, width, context, batch = (int(number) for number in match.groups())
    return Config().with_values(
        model={
            "num_layers": layers,
            "d_model": width,
            "num_heads": max(4, width // 64),
            "sequence_length": context,
        },
        training={"batch_size": batch, "precision": precision, "device": str(device)},
    )


def square_product(size: int, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
    """One product of two ``size`` × ``size`` matrices."""
    a, b, out = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


def best_size(device: torch.device, dtype: torch.dtype, seconds: float) -> int:
    """The size at which this machine multiplies fastest."""
    speeds = {}
    for size in _PEAK_SIZES.get(device.type, _PEAK_SIZES["cpu"]):
        measure = repeated(square_product(size, device, dtype), device, at_least=seconds)
        speeds[size] = size**3 / min(measure() for _ in range(3))
    return max(speeds, key=speeds.__getitem__)


def _contestants(
    config: Config,
    data: PreparedData,
    device: torch.device,
    place: Path,
    options: argparse.Namespace,
    nanogpt: peers.NanoGPT | None,
    with_transformers: bool,
) -> dict[str, Callable[[], object]]:
    """Everyone's training step: a batch from the text, forward, backward, clipping, update."""
    model = build_model(config.model).to(device)
    run = RunDirectory.create(place, "speed", config=config)
    steps: dict[str, Callable[[], object]] = {OURS: Trainer(config, model, data, run).train_step}
    if options.compile:
        compiled = config.with_values(training={"compile": True})
        steps[COMPILED] = Trainer(compiled, build_model(config.model).to(device), data, run).train_step
    if nanogpt is not None:
        steps[peers.NANOGPT] = _nanogpt_step(nanogpt, config, data, device)
    if with_transformers:
        steps[peers.TRANSFORMERS] = _transformers_step(model, config, data, device)
    return steps


def _nanogpt_step(
    nanogpt: peers.NanoGPT, config: Config, data: PreparedData, device: torch.device
) -> Callable[[], object]:
    """What its ``train.py`` does in a step; on a CPU it computes in float32 only."""
    model = nanogpt.model(config.model).to(device).train()
    optimizer = nanogpt.optimizer(model, device)
    tokens, length, batch = data.train.tokens, config.model.sequence_length, config.training.batch_size
    precision = "fp32" if device.type == "cpu" else resolve_precision(config.training.precision, device)

    def step() -> None:
        starts = torch.randint(len(tokens) - length, (batch,)).tolist()
        inputs, targets = (
            torch.stack([torch.from_numpy(tokens[s + shift : s + shift + length].astype("int64")) for s in starts])
            for shift in (0, 1)
        )
        with autocast(device, precision):
            loss = model(inputs.to(device), targets.to(device))[1]
        _update(model, optimizer, loss)

    return step


def _transformers_step(
    model: BaseModel, config: Config, data: PreparedData, device: torch.device
) -> Callable[[], object]:
    """A plain loop around the library's class: AdamW, and our arithmetic and batches."""
    twin: Any = peers.transformers_twin(model).train()
    optimizer = torch.optim.AdamW(twin.parameters(), 1e-3, fused=True)
    windows = TokenWindows(data.train, config.model.sequence_length)
    precision = resolve_precision(config.training.precision, device)
    random = np.random.default_rng(0)

    def step() -> None:
        starts = random.integers(len(windows), size=config.training.batch_size)
        inputs, targets = (part.to(device) for part in windows.__getitems__(starts))
        with autocast(device, precision):
            logits = twin(input_ids=inputs, use_cache=False).logits
        _update(twin, optimizer, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()))

    return step


def _update(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
