"""From a text to a validation loss: the whole process of ``fundamentallm train`` against nanoGPT's command for CPUs."""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import peers
from benchmarks.measuring import (
    BenchmarkError,
    Column,
    Report,
    corpus_file,
    fundamentallm_command,
    medians,
    ratio,
    run_child,
)
from fundamentallm.checkpoint import load_checkpoint
from fundamentallm.data.token_store import TokenStore
from fundamentallm.devices import resolve_device
from fundamentallm.runs.run_directory import RunDirectory

# nanoGPT's README, "I only have a macbook (or other cheap computer)".
NANOGPT_OPTIONS = (
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=1",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--dropout=0.0",
)
_NANOGPT_MEASUREMENT = re.compile(r"step \d+: train loss [\d.]+, val loss ([\d.]+)")
OURS = "fundamentallm"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", metavar="FILE", help="a text file instead of Tiny Shakespeare")
    parser.add_argument("--nanogpt", metavar="DIR", help="a checkout of nanoGPT")
    parser.add_argument("--preset", default="small", help="of fundamentallm (default: small)")
    parser.add_argument("--target", type=float, help="validation loss to reach (default: 1.88, none with --minutes)")
    parser.add_argument("--minutes", type=float, help="train so long instead, to the best loss there is time for")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1337, 1338, 1339], help="of fundamentallm, one a round"
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="more settings")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--nanogpt-iterations", type=int, default=2000, help="nanoGPT's max_iters (default: 2000)")


@dataclass(frozen=True)
class Outcome:
    """One training."""

    whole_seconds: float
    """From the start of the process to its end."""
    target_seconds: float | None
    """From the start of the process until it knew that the target was reached; None if it never did."""
    training_seconds: float | None
    steps: int
    loss: float
    """On the whole last tenth, in windows of the context's length that do not overlap."""


def run(options: argparse.Namespace, directory: Path) -> Report:
    target = 1.88 if options.target is None and options.minutes is None else options.target
    device = resolve_device(options.device)
    report = Report("time_to_loss", vars(options) | {"target": target}, device)
    text = corpus_file(options.corpus, directory, report)
    nanogpt = peers.nanogpt(options.nanogpt, report)
    ours: dict[int, Outcome] = {}
    theirs: list[Outcome] = []
    for round_, seed in enumerate(options.seeds):
        place = directory / f"round-{round_}"
        place.mkdir()
        ours[seed] = _train(options, text, target, seed, place)
        if nanogpt is not None:
            try:
                theirs.append(_train_nanogpt(nanogpt, text, target, options.nanogpt_iterations, place))
            except BenchmarkError as error:
                report.note(f"{error} Went on without nanoGPT.")
                nanogpt = None
        shutil.rmtree(place, ignore_errors=True)
    goal = "the best loss in the time" if target is None else f"validation loss {target:g}"
    _fill(report, f"{options.preset}: {goal}", ours, theirs)
    if target is not None:
        late = [seed for seed, outcome in ours.items() if outcome.target_seconds is None]
        if late:
            report.note(f"Not reached with seed {', '.join(map(str, late))}: those times are of the whole training.")
    return report


def _fill(report: Report, title: str, ours: dict[int, Outcome], theirs: list[Outcome]) -> None:
    table = report.table(
        title,
        Column("who", "program"),
        Column("seed", "seed"),
        Column("whole", "whole process, s", ".1f"),
        Column("until", "until the target, s", ".1f"),
        Column("training", "of that training, s", ".1f"),
        Column("steps", "steps", ",.0f"),
        Column("loss", "validation loss", ".4f"),
        Column("ratio", "times faster", ".1f"),
    )
    wholes = {
        name: [outcome.whole_seconds for outcome in outcomes]
        for name, outcomes in ((OURS, list(ours.values())), (peers.NANOGPT, theirs))
    }
    report.keep(wholes)
    middle = medians(wholes)

    def row(name: str, seed: str, outcomes: list[Outcome], faster: float | None = None) -> None:
        reached = [outcome.target_seconds for outcome in outcomes if outcome.target_seconds is not None]
        training = [outcome.training_seconds for outcome in outcomes if outcome.training_seconds is not None]
        table.add(
            who=name,
            seed=seed,
            whole=statistics.median(outcome.whole_seconds for outcome in outcomes),
            until=statistics.median(reached) if len(reached) == len(outcomes) else None,
            training=statistics.median(training) if training else None,
            steps=statistics.median(outcome.steps for outcome in outcomes),
            loss=statistics.median(outcome.loss for outcome in outcomes),
            ratio=faster,
        )

    for seed, outcome in ours.items():
        row(OURS, str(seed), [outcome])
    if len(ours) > 1:
        row(OURS, "worst of each", [_worst(list(ours.values()))])
    row(OURS, "median", list(ours.values()), ratio(middle.get(peers.NANOGPT), middle[OURS]))
    if theirs:
        # Its command ends after its steps, whatever the loss; it has no other way to stop.
        row(peers.NANOGPT, "median", theirs)


def _worst(outcomes: list[Outcome]) -> Outcome:
    """The largest of every number."""
    until = [outcome.target_seconds for outcome in outcomes]
    training = [outcome.training_seconds for outcome in outcomes]
    return Outcome(
        max(outcome.whole_seconds for outcome in outcomes),
        None if None in until else max(seconds for seconds in until if seconds is not None),
        None if None in training else max(seconds for seconds in training if seconds is not None),
        max(outcome.steps for outcome in outcomes),
        max(outcome.loss for outcome in outcomes),
    )


def _train(options: argparse.Namespace, text: Path, target: float | None, seed: int, place: Path) -> Outcome:
    command = fundamentallm_command("train", text, "--preset", options.preset, "--seed", str(seed), "--json")
    command += ["--device", options.device, "--run-dir", place / "run"]
    if target is not None:
        command += ["--set", f"training.target_val_loss={target}"]
    if options.minutes is not None:
        command += ["--minutes", str(options.minutes)]
    for override in options.set:
        command += ["--set", override]
    child = run_child(command, place)
    seconds, ended = next((s, e) for s, e in child.events() if e.get("event") == "training_ended")
    run = RunDirectory(place / "run")
    model = load_checkpoint(run.checkpoint("best")).model.eval()
    tokens = TokenStore.open(run.path / "tokens" / "val.bin").tokens
    loss = whole_loss(model, tokens, model.config.sequence_length)
    return Outcome(
        whole_seconds=child.seconds,
        target_seconds=seconds if target is not None and loss <= target else None,
        training_seconds=ended["elapsed_seconds"],
        steps=ended["step"],
        loss=loss,
    )


def _train_nanogpt(nanogpt: peers.NanoGPT, text: Path, target: float | None, iterations: int, place: Path) -> Outcome:
    """Its whole command; preparing the text, which ours does within its time, is not counted."""
    workplace = nanogpt.workplace(place, text.read_text(encoding="utf-8"))
    limits = [f"--max_iters={iterations}", f"--lr_decay_iters={iterations}"]
    if iterations < 250:  # it saves only where it measures
        limits.append(f"--eval_interval={iterations}")
    child = run_child([sys.executable, "train.py", *NANOGPT_OPTIONS, *limits], workplace)
    passed = (
        seconds
        for seconds, line in child.lines
        if target is not None and (match := _NANOGPT_MEASUREMENT.match(line)) and float(match[1]) <= target
    )
    checkpoint = next(workplace.rglob("ckpt.pt"), None)
    if checkpoint is None:
        raise BenchmarkError("nanoGPT saved no checkpoint.")
    model = nanogpt.trained_model(checkpoint).eval()
    tokens = np.fromfile(workplace / "data" / "shakespeare_char" / "val.bin", dtype=np.uint16)
    return Outcome(
        whole_seconds=child.seconds,
        target_seconds=next(passed, None),
        training_seconds=None,
        steps=iterations,
        # Its model gives the logits of every position only where it is given targets.
        loss=whole_loss(lambda inputs: model(inputs, inputs)[0], tokens, 64),
    )


@torch.inference_mode()
def whole_loss(logits_of: Callable[[Tensor], Tensor], tokens: npt.NDArray[Any], window: int) -> float:
    """Mean loss of every token but the first, nats, float32, in windows of the context's length side by side."""
    everything = torch.from_numpy(tokens.astype(np.int64))
    total = 0.0
    for inputs, targets in zip(everything[:-1].split(window * 64), everything[1:].split(window * 64), strict=True):
        for length in (window, len(inputs) % window):  # the whole windows as one batch, then what is left over
            part = slice(0, len(inputs) - len(inputs) % window) if length == window else slice(-length, None)
            if length and len(inputs[part]):
                logits = logits_of(inputs[part].view(-1, length)).flatten(0, 1)
                total += float(F.cross_entropy(logits.float(), targets[part], reduction="sum"))
    return total / (len(everything) - 1)
