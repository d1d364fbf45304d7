"""A real server in its own process on loopback, and a real Chromium where one is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from serving import free_port, serving

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCH = (
    "import sys; from fundamentallm.playground.page import launch; "
    "launch('127.0.0.1', int(sys.argv[1]), sys.argv[2], sys.argv[3] == 'public')"
)
BROWSER_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@dataclass(frozen=True)
class Server:
    url: str
    port: int
    runs_directory: Path
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def running_server(
    directory: Path, *, public: bool = False, port: int | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """The playground over ``directory``/runs until the block ends, with these environment variables besides."""
    port = port or free_port()
    runs, log = directory / "runs", directory / "server.log"
    runs.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
        "GRADIO_TEMP_DIR": str(directory / "uploads"),
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    environment.pop("SPACE_ID", None)
    environment |= {"CPU_CORES": "2", **(variables or {})}
    command = [sys.executable, "-c", LAUNCH, str(port), str(runs), "public" if public else "local"]
    with serving(command, port, log=log, cwd=directory, environment=environment) as process:
        yield Server(f"http://127.0.0.1:{port}/", port, runs, process, log)


def end_trainings(runs_directory: Path) -> None:
    """Ask every training under way to stop, and wait for it."""
    from fundamentallm.runs import launcher
    from fundamentallm.runs.run_directory import list_runs

    for run in list_runs(runs_directory):
        launcher.stop(run, kill_after_seconds=10)


@contextmanager
def without_runs(server: Server) -> Iterator[Server]:
    """The server, to which the block leaves no runs."""
    try:
        yield server
    finally:
        end_trainings(server.runs_directory)
        for run in server.runs_directory.iterdir():
            shutil.rmtree(run)


@pytest.fixture
def runs(tmp_path) -> Iterator[Path]:
    """Where a test's own servers keep their runs; what is still at work at its end is stopped."""
    yield tmp_path / "runs"
    end_trainings(tmp_path / "runs")


@pytest.fixture(scope="session")
def local_server(tmp_path_factory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("playground")) as started:
        yield started


@pytest.fixture(scope="session")
def guarded_server(tmp_path_factory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("public"), public=True) as started:
        yield started


@pytest.fixture(scope="module")
def server(local_server) -> Iterator[Server]:
    """A local-mode playground that begins without runs, for the tests of one file."""
    with without_runs(local_server) as emptied:
        yield emptied


@pytest.fixture(scope="session")
def serve():
    """``running_server``, for tests that start servers of their own."""
    return running_server


@pytest.fixture(scope="module")
def public_server(guarded_server) -> Iterator[Server]:
    """A public-mode playground that begins without runs, for the tests of one file."""
    with without_runs(guarded_server) as emptied:
        yield emptied


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium; the tests that need one skip where none is installed."""
    playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    playwright_api.expect.set_options(timeout=20_000)  # a machine that trains beside the test is slow
    with playwright_api.sync_playwright() as playwright:
        names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        found = next((path for path in map(shutil.which, names) if path), None)
        own = playwright.chromium.executable_path
        executable = found or (own if Path(own).exists() else None)
        if executable is None:
            pytest.skip("no Chromium is installed: `apt-get install chromium` or `playwright install chromium`")
        started = playwright.chromium.launch(executable_path=executable, args=BROWSER_ARGUMENTS)
        yield started
        started.close()


@contextmanager
def page_opener(browser):
    """A function that opens a page in a browser context of its own, and fails the test on what no page may do:
    ask anything of another machine, or throw in its scripts."""
    contexts = []
    wrong: list[str] = []

    def watch(page, on_space: bool):
        def asked(request) -> None:
            if not on_space and not request.url.startswith(("http://127.0.0.1:", "data:", "blob:", "ws://127.0.0.1:")):
                wrong.append(f"external request {request.url}")

        page.on("request", asked)
        page.on("pageerror", lambda error: wrong.append(f"script error {error}"))

    def opened(url: str, *, width: int = 1280, height: int = 900, scheme: str = "light", context=None, on_space=False):
        # On a Space, Gradio's own header asks the Hub about that Space.
        if context is None:
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
            )
            contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        watch(page, on_space)
        page.goto(url)
        page.wait_for_selector("#header-status .fl-status[data-state]:not([data-state='loading'])")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong, wrong


@pytest.fixture
def open_page(browser):
    """``page_opener``'s function, for the pages of one test."""
    with page_opener(browser) as opened:
        yield opened


@pytest.fixture
def page(server, open_page):
    """The page of the local-mode server, freshly opened."""
    return open_page(server.url)


@pytest.fixture(scope="module")
def kept_page(server, browser):
    """The page of the local-mode server, opened once for the tests of one file: opening it takes seconds."""
    with page_opener(browser) as opened:
        yield opened(server.url)
