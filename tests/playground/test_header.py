"""The header in a real browser: what is chosen, how it is doing, and that it recovers."""

from __future__ import annotations

import re
import shutil
import time

import pytest
from playwright.sync_api import expect

from fundamentallm.config import load_config
from fundamentallm.playground.header import first_choice, run_label, selector_choices
from fundamentallm.runs.run_directory import RunDirectory, RunStatus

WATCH_FOR_TOASTS = """() => {
    window.toasts = [];
    new MutationObserver(() => {
        for (const toast of document.querySelectorAll(".toast-body")) window.toasts.push(toast.textContent);
    }).observe(document.body, { childList: true, subtree: true });
}"""


def make_run(parent, name: str, status: RunStatus) -> RunDirectory:
    run = RunDirectory.create(parent, name, config=load_config(preset="small"))
    run.write_status(status)
    time.sleep(0.01)  # creation times order the list
    return run


@pytest.mark.browser
def test_runs_are_listed_newest_first_and_the_state_follows_the_choice(server, open_page):
    runs = server.runs_directory
    older = make_run(runs, "older", RunStatus("stopped", step=5, progress=0.4, best_val_loss=2.5))
    make_run(runs, "newer", RunStatus("failed", step=7, message="The disk is full: make room."))
    page = open_page(server.url)
    status = page.locator("#header-status .fl-status")
    expect(status).to_have_attribute("data-state", "failed")
    expect(page.locator("#run-selector input")).to_have_value(re.compile("newer"))
    page.locator("#run-selector input").click()
    labels = page.get_by_role("option").all_inner_texts()
    assert "newer" in labels[0] and "older" in labels[1]
    page.get_by_role("option").nth(1).click()
    expect(status).to_have_attribute("data-state", "stopped")
    expect(status.locator(".fl-progress")).to_have_attribute("aria-valuenow", "40")
    expect(page.locator("#stop")).to_be_disabled()
    # A run that appears by other means is listed within moments, and the choice stays.
    make_run(runs, "newest", RunStatus("finished", step=7))
    time.sleep(2.5)
    page.locator("#run-selector input").click()
    assert "newest" in page.get_by_role("option").first.inner_text()
    page.keyboard.press("Escape")
    expect(status).to_have_attribute("data-state", "stopped")
    # When the chosen run is removed, the page turns to another one, and that is nobody's error.
    page.evaluate(WATCH_FOR_TOASTS)
    shutil.rmtree(older.path)
    expect(status).to_have_attribute("data-state", "finished")
    assert page.evaluate("window.toasts") == []


@pytest.mark.browser
def test_a_page_left_open_recovers_when_the_server_restarts(tmp_path, serve, open_page):
    runs = tmp_path / "runs"
    make_run(runs, "before", RunStatus("finished", step=5, progress=1.0))
    with serve(tmp_path) as first:
        page = open_page(first.url)
        expect(page.locator("#header-status .fl-status")).to_have_attribute("data-state", "finished")
    make_run(runs, "after", RunStatus("stopped", step=5, progress=0.5))
    with serve(tmp_path, port=first.port):
        expect(page.locator("#run-selector input")).to_have_value(re.compile("after"), timeout=60_000)
        expect(page.locator("#header-status .fl-status")).to_have_attribute("data-state", "stopped")


@pytest.mark.browser
def test_the_page_is_usable_by_keyboard(page):
    page.get_by_role("tab", name="Corpus").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#command textarea")).to_have_value(re.compile("--minutes 1"))
    page.locator("#time input").nth(1).focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#start")).to_have_text("Train small on Tiny Tales for 30 s")
    page.locator("#start").focus()
    assert page.evaluate("document.activeElement.matches(':focus-visible')")


def test_labels_say_what_was_learnt_and_when(tmp_path):
    finished = make_run(tmp_path, "My Text", RunStatus("finished"))
    assert "my-text · " in run_label(finished)
    failed = make_run(tmp_path, "other", RunStatus("failed"))
    assert run_label(failed).startswith("✕ ") and not run_label(failed, marked=False).startswith("✕")
    assert [value for _, value in selector_choices([failed, finished])][:2] == [failed.id, finished.id]


def test_a_fresh_page_shows_the_training_under_way(tmp_path):
    active = make_run(tmp_path, "active", RunStatus("starting", heartbeat=time.time()))
    newer = make_run(tmp_path, "newer", RunStatus("finished"))
    assert first_choice([newer, active]) == active.id
    assert first_choice([newer]) == newer.id


@pytest.mark.browser
def test_a_page_at_rest_leaves_the_processor_alone(server, browser, open_page):
    context = browser.new_context()
    context.add_init_script("""
        window.asked = 0;
        const request = window.requestAnimationFrame.bind(window);
        window.requestAnimationFrame = (callback) => { window.asked += 1; return request(callback); };
    """)
    page = open_page(server.url, context=context)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for _ in range(10):  # until what the page does at its opening is over
        asked.clear()
        before = page.evaluate("window.asked")
        page.wait_for_timeout(3_000)
        frames = page.evaluate("window.asked") - before
        if not frames and all("component_server" in url for url in asked):
            break
    assert frames == 0, "not a frame for nothing"
    assert 1 <= len(asked) <= 3 and all("component_server" in url for url in asked), "a look now and then, and no event"
    context.close()
