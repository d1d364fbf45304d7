"""Datasets of the Hub in the Corpus tab and over the API, from a loopback Hub with the real client."""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
from pathlib import Path

import hub_server
import pytest
from conftest import end_trainings
from gradio_client import Client
from hub_server import Hub, running_hub, stand_in

from fundamentallm.errors import CorpusError, HubError
from fundamentallm.playground import jobs
from fundamentallm.playground.corpus_tab import chosen_corpus
from fundamentallm.playground.hub_texts import HUB_TEXTS, HubTexts, dataset_source
from fundamentallm.playground.settings import PUBLIC_LIMITS, Limits, PlaygroundSettings, Visitor
from fundamentallm.runs import waiting_line
from fundamentallm.runs.run_directory import RunDirectory, RunStatus

STORY = "A fox met a hen, and they sang all night.\n"
TINY = {"model.num_layers": 1, "model.d_model": 16, "model.num_heads": 1, "model.sequence_length": 16}

rest = threading.Event().wait  # time.sleep does not rest here: the stand-in for the Hub has made its client impatient


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with running_hub() as hub:
        hub.users = {"hf_alice": "alice"}
        stand_in(hub, monkeypatch, tmp_path)
        hub.add("alice/stories", {"train.txt": STORY.encode() * 200, "test.txt": b"held out\n" * 200}, kind="dataset")
        yield hub


@pytest.fixture
def slow(monkeypatch):
    """Let the Hub send ten kilobytes at a time, with a rest after each."""

    def send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        for start in range(0, len(content), 10_000):
            self.wfile.write(content[start : start + 10_000])
            rest(0.05)

    monkeypatch.setattr(hub_server._Handler, "_send", send)


def fetches(hub: Hub) -> int:
    return sum("/resolve/" in path for _, path, _ in hub.requests)


def test_each_dataset_is_fetched_once_and_the_size_comes_first(hub, tmp_path):
    settings, texts, told = PlaygroundSettings(tmp_path / "runs"), HubTexts(capacity=1), []
    source = dataset_source(" hub:alice/stories ")
    assert source == dataset_source("alice/stories") == "hub:alice/stories"
    with pytest.raises(CorpusError, match="press Fetch"):
        texts.get(settings, source)
    corpus = texts.fetch(settings, source, lambda share, what: told.append((share, what)))
    assert corpus.read() == STORY * 200
    assert told[0] == (0.0, "Fetching 0.0 MB of alice/stories from the Hub")
    assert [share for share, _ in told] == sorted(share for share, _ in told)
    assert texts.fetch(settings, source) is texts.get(settings, source) is corpus
    assert fetches(hub) == 1
    texts.fetch(settings, "hub:alice/stories:test")
    assert not texts.has(settings, source), "only so many are kept"
    assert corpus.read() == STORY * 200, "and what is in use stays"


def test_a_public_page_takes_the_beginning_and_asks_as_nobody(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    hub.add("alice/secret", {"train.txt": STORY.encode() * 200}, kind="dataset", private=True)
    hub.add("alice/packed", {"train.txt.gz": gzip.compress(STORY.encode() * 200)}, kind="dataset")
    hub.add("alice/records", {"train.jsonl": json.dumps({"text": STORY}).encode() + b"\n"}, kind="dataset")
    local = PlaygroundSettings(tmp_path / "runs")
    public = PlaygroundSettings(tmp_path / "runs", True, Limits(corpus_bytes=1000))
    assert HubTexts().fetch(local, "hub:alice/secret").read() == STORY * 200
    texts = HubTexts()
    with pytest.raises(HubError) as error:
        texts.fetch(public, "hub:alice/secret")
    assert "hf_alice" not in str(error.value)
    corpus = texts.fetch(public, "hub:alice/stories")
    assert corpus.read() == STORY * (1000 // len(STORY))
    assert any("Only the first" in note for note in corpus.notes)
    packed = texts.fetch(public, "hub:alice/packed")
    assert len(packed.read().encode()) == 1000 and any("Only the first" in note for note in packed.notes)
    assert texts.fetch(public, "hub:alice/records").read().startswith(STORY)
    assert {token for _, path, token in hub.requests if "/secret" not in path} <= {""}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("hub:", "no dataset yet"),
        ("hub:alice", "names no dataset"),
        ("hub:../../etc", "names no dataset"),
        ("hub:alice/nothing", "alice/nothing"),
        ("hub:alice/stories:nowhere", "no split 'nowhere'"),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence(hub, tmp_path, source, says):
    settings, texts = PlaygroundSettings(tmp_path / "runs"), HubTexts()
    with pytest.raises((CorpusError, HubError), match=re.escape(says)) as error:
        texts.fetch(settings, source)
    assert re.fullmatch(r"[^\n]+\.", str(error.value))
    with pytest.raises(CorpusError):
        chosen_corpus(settings, source, None, None)


def test_fetching_is_stopped_at_once_and_leaves_nothing(hub, slow, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    hub.add("alice/long", {"train.txt": STORY.encode() * 100_000}, kind="dataset")
    started = time.monotonic()
    with pytest.raises(CorpusError, match="stopped"):
        HubTexts().fetch(
            PlaygroundSettings(tmp_path), "hub:alice/long", cancelled=lambda: time.monotonic() > started + 0.5
        )
    assert time.monotonic() - started < 5
    assert not list(tmp_path.glob("fundamentallm-*"))


def test_a_training_keeps_its_own_copy(hub, tmp_path):
    """It is fetched once, and never again: not by the trainer, nor by whoever resumes or evaluates."""
    settings = PlaygroundSettings(tmp_path / "runs", True, PUBLIC_LIMITS)
    busy = RunDirectory.create(settings.runs_directory, "busy", config=jobs.resolve(settings, "small", 1, {}))
    busy.write_status(RunStatus("starting", heartbeat=time.time()))
    visitor = Visitor.of("the secret of some browser")
    with pytest.raises(CorpusError, match="press Fetch"):
        jobs.start_training(settings, visitor, source="hub:alice/stories:train")
    HUB_TEXTS.fetch(settings, "hub:alice/stories:train")
    run = jobs.start_training(settings, visitor, source="hub:alice/stories:train")
    assert "alice-stories-train" in run.id
    assert run.command[2] == "hub:alice/stories:train"
    (kept,) = map(Path, run.config().data.source)
    assert kept.parent.parent == run.path and kept.read_text() == STORY * 200
    assert "hub:" not in run.waiting_path.read_text()
    assert fetches(hub) == 1
    waiting_line.leave(run)


@pytest.fixture
def served(hub, serve, tmp_path):
    """A page whose Hub is the loopback one."""
    with serve(tmp_path / "page", variables={"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf")}) as server:
        yield server
        end_trainings(server.runs_directory)


def test_over_the_api(hub, served):
    client = Client(served.url, verbose=False)
    facts = client.predict("hub:alice/stories", api_name="/describe_corpus")
    assert facts["characters"] == len(STORY) * 200
    settings = TINY | {"training.max_steps": 10}
    run_id = client.predict("hub:alice/stories", "", "small", 0.5, settings, api_name="/start_training")
    deadline = time.monotonic() + 60
    while (status := client.predict(run_id, api_name="/run_status"))["state"] not in ("finished", "failed"):
        assert time.monotonic() < deadline
        rest(0.3)
    assert status["state"] == "finished", status
    assert len(client.predict(run_id, api_name="/evaluate")["baselines"]) == 7
    assert fetches(hub) == 1
    with pytest.raises(Exception, match="alice/nothing"):
        client.predict("hub:alice/nothing", api_name="/describe_corpus")


@pytest.mark.browser
def test_in_the_corpus_tab(hub, slow, served, open_page):
    from playwright.sync_api import expect

    hub.add("alice/long", {"train.txt": STORY.encode() * 20_000}, kind="dataset")
    page = open_page(served.url)
    page.locator("#corpus-source label", has_text="Hub dataset").click()
    expect(page.locator("#corpus-notices .fl-notice-warning")).to_contain_text("write its name")
    name, fetch, progress = (page.locator(f"#corpus-hub-{part}") for part in ("name input", "fetch", "progress"))
    name.fill("alice/nothing")
    fetch.click()
    expect(progress.locator(".fl-notice-error")).to_contain_text("alice/nothing")

    name.fill("alice/long")
    name.press("Enter")
    expect(progress).to_contain_text(re.compile("Fetching.* of alice/long|Fetching alice/long"))
    page.locator("#corpus-hub-stop").click()
    expect(progress).to_contain_text("Stopped")
    expect(fetch).to_be_enabled()
    page.wait_for_timeout(1000)
    expect(progress).to_contain_text("Stopped")

    name.fill("alice/stories")
    fetch.click()
    expect(page.locator("#corpus-report .fl-preview")).to_contain_text("A fox met a hen")
    expect(page.locator("#corpus-report .fl-tile").first).to_contain_text(f"{len(STORY) * 200:,}")
    # Away and back again: it is still there.
    page.locator("#corpus-source label", has_text="Your text").click()
    page.locator("#corpus-source label", has_text="Hub dataset").click()
    expect(page.locator("#corpus-notices")).not_to_contain_text("write its name")
    page.get_by_role("tab", name="Train").click()
    expect(page.locator("#start")).to_have_text("Train small on alice/stories for 1 min")
    expect(page.locator("#command textarea")).to_have_value(re.compile("^fundamentallm train hub:alice/stories "))
    page.set_viewport_size({"width": 390, "height": 844})
    page.get_by_role("tab", name="Corpus").click()
    expect(name).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
