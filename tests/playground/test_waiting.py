"""The waiting line of a public page: over the API across a restart of the server, and in two browsers side by side."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
from gradio_client import Client

from fundamentallm.config import load_config
from fundamentallm.runs import waiting_line
from fundamentallm.runs.run_directory import RunDirectory, RunStatus

# As slow as a real training: a tiny one would keep the browser drawing.
PACED = {
    "model.num_layers": 1,
    "model.d_model": 128,
    "model.num_heads": 2,
    "model.sequence_length": 64,
    "training.batch_size": 32,
}
TEXT = "one two three four five six seven\n" * 300


def start(client: Client, **settings: object) -> str:
    return client.predict("paste", TEXT, "small", 5, PACED | settings, api_name="/start_training")


def status_of(client: Client, run_id: str) -> dict[str, object]:
    return client.predict(run_id, api_name="/run_status")


def wait_for(client: Client, run_id: str, *states: str, seconds: float = 60) -> dict[str, object]:
    deadline = time.monotonic() + seconds
    while (status := status_of(client, run_id))["state"] not in states:
        assert time.monotonic() < deadline, status
        time.sleep(0.3)
    return status


def test_the_line_moves_on_by_itself_and_survives_a_restart(tmp_path, runs, serve):
    with serve(tmp_path, public=True) as server:
        one, two, three = clients = [Client(server.url, verbose=False) for _ in range(3)]
        first = start(one)
        assert wait_for(one, first, "running")["place"] is None
        second = start(two, **{"training.max_steps": 30})
        third = start(three, **{"training.max_steps": 30})
        status = status_of(two, second)
        assert (status["state"], status["place"], status["waiting"]) == ("waiting", 1, 2)
        assert 100 < status["starts_in_seconds"] < 400
        status = status_of(three, third)
        assert (status["place"], status["waiting"]) == (2, 2) and status["starts_in_seconds"] > 400
        with pytest.raises(Exception, match="waits for its turn"):
            start(two)
        with pytest.raises(Exception, match="no such run"):
            three.predict(second, api_name="/stop_training")
        # The second leaves the line, and comes in again behind the third.
        stopped = two.predict(second, api_name="/stop_training")
        assert (stopped["state"], stopped["place"]) == ("stopped", None)
        again = start(two, **{"training.max_steps": 30})
        assert (status_of(two, again)["place"], status_of(three, third)["place"]) == (2, 1)
        sessions = [client.session_hash for client in clients]
    assert RunDirectory(runs / third).status().state == "waiting", "the line is in the files"
    with serve(tmp_path, public=True, port=server.port) as server:
        one, two, three = clients = [Client(server.url, verbose=False) for _ in range(3)]
        for client, session in zip(clients, sessions, strict=True):
            client.session_hash = session
        assert status_of(one, first)["state"] == "running"
        assert (status_of(two, again)["place"], status_of(three, third)["place"]) == (2, 1)
        time.sleep(2.5)
        assert status_of(three, third)["state"] == "waiting", "there is no place yet"
        one.predict(first, api_name="/stop_training")
        wait_for(three, third, "starting", "running", "finished", seconds=30)
        assert status_of(two, again)["state"] == "waiting"
        assert wait_for(three, third, "finished", "failed")["state"] == "finished"
        assert wait_for(two, again, "finished", "failed")["step"] == 30
        assert not list(Path(runs).glob("*/waiting.json"))


@pytest.mark.browser
def test_two_browsers_side_by_side(tmp_path, public_server, open_page):
    from playwright.sync_api import expect

    def begin(page, text: str, name: str) -> None:
        page.locator("#corpus-source label", has_text="Your files").click()
        (tmp_path / name).write_text(text, encoding="utf-8")
        page.locator("#corpus-files input[type=file]").set_input_files(tmp_path / name)
        page.get_by_role("tab", name="Train").click()
        page.get_by_role("button", name="Advanced").click()
        page.locator("#more-settings textarea").fill("\n".join(f"{path}={value}" for path, value in PACED.items()))
        page.locator("#time label", has_text="5 min").click()
        expect(page.locator("#start")).to_have_text(f"Train small on {name} for 5 min")
        page.locator("#start").click()

    def state(page):
        return page.locator("#header-status .fl-status")

    mine, theirs = open_page(public_server.url), open_page(public_server.url)
    begin(mine, "the zebra is mine alone\n" * 300, "zebra.txt")
    expect(state(mine)).to_have_attribute("data-state", "running", timeout=60_000)
    begin(theirs, "their quince is theirs alone\n" * 300, "quince.txt")
    expect(state(theirs)).to_have_attribute("data-state", "waiting")
    expect(state(theirs)).to_contain_text(re.compile(r"Waiting.*place 1 of 1, about \d minutes", re.DOTALL))
    expect(theirs.locator(".fl-phase")).to_contain_text("It starts by itself")
    expect(theirs.locator("#stop")).to_have_text("Cancel")
    expect(theirs.locator("#stop")).to_be_enabled()
    expect(theirs.locator("#run-selector input")).to_have_value(re.compile("^○ .*quince"))

    theirs.reload()
    theirs.get_by_role("tab", name="Train").click()
    expect(state(theirs)).to_have_attribute("data-state", "waiting")
    expect(theirs.locator("#run-selector input")).to_have_value(re.compile("quince"))

    # Nobody is offered, or shown, what is another's.
    for page, own, foreign in ((mine, "zebra", "quince"), (theirs, "quince", "zebra")):
        page.locator("#run-selector input").click()
        labels = page.get_by_role("option").all_inner_texts()
        assert any(own in label for label in labels) and not any(foreign in label for label in labels)
        page.keyboard.press("Escape")
        assert foreign not in page.content()

    theirs.locator("#stop").click()
    expect(state(theirs)).to_have_attribute("data-state", "stopped")
    expect(theirs.locator(".fl-phase")).to_contain_text("left the waiting line")
    expect(theirs.locator("#stop")).to_have_text("Stop")
    theirs.locator("#resume").click()
    expect(state(theirs)).to_have_attribute("data-state", "waiting")

    expect(mine.locator("#keep")).to_be_hidden()
    mine.locator("#stop").click()
    expect(state(mine)).to_have_attribute("data-state", "stopped", timeout=30_000)
    expect(mine.locator("#keep")).to_contain_text("kept here for 24 hours")
    expect(state(theirs)).to_have_attribute("data-state", re.compile("starting|running"), timeout=30_000)
    expect(state(theirs)).to_have_attribute("data-state", "running", timeout=60_000)
    theirs.wait_for_function("(document.querySelector('.fl-loss-chart').data?.[0]?.x ?? []).length > 3")
    theirs.locator("#stop").click()
    expect(state(theirs)).to_have_attribute("data-state", "stopped", timeout=30_000)


@pytest.mark.browser
def test_on_a_phone_the_place_in_the_line_fits(public_server, open_page):
    from playwright.sync_api import expect

    page = open_page(public_server.url, width=390, height=844)
    busy = RunDirectory.create(public_server.runs_directory, "busy", config=load_config(preset="small"))
    try:
        busy.write_status(RunStatus("starting", heartbeat=time.time(), remaining_seconds=240))
        page.get_by_role("tab", name="Train").click()
        page.locator("#start").click()
        expect(page.locator("#header-status .fl-status")).to_have_attribute("data-state", "waiting", timeout=60_000)
        expect(page.locator("#header-status .fl-left")).to_have_text("place 1 of 1, about 4 minutes")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert len(waiting_line.waiting_runs(public_server.runs_directory)) == 1
        page.locator("#stop").click()
        expect(page.locator("#header-status .fl-status")).to_have_attribute("data-state", "stopped")
    finally:
        shutil.rmtree(busy.path)
