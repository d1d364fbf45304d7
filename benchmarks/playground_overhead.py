"""What watching costs: a training started from the page, with the page in sight, against the same training alone.

Two trainings one after the other differ by more than a page costs. So it is one training, during which browser and
server are stopped and go on in turn, as by ``kill -STOP`` and ``kill -CONT``: while they are stopped, nothing of them
runs, and the training is the command alone. What piled up meanwhile is counted against the page.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import yaml

from benchmarks.browser import Playground, chromium, playground
from benchmarks.measuring import BenchmarkError, Column, Report, fundamentallm_command, medians, run_child
from fundamentallm.runs.launcher import train_command
from fundamentallm.runs.run_directory import RunDirectory, list_runs

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ALONE, WATCHED = "alone", "with the page in sight"
_DRAWN_UP_TO = "step => (document.querySelector('.fl-loss-chart')?.data?.[0]?.x ?? []).at(-1) >= step"
# Until a training that was just started, and the page that shows it, have found their pace.
_SETTLING_SECONDS = 10.0
# A training is given so much more time than is measured of it.
_SPARE_SECONDS = 60.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="small", help="small, default or large (default: small)")
    parser.add_argument("--pairs", type=int, default=20, help="times that the page is seen, and not seen (default: 20)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each (default: 10)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="more settings")


def run(options: argparse.Namespace, directory: Path) -> Report:
    report = Report("playground_overhead", vars(options))
    table = report.table(
        f"Training {options.preset} on Tiny Tales, by turns {options.seconds:g} s with the page and without it",
        Column("who", "training"),
        Column("speed", "tokens/s", ",.0f"),
        Column("slower", "lost, %", ".1f"),
        Column("error", "standard error of it, %", ".1f"),
    )
    try:
        with chromium() as browser, playground(directory) as served:
            samples = _watched_now_and_then(options, browser, served)
    except BenchmarkError as error:
        report.note(f"{error} Only the command alone was measured.")
        samples = {ALONE: [_train_alone(_arguments(options), directory / "alone")]}
    report.keep(samples)
    speed = medians(samples)
    table.add(who=ALONE, speed=speed[ALONE])
    if WATCHED in samples:
        lost = losses(samples[ALONE], samples[WATCHED])
        spread = statistics.stdev(lost) / len(lost) ** 0.5 if len(lost) > 1 else None
        table.add(who=WATCHED, speed=speed[WATCHED], slower=statistics.mean(lost), error=spread)
    return report


def losses(alone: Sequence[float], watched: Sequence[float]) -> list[float]:
    """By how many per cent each watched speed is below the mean of those alone right before and right after it."""
    around = itertools.pairwise(alone)
    return [100 * (1 - speed / statistics.mean(two)) for speed, two in zip(watched, around, strict=True)]


def _watched_now_and_then(options: argparse.Namespace, browser: Browser, served: Playground) -> dict[str, list[float]]:
    """The speeds alone, one more than those watched, which lie between them."""
    from playwright.sync_api import Error as PlaywrightError  # there, since there is a browser

    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(300_000)
    try:
        run = _start(options, page, served)
        try:
            windows = _windows(options, page, served, run)
        finally:  # whatever happened: nothing is measured beside it
            run.request_stop()
            while run.status().is_active:
                time.sleep(0.1)
    except PlaywrightError as error:
        raise BenchmarkError(
            f"The page did not do what was expected: {str(error).splitlines()[0].rstrip('.')}."
        ) from None
    speeds = [speed_between(run, *window) for window in windows]
    return {ALONE: speeds[::2], WATCHED: speeds[1::2]}


def _windows(
    options: argparse.Namespace, page: Page, served: Playground, run: RunDirectory
) -> list[tuple[float, float]]:
    """When each window began and ended; without the page in the first, the third, and so on to the last."""
    while not run.metrics():
        _require_running(run)
        time.sleep(0.1)
    time.sleep(_SETTLING_SECONDS)
    windows = []
    for number in range(2 * options.pairs + 1):
        with _stopped(served) if number % 2 == 0 else contextlib.nullcontext():
            started = time.time()
            time.sleep(options.seconds)
            windows.append((started, time.time()))
        _require_running(run)
    # It did go on: the curve reaches what was learned after the page was last stopped.
    page.wait_for_function(_DRAWN_UP_TO, arg=run.metrics()[-1]["step"], timeout=30_000)
    return windows


def _require_running(run: RunDirectory) -> None:
    status = run.status()
    if not status.is_active:
        raise BenchmarkError(f"The training on the page ended too early: {status.message}")


@contextlib.contextmanager
def _stopped(served: Playground) -> Iterator[None]:
    """Browser and server do not run; the training, a process that the server started, does."""
    training = psutil.Process(served.pid).children(recursive=True)
    processes = [process for process in psutil.Process().children(recursive=True) if process not in training]
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


def speed_between(run: RunDirectory, start: float, end: float) -> float:
    """Tokens per second between two times, in seconds since 1970, measurements and checkpoints included."""
    rows = run.metrics()
    seconds = np.array([row["elapsed_seconds"] for row in rows], np.float64)
    seconds += run.metrics_path.stat().st_mtime - seconds[-1]  # the last row was written when it was measured
    before, after = map(float, np.interp([start, end], seconds, [row["tokens"] for row in rows]))
    return (after - before) / (end - start)


def _minutes(options: argparse.Namespace) -> float:
    measured: float = _SETTLING_SECONDS + (2 * options.pairs + 1) * options.seconds
    return round((measured + _SPARE_SECONDS) / 60, 2)


def _arguments(options: argparse.Namespace) -> list[str]:
    """What follows ``fundamentallm train``, as the page shows it."""
    overrides = {name: yaml.safe_load(value) for name, _, value in (text.partition("=") for text in options.set)}
    return train_command(["tiny-tales"], preset=options.preset, minutes=_minutes(options), overrides=overrides)


def _train_alone(arguments: list[str], place: Path) -> float:
    place.mkdir()
    run_child(fundamentallm_command("train", *arguments, "--run-dir", place / "run", "--quiet"), place)
    last = RunDirectory(place / "run").metrics()[-1]
    return float(last["tokens"]) / float(last["elapsed_seconds"])


def _start(options: argparse.Namespace, page: Page, served: Playground) -> RunDirectory:
    """Press the button as a person would, and leave the tab open."""
    page.goto(served.url)
    page.get_by_role("tab", name="Train").click()
    page.locator("#preset label", has_text=options.preset.capitalize()).click()
    page.locator("#time label", has_text="Custom").click()
    page.locator("#minutes input").fill(f"{_minutes(options):g}")
    page.locator("#minutes input").blur()
    if options.set:
        page.get_by_role("button", name="Advanced").click()
        page.locator("#more-settings textarea").fill("\n".join(options.set))
        page.locator("#more-settings textarea").blur()
    # The order in which the page names the settings is its own affair.
    expected = sorted(["fundamentallm", "train", *_arguments(options)])
    page.wait_for_function(
        "words => document.querySelector('#command textarea').value.split(' ').sort().join(' ') === words",
        arg=" ".join(expected),
        timeout=300_000,
    )
    # The measured estimate would compete with the training: a person reads it before pressing the button.
    page.wait_for_timeout(1000)  # until it is about these settings
    page.wait_for_selector("#estimate .fl-estimate[data-state=known]")
    page.locator("#start").click()
    return _started_run(served.runs_directory)


def _started_run(runs_directory: Path, seconds: float = 300.0) -> RunDirectory:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        runs = list_runs(runs_directory)
        if runs:
            return runs[0]
        time.sleep(0.1)
    raise BenchmarkError("The page did not start a training.")
