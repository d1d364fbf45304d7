"""A raw HTTP client tries another visitor's run on everything that the page's server answers."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from urllib.parse import quote

import httpx
import pytest

import fundamentallm as fl
from fundamentallm.config import Config, load_config
from fundamentallm.data.corpus import text_corpus
from fundamentallm.playground.settings import PUBLIC_LIMITS, PlaygroundSettings, Visitor
from fundamentallm.runs.run_directory import RunDirectory, RunStatus

OWNER, STRANGER = "the secret of its owner's browser", "the secret of a stranger's browser"
# All that the run knows is made of these words, its name too.
WORDS = ("quince", "zebrafish")
TRACEBACK = ("Traceback", 'File "', "fundamentallm/", "site-packages")


@pytest.fixture(scope="module")
def base(public_server) -> str:
    return public_server.url.rstrip("/")


@pytest.fixture(scope="module")
def run(public_server) -> RunDirectory:
    """A finished run of the owner, which the trained model, its text, its samples and its log all give away."""
    settings = PlaygroundSettings(public_server.runs_directory, True, PUBLIC_LIMITS)
    config = Config().with_values(
        model={"d_model": 16, "num_heads": 1, "num_layers": 1, "sequence_length": 16},
        training={"max_steps": 60, "batch_size": 8, "device": "cpu", "sample_prompt": "quince"},
    )
    path = public_server.runs_directory / "2026-01-01_000000-quince"
    fl.train(text_corpus(" ".join(WORDS) * 400, "quince.txt"), config=config, run_dir=path)
    made = RunDirectory(path)
    settings.claim(made, Visitor.of(OWNER))
    made.append_sample(60, "quince", "zebrafish")
    made.log_path.write_text("zebrafish")
    # Whatever a stranger starts here only joins the line.
    busy = RunDirectory.create(public_server.runs_directory, "busy", config=load_config(preset="small"))
    busy.write_status(RunStatus("starting", heartbeat=time.time() + 100_000))
    return made


@pytest.fixture(scope="module")
def config(base, run) -> dict[str, object]:
    return httpx.get(f"{base}/config", timeout=20).json()


def client() -> httpx.Client:
    return httpx.Client(timeout=120)


def arguments(config, dependency, run_id: object, secret: object) -> list[object]:
    """What a page would send, with this run and this secret wherever one goes."""
    components = {component["id"]: component for component in config["components"]}
    values = []
    for identifier in dependency["inputs"]:
        component = components[identifier]
        props = component["props"]
        if props.get("elem_id") == "run-selector":
            values.append(run_id)
        elif props.get("elem_id") == "header-status":
            values.append(json.dumps({"run": run_id, "state": "finished", "has_model": True}))
        elif component["type"] == "browserstate":
            values.append(secret)
        elif props.get("value") == "bundled":  # of a named endpoint
            values.append(run_id)
        elif component["type"] == "textbox" and props.get("elem_id") == "compare-prompt":
            values.append("a")
        else:
            values.append(props.get("value"))
    return values


def through_the_queue(http: httpx.Client, base: str, index: int, data: list[object], session: str) -> str:
    """Everything that the server says about one event until it is over."""
    body = {"data": data, "fn_index": index, "session_hash": session, "event_data": None, "trigger_id": None}
    joined = http.post(f"{base}/gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        return joined.text
    said = []
    with http.stream("GET", f"{base}/gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            said.append(line)
            if '"msg":"process_completed"' in line.replace(" ", "") or '"close_stream"' in line:
                break
    return "\n".join(said)


def directly(http: httpx.Client, base: str, index: int, data: list[object], session: str) -> str:
    body = {"data": data, "fn_index": index, "session_hash": session}
    return http.post(f"{base}/gradio_api/run/predict", json=body).text


def events(config) -> Iterator[tuple[str, Callable[[httpx.Client, str, object, object, str], str]]]:
    """Each event of the page, to be asked in both ways: its name, and what asks it."""
    for index, dependency in enumerate(config["dependencies"]):
        if not dependency["backend_fn"]:
            continue
        for way in (through_the_queue, directly):

            def ask(http, base, run_id, secret, session, index=index, dependency=dependency, way=way) -> str:
                return way(http, base, index, arguments(config, dependency, run_id, secret), session)

            yield f"{way.__name__} {index} {dependency.get('api_name')}", ask


def is_about_the_run(answer: str, run: RunDirectory) -> bool:
    """Whether an answer tells more of the run than its name, which was in the question."""
    return any(word in answer.replace(run.id, "") for word in WORDS)


def offered_the_run(http: httpx.Client, base: str, config, run: RunDirectory) -> str:
    """A session whose selector offers the run: Gradio lets no other value of a selector reach a handler."""
    session = uuid.uuid4().hex
    selector = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "run-selector")
    for index, dependency in enumerate(config["dependencies"]):
        if selector in dependency["outputs"] and any(event == "load" for _, event in dependency["targets"]):
            directly(http, base, index, arguments(config, dependency, None, OWNER), session)
    return session


@pytest.mark.parametrize(("secret", "offered"), [(STRANGER, True), (None, True), (STRANGER, False)])
def test_a_stranger_learns_nothing_from_any_event(base, config, run, public_server, secret, offered):
    log = len(public_server.log.read_text())
    with client() as http:
        for name, ask in events(config):
            session = offered_the_run(http, base, config, run) if offered else uuid.uuid4().hex
            answer = ask(http, base, run.id, secret, session)
            assert not is_about_the_run(answer, run), (name, answer)
            assert not any(mark in answer for mark in TRACEBACK), (name, answer)
    assert "fundamentallm/playground/" not in public_server.log.read_text()[log:]
    assert run.status().state == "finished" and not run.stop_requested()


def test_the_owner_learns_it_by_the_same_questions(base, config, run):
    """Otherwise the test above would prove nothing."""
    with client() as http:
        answers = {
            name: ask(http, base, run.id, OWNER, offered_the_run(http, base, config, run))
            for name, ask in events(config)
        }
    telling = [name for name, answer in answers.items() if is_about_the_run(answer, run)]
    assert len(telling) >= 8, telling


@pytest.mark.parametrize("disguise", ["../runs/{}", "./{}", "{}/", "{}\\", "{}\0", "/{}", "{}/checkpoints/best"])
def test_no_disguise_helps(base, config, run, public_server, disguise):
    wanted = {"run-selector"}
    components = {component["id"]: component["props"].get("elem_id") for component in config["components"]}
    with client() as http:
        session = offered_the_run(http, base, config, run)
        for index, dependency in enumerate(config["dependencies"]):
            if wanted & {components[identifier] for identifier in dependency["inputs"]} and dependency["backend_fn"]:
                for secret in (STRANGER, OWNER, None, [OWNER], {"owner": OWNER}):
                    data = arguments(config, dependency, disguise.format(run.id), secret)
                    answer = directly(http, base, index, data, session)
                    assert not any(mark in answer for mark in TRACEBACK)
                    if secret != OWNER:
                        assert not is_about_the_run(answer, run), (index, secret, answer)


@pytest.mark.parametrize("value", [None, [], {"run": "x"}, "x" * 10_000])
def test_nonsense_is_answered_without_a_traceback(base, config, value):
    with client() as http:
        for index, dependency in enumerate(config["dependencies"]):
            if dependency["backend_fn"]:
                answer = directly(http, base, index, [value] * len(dependency["inputs"]), uuid.uuid4().hex)
                assert not any(mark in answer for mark in TRACEBACK), (index, dependency.get("api_name"), answer)


def test_the_named_endpoints(base, run, public_server):
    others = {"run_status": [run.id], "stop_training": [run.id], "evaluate": [run.id, None],
              "compare": [run.id, "a", 20, 0.8, 5, 0.9, 1]}  # fmt: skip
    with client() as http:
        for name, data in others.items():
            called = http.post(f"{base}/gradio_api/call/{name}", json={"data": data}).json()
            answer = http.get(f"{base}/gradio_api/call/{name}/{called['event_id']}").text
            assert "no such run" in answer and not is_about_the_run(answer, run)
            for url in (f"{base}/gradio_api/run/{name}", f"{base}/gradio_api/api/{name}"):
                answer = http.post(url, json={"data": data, "session_hash": uuid.uuid4().hex}).text
                assert not is_about_the_run(answer, run)
                assert not any(mark in answer for mark in TRACEBACK)


def test_component_servers(base, config, run):
    """They bypass the queue and take any argument; each component is asked for each function that any has."""
    names = {name for component in config["components"] for name in component["props"].get("server_fns") or ()}
    assert {"tail", "earlier"} <= names
    questions = [
        {"run": run.id, "secret": STRANGER, "offset": 0, "samples": 0},
        {"run": run.id},
        {"run": f"../runs/{run.id}", "secret": OWNER},
        {"run": [run.id], "secret": [OWNER]},
        run.id,
        None,
        [],
    ]
    with client() as http:
        for component in config["components"]:
            offered = component["props"].get("server_fns") or []
            for name in [*offered, "load", "__init__"]:
                for question in questions if name in offered else questions[:1]:
                    body = {"data": question, "component_id": component["id"], "fn_name": name,
                            "session_hash": uuid.uuid4().hex}  # fmt: skip
                    answer = http.post(f"{base}/gradio_api/component_server", json=body).text
                    assert not is_about_the_run(answer, run), (name, question, answer)
                    assert not any(mark in answer for mark in TRACEBACK)
        live = next(c for c in config["components"] if "tail" in (c["props"].get("server_fns") or ()))
        body = {"data": {"run": run.id, "secret": OWNER}, "component_id": live["id"], "fn_name": "tail",
                "session_hash": "x" * 10}  # fmt: skip
        assert is_about_the_run(http.post(f"{base}/gradio_api/component_server", json=body).text, run)


def test_no_file_of_a_run_is_served(base, run, public_server):
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(files) > 10
    with client() as http:
        for path in files:
            relative = os.path.relpath(path, public_server.runs_directory.parent)
            for name in (str(path), relative, f"./{relative}", quote(str(path), safe=""), f"file://{path}"):
                for route in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/", "svelte/",
                              "gradio_api/proxy=", "gradio_api/custom_component/x/client/component/"):  # fmt: skip
                    answer = http.get(f"{base}/{route}{name}")
                    assert answer.status_code >= 400 or path.read_bytes() != answer.content, (route, name)
                    assert not is_about_the_run(answer.text, run), (route, name)
