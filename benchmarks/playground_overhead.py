"""What watching costs: a training started from the page, the page open, against the same command alone."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from benchmarks.browser import chromium, playground
from benchmarks.measuring import BenchmarkError, Column, Report, fundamentallm_command, medians, run_child
from fundamentallm.runs.launcher import train_command
from fundamentallm.runs.run_directory import RunDirectory, list_runs

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ALONE, WATCHED = "the command alone", "with the page open"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="small", help="small, default or large (default: small)")
    parser.add_argument("--minutes", type=float, default=1.0, help="of every training (default: 1)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="more settings")
    parser.add_argument("--rounds", type=int, default=3)


def run(options: argparse.Namespace, directory: Path) -> Report:
    report = Report("playground_overhead", vars(options))
    samples: dict[str, list[float]] = {ALONE: [], WATCHED: []}
    table = report.table(
        f"Training {options.preset} on Tiny Tales for {options.minutes:g} min",
        Column("who", "training"),
        Column("speed", "tokens/s", ",.0f"),
        Column("slower", "lost, %", ".1f"),
    )
    try:
        with chromium() as browser:
            for round_ in range(options.rounds):
                place = directory / f"round-{round_}"
                place.mkdir()
                _round(options, samples, browser, place, alone_first=bool(round_ % 2))
                shutil.rmtree(place, ignore_errors=True)
    except BenchmarkError as error:
        if not samples[WATCHED]:
            report.note(f"{error} Only the command alone was measured.")
            samples[ALONE].append(_train_alone(_arguments(options), directory / "alone"))
        else:
            report.note(str(error))
    report.keep(samples)
    speed = medians(samples)
    table.add(who=ALONE, speed=speed[ALONE])
    if WATCHED in speed:
        table.add(who=WATCHED, speed=speed[WATCHED], slower=100 * (1 - speed[WATCHED] / speed[ALONE]))
    return report


def _round(
    options: argparse.Namespace, samples: dict[str, list[float]], browser: Browser, place: Path, *, alone_first: bool
) -> None:
    from playwright.sync_api import Error as PlaywrightError  # there, since there is a browser

    if alone_first:
        samples[ALONE].append(_train_alone(_arguments(options), place / "alone"))
    try:
        command, speed = _train_watched(options, browser, place)
    except PlaywrightError as error:
        raise BenchmarkError(
            f"The page did not do what was expected: {str(error).splitlines()[0].rstrip('.')}."
        ) from None
    samples[WATCHED].append(speed)
    if not alone_first:
        samples[ALONE].append(_train_alone(command, place / "alone"))


def _arguments(options: argparse.Namespace) -> list[str]:
    """What follows ``fundamentallm train``, as the page shows it."""
    overrides = {name: yaml.safe_load(value) for name, _, value in (text.partition("=") for text in options.set)}
    return train_command(["tiny-tales"], preset=options.preset, minutes=options.minutes, overrides=overrides)


def _train_alone(arguments: list[str], place: Path) -> float:
    place.mkdir()
    run_child(fundamentallm_command("train", *arguments, "--run-dir", place / "run", "--quiet"), place)
    return tokens_per_second(RunDirectory(place / "run"))


def _train_watched(options: argparse.Namespace, browser: Browser, place: Path) -> tuple[list[str], float]:
    """Press the button as a person would, and leave the tab open until the training has ended."""
    with playground(place) as served:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(300_000)
        page.goto(served.url)
        page.get_by_role("tab", name="Train").click()
        page.locator("#preset label", has_text=options.preset.capitalize()).click()
        page.locator("#time label", has_text="Custom").click()
        page.locator("#minutes input").fill(f"{options.minutes:g}")
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
        run = _started_run(served.runs_directory)
        while run.status().is_active:
            time.sleep(0.5)
        status = run.status()
        page.close()
        if status.state != "finished":
            raise BenchmarkError(f"The training on the page did not finish: {status.message}")
        return run.command[2:], tokens_per_second(run)


def _started_run(runs_directory: Path, seconds: float = 300.0) -> RunDirectory:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        runs = list_runs(runs_directory)
        if runs:
            return runs[0]
        time.sleep(0.1)
    raise BenchmarkError("The page did not start a training.")


def tokens_per_second(run: RunDirectory) -> float:
    """Over the whole training, with its measurements and checkpoints: what a person gets in the time."""
    last = run.metrics()[-1]
    return float(last["tokens"]) / float(last["elapsed_seconds"])
