"""Writing: time to the first token, prefill and decode apart, and four samplers at once against one after another."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import peers
from benchmarks.measuring import Column, Report, Table, alternate, medians, ratio, repeated
from fundamentallm.config import GenerationConfig, load_config
from fundamentallm.devices import resolve_device
from fundamentallm.generation import BaseSampler, build_sampler, generate
from fundamentallm.models import BaseModel, build_model

TEMPERATURE, TOP_K = 0.8, 40
_VOCABULARY = 65  # the alphabet of Tiny Shakespeare
OURS = "fundamentallm"
Write = Callable[[int], object]
"""Writes so many tokens after the prompts."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nanogpt", metavar="DIR", help="a checkout of nanoGPT")
    parser.add_argument("--no-transformers", action="store_true", help="leave transformers out")
    parser.add_argument("--presets", nargs="+", default=["small", "default"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 32])
    parser.add_argument("--prompt", type=int, help="tokens of the prompt (default: half the context)")
    parser.add_argument("--tokens", type=int, default=200, help="tokens to write (default: 200)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of every measurement in a round (default: 1)")
    parser.add_argument("--device", default="auto")


def run(options: argparse.Namespace, directory: Path) -> Report:
    device = resolve_device(options.device)
    report = Report("generation", vars(options), device)
    nanogpt = peers.nanogpt(options.nanogpt, report)
    with_transformers = not options.no_transformers and peers.transformers_is_installed(report)
    speeds = report.table(
        f"Writing {options.tokens} tokens, temperature {TEMPERATURE:g}, top-k {TOP_K}",
        Column("preset", "preset"),
        Column("batch", "batch", "d"),
        Column("who", "program"),
        Column("first", "first token, ms", ".2f"),
        Column("prefill", "prefill, tokens/s", ",.0f"),
        Column("decode", "decode, tokens/s", ",.0f"),
        Column("ratio", "ours over it", ".1f"),
    )
    samplers = report.table(
        "Four samplers on one prompt: greedy, temperature, top-k, top-p",
        Column("preset", "preset"),
        Column("together", "side by side, tokens/s", ",.0f"),
        Column("apart", "one after the other, tokens/s", ",.0f"),
        Column("ratio", "times faster", ".1f"),
    )
    for preset in options.presets:
        config = load_config(preset=preset, values={"model": {"vocab_size": _VOCABULARY}}, environment=False)
        torch.manual_seed(0)
        model = build_model(config.model).to(device).eval()
        rivals: dict[str, Any] = {}
        if with_transformers:
            rivals[peers.TRANSFORMERS] = peers.transformers_twin(model).eval()
        if nanogpt is not None:
            rivals[peers.NANOGPT] = nanogpt.model(config.model).to(device).eval()
        length = options.prompt or config.model.sequence_length // 2
        for batch in options.batches:
            prompts = torch.randint(_VOCABULARY, (batch, length)).tolist()
            writers: dict[str, Write] = {OURS: partial(_write, model, prompts)}
            if with_transformers:
                writers[peers.TRANSFORMERS] = partial(_write_transformers, rivals[peers.TRANSFORMERS], prompts)
            if nanogpt is not None:
                writers[peers.NANOGPT] = partial(_write_nanogpt, rivals[peers.NANOGPT], prompts)
            _compare(report, speeds, preset, writers, batch, length, options, device)
        _compare_samplers(report, samplers, preset, model, options, device)
    return report


def _compare(
    report: Report,
    table: Table,
    preset: str,
    writers: dict[str, Write],
    batch: int,
    length: int,
    options: argparse.Namespace,
    device: torch.device,
) -> None:
    """Everyone writes one token, and many; the time of the others is decoding."""
    counts = {"first": 1, "all": options.tokens}
    measured = {
        f"{name}, {part}": repeated(partial(write, count), device, at_least=options.seconds)
        for name, write in writers.items()
        for part, count in counts.items()
    }
    samples = alternate(measured, options.rounds)
    report.keep(samples, prefix=f"{preset}, batch {batch}: ")
    seconds = medians(samples)
    firsts = {name: seconds[f"{name}, first"] for name in writers}
    decodes = {
        name: batch * (options.tokens - 1) / max(1e-9, seconds[f"{name}, all"] - firsts[name]) for name in writers
    }
    for name in writers:
        table.add(
            preset=preset,
            batch=batch,
            who=name,
            first=1000 * firsts[name],
            prefill=batch * length / firsts[name],
            decode=decodes[name],
            ratio=None if name == OURS else ratio(decodes[OURS], decodes[name]),
        )


def _compare_samplers(
    report: Report, table: Table, preset: str, model: BaseModel, options: argparse.Namespace, device: torch.device
) -> None:
    strategies = ("greedy", "temperature", "top-k", "top-p")
    samplers = [
        build_sampler(GenerationConfig.model_validate({"strategy": strategy, "temperature": TEMPERATURE}))
        for strategy in strategies
    ]
    prompt = torch.randint(_VOCABULARY, (options.prompt or model.config.sequence_length // 2,)).tolist()

    def together() -> None:
        _consume(model, [prompt] * len(samplers), samplers, options.tokens)

    def apart() -> None:
        for sampler in samplers:
            _consume(model, [prompt], [sampler], options.tokens)

    samples = alternate(
        {name: repeated(write, device, at_least=options.seconds) for name, write in _named(together, apart).items()},
        options.rounds,
    )
    report.keep(samples, prefix=f"{preset}, four samplers: ")
    seconds = medians(samples)
    written = len(samplers) * options.tokens
    table.add(
        preset=preset,
        together=written / seconds["together"],
        apart=written / seconds["apart"],
        ratio=seconds["apart"] / seconds["together"],
    )


def _named(*functions: Callable[[], None]) -> dict[str, Callable[[], None]]:
    return {function.__name__: function for function in functions}


def _consume(model: BaseModel, prompts: list[list[int]], samplers: list[BaseSampler], tokens: int) -> None:
    seeds = list(range(len(prompts)))
    written = sum(1 for _ in generate(model, prompts, samplers, seeds, max_tokens=tokens))
    assert written == tokens


def _write(model: BaseModel, prompts: list[list[int]], tokens: int) -> None:
    sampler = build_sampler(GenerationConfig(temperature=TEMPERATURE, top_k=TOP_K))
    _consume(model, prompts, [sampler] * len(prompts), tokens)


def _write_transformers(model: Any, prompts: list[list[int]], tokens: int) -> None:
    inputs = torch.tensor(prompts, device=model.device)
    result = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=tokens,
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=TOP_K,
        use_cache=True,
    )
    assert result.shape[1] == len(prompts[0]) + tokens


def _write_nanogpt(model: Any, prompts: list[list[int]], tokens: int) -> None:
    inputs = torch.tensor(prompts, device=next(model.parameters()).device)
    model.generate(inputs, tokens, temperature=TEMPERATURE, top_k=TOP_K)
