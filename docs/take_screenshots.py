"""Take the pictures of docs/images anew: train a minute in the playground, and photograph every tab.

    python docs/take_screenshots.py

Needs playwright and a Chromium, and a machine that has nothing else to do, since the pictures show its speed.
"""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

IMAGES = Path(__file__).parent / "images"
PATIENCE_MILLISECONDS = 300_000


def main() -> None:
    """Serve, train, photograph."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "fundamentallm", "playground", "--port", str(port), "--runs-dir", runs]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}/"
            wait_for(url)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
                page.goto(url)
                photograph_all(page)
                browser.close()
        finally:
            server.terminate()
            server.wait()


def wait_for(url: str) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def photograph_all(page: Page) -> None:
    """Go through the tabs as a newcomer would."""
    expect(page.locator("#corpus-tokens")).to_contain_text("·", timeout=PATIENCE_MILLISECONDS)
    photograph(page, "corpus")
    open_tab(page, "Train")
    page.locator("#start").click()
    expect(page.locator("#header-status")).to_contain_text("Finished", timeout=PATIENCE_MILLISECONDS)
    photograph(page, "train")
    open_tab(page, "Compare")
    page.locator("#compare-write").click()
    expect(page.locator("#compare-write")).to_be_disabled()
    expect(page.locator("#compare-write")).to_be_enabled(timeout=PATIENCE_MILLISECONDS)
    photograph(page, "compare")
    open_tab(page, "Evaluate")
    expect(page.locator("#evaluate-ladder .bars .point")).to_have_count(8, timeout=PATIENCE_MILLISECONDS)
    photograph(page, "evaluate")


def open_tab(page: Page, name: str) -> None:
    """Bring a tab to the front."""
    page.get_by_role("tab", name=name).click()


def photograph(page: Page, name: str) -> None:
    """Save what is seen, in 256 colours: a third of the size, and no difference to the eye."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)  # for transitions to end
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    reduced = picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    reduced.save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
