"""Waiting for the first sign of life: help, import, first training step, first page, each from a process's start."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from benchmarks.browser import chromium, playground
from benchmarks.measuring import (
    BenchmarkError,
    Column,
    Report,
    alternate,
    corpus_file,
    fundamentallm_command,
    medians,
    run_child,
)

_BARE = "python, doing nothing"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", metavar="FILE", help="a text file instead of Tiny Shakespeare")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="more settings")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-page", action="store_true", help="leave the playground out")


def run(options: argparse.Namespace, directory: Path) -> Report:
    report = Report("start_up", vars(options))
    text = corpus_file(options.corpus, directory, report)
    names = count()

    def place() -> Path:
        path = directory / f"start-{next(names)}"
        path.mkdir()
        return path

    def process(*command: str | Path) -> Callable[[], float]:
        return lambda: run_child(command, place()).seconds

    def first_step() -> float:
        here = place()
        command = fundamentallm_command("train", text, "--preset", options.preset, "--json", "--run-dir", here / "run")
        command += ["--set", "training.log_every_n_steps=1"]
        command += [part for override in options.set for part in ("--set", override)]
        child = run_child(command, here, until=_is_first_step)
        if not child.lines or not _is_first_step(child.lines[-1][1]):
            raise BenchmarkError("The training ended before its first step.")
        return child.lines[-1][0]

    def first_page() -> float:
        with playground(place()) as served:
            return served.seconds_to_page

    contestants = {
        _BARE: process(sys.executable, "-c", "pass"),
        "fundamentallm --help": process(*fundamentallm_command("--help")),
        "import fundamentallm": process(sys.executable, "-c", "import fundamentallm"),
        "fundamentallm train: first step": first_step,
    }
    with ExitStack() as stack:
        if not options.no_page:
            contestants["fundamentallm playground: first page served"] = first_page
            try:
                browser = stack.enter_context(chromium())
            except BenchmarkError as error:
                report.note(str(error))
            else:

                def first_page_drawn() -> float:
                    page = browser.new_page()
                    with playground(place()) as served:
                        started = time.perf_counter()
                        page.goto(served.url)
                        page.wait_for_selector("#start, #corpus-source", state="visible", timeout=300_000)
                        seconds = served.seconds_to_page + time.perf_counter() - started
                    page.close()
                    return seconds

                contestants["fundamentallm playground: first page drawn"] = first_page_drawn
        samples = alternate(contestants, options.rounds)
    report.keep(samples)
    seconds = medians(samples)
    table = report.table(
        "From the start of the process",
        Column("what", "what"),
        Column("seconds", "median, s", ".2f"),
        Column("worst", "worst, s", ".2f"),
        Column("above", "above bare Python, s", ".2f"),
    )
    for what, value in seconds.items():
        above = None if what == _BARE else value - seconds[_BARE]
        table.add(what=what, seconds=value, worst=max(samples[what]), above=above)
    return report


def _is_first_step(line: str) -> bool:
    event = json.loads(line)
    return bool(event.get("event") == "step_logged" and event["metrics"]["step"] >= 1)
