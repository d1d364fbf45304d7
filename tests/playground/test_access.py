"""Who may see what: the one door to a run, and the public mode over real HTTP."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import time

import gradio as gr
import httpx
import pytest
from gradio.helpers import special_args
from gradio_client import Client

from fundamentallm.config import load_config
from fundamentallm.errors import ConfigError, CorpusError, FundamentaLLMError, RunError
from fundamentallm.playground import charts, jobs
from fundamentallm.playground.header import answer_look
from fundamentallm.playground.page import build_page
from fundamentallm.playground.settings import PUBLIC_LIMITS, Limits, PlaygroundSettings, Visitor
from fundamentallm.runs import waiting_line
from fundamentallm.runs.run_directory import RunDirectory, RunStatus

MINE, THEIRS = "my secret of the browser", "somebody else's secret"
TINY = {
    "model.num_layers": 1,
    "model.d_model": 16,
    "model.num_heads": 2,
    "model.sequence_length": 16,
    "training.batch_size": 4,
}


@pytest.fixture
def public(tmp_path) -> PlaygroundSettings:
    return PlaygroundSettings(tmp_path / "runs", True, PUBLIC_LIMITS)


def make_run(settings: PlaygroundSettings, secret: str | None, name: str = "run", state: str = "finished"):
    run = RunDirectory.create(settings.runs_directory, name, config=load_config(preset="small"))
    run.write_status(RunStatus(state, heartbeat=time.time()))
    settings.claim(run, Visitor.of(secret))
    return run


@pytest.mark.parametrize(
    "run_id",
    [None, 3, "", ".", "..", "../runs", "a/b", "/etc", "a\\b", "x\0y", ".hidden", "link", "file", "none", "x" * 300],
)
def test_a_run_id_is_a_plain_name_of_a_directory(tmp_path, run_id):
    settings = PlaygroundSettings(tmp_path / "runs")
    settings.runs_directory.mkdir()
    (tmp_path / "outside").mkdir()
    (settings.runs_directory / "link").symlink_to(tmp_path / "outside")
    (settings.runs_directory / "file").write_text("")
    (settings.runs_directory / ".hidden").mkdir()
    with pytest.raises(RunError, match="no such run"):
        settings.open_run(run_id, Visitor())


def test_in_local_mode_every_run_is_everyones(tmp_path):
    settings = PlaygroundSettings(tmp_path)
    run = make_run(settings, MINE)
    for visitor in (Visitor(), Visitor.of(MINE), Visitor.of(THEIRS)):
        assert settings.open_run(run.id, visitor).path == run.path
        assert [r.id for r in settings.visible_runs(visitor)] == [run.id]


def test_in_public_mode_a_run_is_its_owners_alone(public):
    run = make_run(public, MINE)
    assert public.open_run(run.id, Visitor.of(MINE)).path == run.path
    sentences = set()
    for visitor, run_id in (
        (Visitor.of(THEIRS), run.id),
        (Visitor(), run.id),
        (Visitor.of(None), run.id),
        (Visitor.of(""), run.id),
        (Visitor.of(MINE), "no-such-run"),
    ):
        with pytest.raises(RunError) as error:
            public.open_run(run_id, visitor)
        sentences.add(str(error.value))
        assert [r.id for r in public.visible_runs(visitor)] == ([run.id] if visitor == Visitor.of(MINE) else [])
    assert len(sentences) == 1, "unknown and foreign cannot be told apart"
    nobodys = make_run(public, None, "nobodys")
    with pytest.raises(RunError):
        public.open_run(nobodys.id, Visitor())


def test_the_secret_itself_is_kept_nowhere(public):
    run = make_run(public, MINE)
    stored = (run.path / "owner.json").read_text()
    assert MINE not in stored
    assert json.loads(stored)["owner"] != hashlib.sha256(MINE.encode()).hexdigest(), "salted with its purpose"


def test_the_chart_answers_only_the_owner(public):
    run = make_run(public, MINE)
    run.append_sample(1, "Once", "private text")
    assert charts.answer_tail(public, {"run": run.id, "secret": MINE})["samples"][0]["text"] == "private text"
    for question in ({"run": run.id, "secret": THEIRS}, {"run": run.id}, None, [], "x", {"run": "../.."}, {"run": [1]}):
        assert set(charts.answer_tail(public, question)) == {"error"}
        assert set(charts.answer_earlier(public, question)) == {"error"}
        assert answer_look(public, question).get("run") != run.id
    assert answer_look(public, {"run": run.id, "secret": MINE})["run"] == run.id
    odd = {"run": run.id, "secret": MINE, "offset": -5, "samples": "all"}
    assert "error" not in charts.answer_tail(public, odd)


@pytest.mark.parametrize(
    ("minutes", "overrides"),
    [
        (1000, {}),
        (1, {"data.source": ["/etc/passwd"]}),
        (1, {"training.device": "cuda"}),
        (1, {"training.save_every_n_steps": 1}),
        (1, {"training.batch_size": 1_000_000}),
        (1, {"model.sequence_length": 100_000}),
        (1, {"training.max_minutes": 500}),
    ],
)
def test_public_caps_on_settings(public, minutes, overrides):
    with pytest.raises(ConfigError) as error:
        jobs.resolve(public, "small", minutes, overrides)
    assert str(error.value).count(".") >= 1 and "\n" not in str(error.value)


def test_public_caps_on_text_and_model(public):
    start = {"preset": "small", "minutes": 1.0}
    with pytest.raises(CorpusError, match="at most 20 MB"):
        jobs.start_training(public, Visitor.of(MINE), source="paste", text="abc " * 6_000_000, **start)
    with pytest.raises(ConfigError, match="million parameters"):
        wide = {"model.d_model": 2048, "model.num_layers": 12, "model.num_heads": 16}
        jobs.start_training(public, Visitor.of(MINE), source="paste", text="abc " * 500, overrides=wide, **start)
    with pytest.raises(RunError, match="cannot tell whose"):
        jobs.start_training(public, Visitor(), source="paste", text="abc " * 500, **start)
    assert not public.runs_directory.exists() or not list(public.runs_directory.iterdir())


def test_a_visitor_holds_one_place_at_work_or_in_the_line(public):
    make_run(public, THEIRS, "theirs", "starting")
    text = {"source": "paste", "text": "abc " * 500}
    waiting = jobs.start_training(public, Visitor.of(MINE), **text)
    assert waiting.status().state == "waiting"
    with pytest.raises(RunError, match="waits for its turn"):
        jobs.start_training(public, Visitor.of(MINE), **text)
    with pytest.raises(RunError, match="still at work"):
        jobs.start_training(public, Visitor.of(THEIRS), **text)
    with pytest.raises(RunError, match="in the waiting line already"):
        jobs.resume_training(public, Visitor.of(MINE), waiting.id)
    with pytest.raises(RunError, match="waits for its turn"):
        jobs.resume_training(public, Visitor.of(MINE), make_run(public, MINE, "t", "stopped").id)
    with pytest.raises(FundamentaLLMError, match="no such run"):
        jobs.stop_training(public, Visitor.of(THEIRS), waiting.id)
    jobs.stop_training(public, Visitor.of(MINE), waiting.id)
    assert waiting.status().state == "stopped"
    jobs.resume_training(public, Visitor.of(MINE), waiting.id)
    assert waiting.status().state == "waiting"


def test_the_waiting_line_has_an_end(public):
    make_run(public, THEIRS, "theirs", "starting")
    for number in range(PUBLIC_LIMITS.trainings_waiting):
        waiting_line.join(make_run(public, f"the secret of visitor {number}"), [], 60.0)
    with pytest.raises(RunError, match="line is full"):
        jobs.start_training(public, Visitor.of(MINE), source="paste", text="abc " * 500)
    assert len(list(public.runs_directory.iterdir())) == 1 + PUBLIC_LIMITS.trainings_waiting


@pytest.mark.parametrize(("cores", "places"), [("1", 1), ("2", 1), ("2.0", 1), ("5", 2), ("16", 8), ("many", None)])
def test_one_training_for_every_pair_of_processors(monkeypatch, tmp_path, cores, places):
    monkeypatch.setenv("CPU_CORES", cores)
    expected = places or max(1, (os.cpu_count() or 1) // 2)
    assert PlaygroundSettings.create(tmp_path, public=True).limits.trainings_in_total == expected
    assert PlaygroundSettings.create(tmp_path, public=False).limits.trainings_in_total is None


def test_a_space_is_public(monkeypatch, tmp_path):
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert PlaygroundSettings.create(tmp_path).public is False
    assert PlaygroundSettings.create(tmp_path).limits == Limits()
    monkeypatch.setenv("SPACE_ID", "someone/space")
    monkeypatch.setenv("CPU_CORES", "2")
    assert PlaygroundSettings.create(tmp_path).public is True
    assert PlaygroundSettings.create(tmp_path).limits == PUBLIC_LIMITS


def test_two_api_visitors_do_not_see_each_other(public_server):
    one, two = (Client(public_server.url, verbose=False) for _ in range(2))
    text = "one two three four\n" * 300
    run_id = one.predict("paste", text, "small", 0.2, TINY | {"training.max_steps": 10}, api_name="/start_training")
    assert one.predict(run_id, api_name="/run_status")["run_id"] == run_id
    for endpoint in ("/run_status", "/stop_training", "/evaluate"):
        with pytest.raises(Exception, match="no such run"):
            two.predict(run_id, api_name=endpoint)
    with pytest.raises(Exception, match="no such run"):
        two.predict(run_id, "one", api_name="/compare")
    with pytest.raises(Exception, match="cannot be set on a public page"):
        two.predict("paste", text, "small", 0.2, {"training.device": "cpu"}, api_name="/start_training")


def test_raw_requests_of_the_chart_come_through_the_same_door(public_server):
    settings = PlaygroundSettings(public_server.runs_directory, True, PUBLIC_LIMITS)
    run = make_run(settings, MINE)
    run.append_sample(1, "Once", "private text")
    base = public_server.url.rstrip("/")
    config = httpx.get(f"{base}/config", timeout=20).json()
    live = next(c for c in config["components"] if c["props"].get("elem_id") == "live")

    def asked(question: object) -> str:
        body = {"data": question, "component_id": live["id"], "fn_name": "tail", "session_hash": "abcdefghij"}
        return httpx.post(f"{base}/gradio_api/component_server/", json=body, timeout=20).text

    assert "private text" in asked({"run": run.id, "secret": MINE})
    for question in ({"run": run.id, "secret": THEIRS}, {"run": run.id}, {"run": f"../runs/{run.id}", "secret": MINE}):
        assert "private text" not in asked(question) and "no such run" in asked(question)


def test_every_handler_that_takes_a_run_authorises_on_its_own(public):
    """What Gradio calls private is reachable by a raw POST, and its own check of choices is not a door."""
    run = make_run(public, MINE, "secretive")
    run.append_sample(1, "Once", "private text")
    page = build_page(public)
    selector = next(block for block in page.blocks.values() if block.elem_id == "run-selector")
    handlers = [f for f in page.fns.values() if f.fn is not None and selector in f.inputs]
    assert len(handlers) >= 4
    request = gr.Request(session_hash="the session of a stranger")
    for handler in handlers:
        values = [run.id if block is selector else block_value(block) for block in handler.inputs]
        arguments, *_ = special_args(handler.fn, values, request)
        try:
            answer = handler.fn(*arguments)
            answer = list(answer) if inspect.isgenerator(answer) else answer
        except gr.Error as error:
            answer = error.message
        assert "private text" not in repr(answer), handler.fn
        assert "secretive" not in repr(answer), handler.fn


def block_value(block) -> object:
    return None if isinstance(block, gr.BrowserState) else getattr(block, "value", None)


@pytest.mark.parametrize("path", ["status.json", "owner.json", "metrics.jsonl"])
def test_run_directories_are_not_served(public_server, path):
    settings = PlaygroundSettings(public_server.runs_directory, True, PUBLIC_LIMITS)
    run = make_run(settings, MINE)
    base = public_server.url.rstrip("/")
    for name in (run.path / path, os.path.relpath(run.path / path, public_server.runs_directory.parent)):
        assert httpx.get(f"{base}/gradio_api/file={name}", timeout=20).status_code in (403, 404)


def test_what_the_server_hands_out(server):
    """plotly.min.js is served; monitoring, run history and this package's sources are not."""
    from fundamentallm.playground import settings, theme

    base = server.url.rstrip("/")
    assert httpx.get(f"{base}/gradio_api/file={theme.PLOTLY_JS}", timeout=20).status_code == 200
    assert httpx.get(f"{base}/gradio_api/file={settings.__file__}", timeout=20).status_code in (403, 404)
    assert httpx.get(f"{base}/monitoring", timeout=20).status_code != 200
