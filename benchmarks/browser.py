"""A playground in a process of its own, and a headless Chromium to look at it, for the benchmarks that need them."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measuring import BenchmarkError, child_environment, fundamentallm_command

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
_START_SECONDS = 300.0


@dataclass(frozen=True)
class Playground:
    url: str
    runs_directory: Path
    pid: int
    seconds_to_page: float
    """From the start of its process until it answered with the page."""


@contextlib.contextmanager
def playground(directory: Path) -> Iterator[Playground]:
    """``fundamentallm playground`` over ``directory``/runs, until the block ends."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    runs, log = directory / "runs", directory / "playground.log"
    command = fundamentallm_command("playground", "--port", str(port), "--runs-dir", runs)
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=directory,
            env=child_environment() | {"GRADIO_TEMP_DIR": str(directory / "uploads")},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}/"
    try:
        while not _answers(url):
            if process.poll() is not None or time.perf_counter() - started > _START_SECONDS:
                raise BenchmarkError(f"The playground did not start: {_last_line(log)}.")
            time.sleep(0.01)
        yield Playground(url, runs, process.pid, time.perf_counter() - started)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium.

    Raises:
        BenchmarkError: Playwright or a browser is not installed.
    """
    if importlib.util.find_spec("playwright") is None:
        raise BenchmarkError("Without a browser, since Playwright is not installed: `pip install playwright`.")
    from playwright.sync_api import sync_playwright  # only for these benchmarks

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    with sync_playwright() as playwright:
        found = next((path for path in map(shutil.which, names) if path), None)
        own = playwright.chromium.executable_path
        executable = found or (own if Path(own).exists() else None)
        if executable is None:
            raise BenchmarkError("Without a browser, since no Chromium is installed: `playwright install chromium`.")
        browser = playwright.chromium.launch(executable_path=executable, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return bool(response.status == 200 and response.read())
    except (urllib.error.URLError, OSError):
        return False


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].rstrip(".") if lines else "it said nothing"
