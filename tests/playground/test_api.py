"""The endpoints, through gradio_client and over raw HTTP."""

from __future__ import annotations

import re
import time
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>\n"
NUMBERS = {
    *("loss", "perplexity", "bits_per_character", "bits_per_byte", "accuracy"),
    *("tokens", "characters", "bytes", "unknown_characters"),
}
TINY = {"model.num_layers": 1, "model.d_model": 16, "model.num_heads": 1, "model.sequence_length": 16}


@pytest.fixture(scope="module")
def client(server) -> Client:
    return Client(server.url, verbose=False)


def test_there_are_exactly_the_documented_endpoints(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert {name: [p["parameter_name"] for p in endpoint["parameters"]] for name, endpoint in endpoints.items()} == {
        "/describe_corpus": ["source", "text", "files"],
        "/start_training": ["source", "text", "preset", "minutes", "settings"],
        "/run_status": ["run_id"],
        "/stop_training": ["run_id"],
        "/compare": ["run_id", "prompt", "max_tokens", "temperature", "top_k", "top_p", "seed"],
        "/evaluate": ["run_id", "text"],
        "/push": ["run_id", "repo_id", "private", "message"],
        "/push_space": ["run_id", "repo_id", "private"],
    }
    assert len(endpoints["/compare"]["returns"]) == 4


def test_describe_corpus(client, tmp_path):
    facts = client.predict("paste", HOSTILE * 40, api_name="/describe_corpus")
    assert facts["characters"] == len(HOSTILE) * 40
    assert facts["preview"].startswith(HOSTILE)
    assert sum(count for _, count in facts["alphabet"]) == facts["characters"]
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("The first file. " * 50)
    two.write_text("Änd the second. " * 50, encoding="utf-16")
    facts = client.predict("upload", "", [handle_file(one), handle_file(two)], api_name="/describe_corpus")
    assert facts["characters"] >= 1600
    assert "Ä" in dict(facts["alphabet"])


@pytest.mark.parametrize(
    ("source", "text", "files"),
    [
        ("paste", "", None),
        ("upload", "", None),
        ("/etc/passwd", "", None),
        ("../../etc", "", None),
        ("upload", "", ["/etc/passwd"]),
        ("upload", "", [{"path": "/etc/passwd"}]),
        ("upload", "", [{"path": "/etc/passwd", "meta": {"_type": "something else"}}]),
    ],
)
def test_a_source_that_cannot_be_read_is_refused_in_one_sentence(client, source, text, files):
    with pytest.raises(Exception) as error:
        client.predict(source, text, files, api_name="/describe_corpus")
    assert re.fullmatch(r"[^\n]+\.", str(error.value))
    assert "root:" not in str(error.value)


def test_a_file_of_the_server_is_not_an_upload(server):
    """A raw request that marks a path as a file: gradio itself refuses what does not lie among the uploads."""
    named = [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]
    url = f"{server.url.rstrip('/')}/gradio_api/call/describe_corpus"
    event = httpx.post(url, json={"data": ["upload", "", named]}, timeout=20).json()["event_id"]
    answer = httpx.get(f"{url}/{event}", timeout=20).text
    assert "event: error" in answer
    assert "root:" not in answer


def test_compare_writes_four_texts_that_the_seed_determines(client):
    first = client.predict(prompt="Once upon", max_tokens=60, seed=3, api_name="/compare")
    assert len(first) == 4 and all(first)
    assert client.predict(prompt="Once upon", max_tokens=60, seed=3, api_name="/compare") == first
    other = client.predict(prompt="Once upon", max_tokens=60, seed=4, temperature=1.5, api_name="/compare")
    assert other[0] == first[0], "greedy knows no chance"
    assert other[1] != first[1]
    same = client.predict(
        prompt="Once upon", max_tokens=60, temperature=0.8, top_k=1, top_p=0.0001, api_name="/compare"
    )
    assert same[2] == same[3] == first[0], "one token to choose from is greedy"


@pytest.mark.parametrize(
    "arguments",
    [
        {"run_id": "no-such-run"},
        {"run_id": "../.."},
        {"run_id": ""},
        {"temperature": -1},
        {"top_p": 7},
        {"max_tokens": 0},
        {"prompt": "x" * 50_000},
    ],
)
def test_compare_refuses_in_one_sentence(client, arguments):
    with pytest.raises(Exception) as error:
        client.predict(**arguments, api_name="/compare")
    assert re.fullmatch(r"[^\n]+\.", str(error.value))


def test_compare_with_an_empty_and_with_an_unknown_prompt(client):
    assert all(client.predict(prompt="", max_tokens=20, api_name="/compare"))
    assert all(client.predict(prompt="日本", max_tokens=20, api_name="/compare"))


def test_evaluate_a_text(client):
    text = "Once upon a time é\n"
    result = client.predict(text=text, api_name="/evaluate")
    assert set(result) >= NUMBERS
    assert result["characters"] == len(text) and result["bytes"] == len(text.encode())
    assert result["unknown_characters"] == 1
    assert [rung["name"] for rung in result["baselines"]][:4] == ["uniform", "unigram", "bigram", "trigram"]


def test_a_training_from_start_to_end(client, server):
    text = "".join(f"{n} and {n + 1} are numbers.\n" for n in range(400))
    settings = {**TINY, "training.max_steps": 20, "training.eval_every_n_steps": 10}
    run_id = client.predict("paste", text, "small", 0.5, settings, api_name="/start_training")
    assert (Path(server.runs_directory) / run_id).is_dir()
    status = wait_for(client, run_id)
    assert status["state"] == "finished", status
    assert status["step"] == 20
    assert all(client.predict(run_id, "1 and", 20, api_name="/compare"))
    held_out = client.predict(run_id, api_name="/evaluate")
    assert held_out["loss"] == pytest.approx(status["evaluation"]["loss"], rel=1e-3)
    assert client.predict(run_id, api_name="/stop_training")["state"] == "finished"


def test_a_training_is_stopped_and_keeps_its_work(client):
    run_id = client.predict("tiny-tales", "", "small", 5, TINY, api_name="/start_training")
    deadline = time.monotonic() + 30
    while client.predict(run_id, api_name="/run_status")["step"] < 1 and time.monotonic() < deadline:
        time.sleep(0.2)
    client.predict(run_id, api_name="/stop_training")
    status = wait_for(client, run_id)
    assert status["state"] == "stopped", status
    assert status["step"] >= 1
    assert "pid" not in status
    assert all(client.predict(run_id, "Once", 10, api_name="/compare"))


@pytest.mark.parametrize(
    "arguments",
    [
        {"source": "no-such-text"},
        {"source": "paste", "text": "too short"},
        {"source": "tiny-tales", "preset": "gigantic"},
        {"source": "tiny-tales", "settings": {"training.speed": 3}},
        {"source": "tiny-tales", "settings": {"model.d_model": 129}},
        {"source": "tiny-tales", "minutes": -1},
        {"source": "tiny-tales", "settings": ["training.seed=1"]},
    ],
)
def test_a_training_that_cannot_work_leaves_nothing_behind(client, server, arguments):
    before = sorted(Path(server.runs_directory).iterdir())
    with pytest.raises(Exception) as error:
        client.predict(**arguments, api_name="/start_training")
    assert re.fullmatch(r"[^\n]+[.?]", str(error.value))
    assert sorted(Path(server.runs_directory).iterdir()) == before


@pytest.mark.parametrize("endpoint", ["/run_status", "/stop_training", "/evaluate"])
def test_a_run_that_is_not_there(client, endpoint):
    for run_id in ("nothing", "../..", "a/b", "", "."):
        with pytest.raises(Exception, match="no such run"):
            client.predict(run_id, api_name=endpoint)


def wait_for(client: Client, run_id: str, seconds: float = 60) -> dict[str, object]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = client.predict(run_id, api_name="/run_status")
        if status["state"] in ("finished", "stopped", "failed"):
            return status
        time.sleep(0.3)
    raise AssertionError(f"still {status}")


def test_the_snippets_in_the_documentation_run(server, capsys):
    text = (Path(__file__).parents[2] / "docs" / "api-endpoints.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) >= 6
    names: dict[str, object] = {}
    for snippet in snippets:
        if "not run by the tests" not in snippet:
            exec(snippet.replace("http://127.0.0.1:7860", server.url), names)
    assert names["status"]["state"] == "finished"
    assert len(names["numbers"]["baselines"]) == 7
    assert names["greedy"]
