"""A Space for a model: its files, its push to a small Hub on loopback, and its page at work in a process of its own."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from gradio_client import Client
from hub_server import Hub, running_hub, stand_in
from huggingface_hub import SpaceCard
from on_device import DEVICE
from serving import free_port, serving

from fundamentallm.cli.commands import main
from fundamentallm.config import Config, DataConfig, ModelConfig
from fundamentallm.data.tokenizers import CharacterTokenizer
from fundamentallm.errors import HubError
from fundamentallm.hub.space import push_space, space_files
from fundamentallm.language_model import LanguageModel, load
from fundamentallm.models import build_model

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "examples" / "tiny-checkpoint"
TOKEN = "hf_secretOfAlice0123456789"
FILES = {"app.py", "README.md", "requirements.txt"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running_hub() as hub:
        hub.users = {TOKEN: "alice", "hf_bob": "bob"}
        stand_in(hub, monkeypatch, tmp_path)
        yield hub


def small_model(**changes: Any) -> LanguageModel:
    torch.manual_seed(0)
    tokenizer = CharacterTokenizer.train(["Once upon a time a fox met a hen.\n"], DataConfig())
    shape = {"d_model": 16, "num_heads": 2, "num_layers": 1, "sequence_length": 16, "vocab_size": tokenizer.vocab_size}
    config = Config(model=ModelConfig.model_validate(shape | changes))
    return LanguageModel(build_model(config.model), tokenizer, config)


# The files -----------------------------------------------------------------------------------------------------------


def test_the_front_matter_is_what_a_space_needs() -> None:
    files = space_files("alice/tales", "alice/the-tales")
    assert set(files) == FILES
    card = SpaceCard(files["README.md"]).data.to_dict()
    assert card["sdk"] == "gradio" and card["app_file"] == "app.py" and card["models"] == ["alice/tales"]
    assert card["title"] == "the-tales" and card["license"] == "mit" and len(card["short_description"]) <= 60
    ours = yaml.safe_load((ROOT / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert card["sdk_version"] == str(ours["sdk_version"])
    assert str(ours["python_version"]).startswith(card["python_version"])


def test_its_requirements_are_the_versions_tested_here() -> None:
    tested = (ROOT / "requirements.txt").read_text() + (ROOT / "requirements-dev.txt").read_text()
    lines = space_files("alice/tales", "alice/tales")["requirements.txt"].splitlines()
    assert len(lines) == 2 and all(line in tested.splitlines() for line in lines)


def test_its_page_needs_nothing_of_ours() -> None:
    tree = ast.parse(space_files("alice/tales", "alice/tales")["app.py"])
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"os", "time", "gradio", "torch", "transformers"}


@pytest.mark.parametrize("prompt", ['"""', "a\\", "$model $$ {x}", "\n\ud800'\"", "日本 \x00", "x" * 10_000])
def test_no_prompt_breaks_its_page(prompt: str) -> None:
    code = space_files("alice/tales", "alice/tales", prompt=prompt)["app.py"]
    code.encode()
    (value,) = [
        node.value.value
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "PROMPT"
        and isinstance(node.value, ast.Constant)
    ]
    assert value == prompt[:500]


def test_its_page_is_formatted_like_our_own_code() -> None:
    for check in (["check", "--select", "E,F,I,UP,B,SIM"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, "--line-length", "120", "--stdin-filename", "app.py", "-"]
        code = space_files("alice/tales", "alice/tales")["app.py"]
        result = subprocess.run(command, input=code, text=True, capture_output=True, cwd="/", check=False)
        assert result.returncode == 0, result.stdout + result.stderr


# The push ------------------------------------------------------------------------------------------------------------


def test_a_space_is_one_commit_beside_the_model(hub: Hub) -> None:
    model, told = small_model(), []
    model.push_to_hub("alice/tales", token=TOKEN)
    url = model.push_space("alice/tales", token=TOKEN, progress=lambda what, share: told.append((what, share)))
    assert url == f"{hub.endpoint}/spaces/alice/tales"
    space = hub.space("alice/tales")
    assert space.private and len(space.commits) == 2 and set(space.files) == {".gitattributes", *FILES}
    assert f"{hub.endpoint}/alice/tales" in space.files["README.md"].decode()
    assert [share for _, share in told] == sorted(share for _, share in told) and told[-1][1] == 1.0
    assert TOKEN.encode() not in b"".join(space.files.values())
    model.push_space("alice/tales", token=TOKEN)
    assert len(space.commits) == 2  # nothing has changed


def test_names_and_visibility(hub: Hub) -> None:
    model = small_model()
    model.push_to_hub("tales", token=TOKEN, private=False)
    shape = model.config.model
    assert model.push_space("tales", token=TOKEN, private=False).endswith("/spaces/alice/tales")
    assert not hub.space("alice/tales").private
    assert 'os.environ.get("MODEL") or "alice/tales"' in hub.space("alice/tales").files["app.py"].decode()
    with pytest.raises(HubError, match="everybody can see it"):
        push_space("tales", shape, token=TOKEN)
    assert push_space("alice/tales", shape, "bob/his-page", token="hf_bob").endswith("/spaces/bob/his-page")


def test_what_a_space_is_refused_for(hub: Hub) -> None:
    model = small_model()
    with pytest.raises(HubError, match=r"needs its model on the Hub first, and 'alice/tales' was not found"):
        model.push_space("alice/tales", token=TOKEN)
    with pytest.raises(HubError, match="needs a token"):
        model.push_space("alice/tales")
    with pytest.raises(
        HubError, match=r"There can be no Space for this model: this shape .* activation=swiglu"
    ) as error:
        small_model(activation="relu2").push_space("alice/tales", token=TOKEN)
    assert str(error.value).count(".") == 1
    model.push_to_hub("alice/tales", token=TOKEN)
    hub.add("alice/tales", {"app.py": b"print(1)"}, kind="space", private=True)
    with pytest.raises(HubError, match="its page is not ours"):
        model.push_space("alice/tales", token=TOKEN)
    assert hub.space("alice/tales").files == {"app.py": b"print(1)"}


def test_an_edited_description_is_left_alone(hub: Hub) -> None:
    model = small_model()
    model.push_to_hub("alice/tales", token=TOKEN)
    model.push_space("alice/tales", token=TOKEN)
    space = hub.space("alice/tales")
    own = b"---\ntitle: Mine\nsdk: gradio\n---\nMy words."
    space.commit("edited", space.files | {"README.md": own, "app.py": space.files["app.py"] + b"\n# old"})
    model.push_space("alice/tales", token=TOKEN)
    assert space.files["README.md"] == own and not space.files["app.py"].endswith(b"# old")


def test_from_the_command_line(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(SystemExit) as exit_:
        main(["push", str(TINY), "alice/tiny", "--public", "--space"])
    assert exit_.value.code == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{hub.endpoint}/alice/tiny", f"{hub.endpoint}/spaces/alice/tiny"]
    assert TOKEN not in out + err


# The page ------------------------------------------------------------------------------------------------------------


@contextmanager
def running_space(folder: Path, model: str) -> Iterator[str]:
    """The Space in ``folder`` as a process of its own, which cannot import anything of ours."""
    for name, text in space_files(model, "alice/tales", prompt="Once upon").items():
        (folder / name).write_text(text, encoding="utf-8")
    port = free_port()
    blocker = folder / "fundamentallm.py"
    blocker.write_text("raise ImportError('nothing of ours')")
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in environment.items() if name not in ("PYTHONPATH", "SPACE_ID")}
    with serving([sys.executable, "app.py"], port, log=folder / "log", cwd=folder, environment=environment):
        yield f"http://127.0.0.1:{port}/"


def test_the_page_writes_what_we_write(tmp_path: Path) -> None:
    model = load(TINY, device=DEVICE)
    model.save(tmp_path / "model")
    with running_space(tmp_path, str(tmp_path / "model")) as url:
        client = Client(url, verbose=False)
        prompt = "Once upon a time"
        texts = client.predict(prompt, 60, 0.8, 5, 0.9, 1, api_name="/write")
        again = client.predict(prompt, 60, 0.8, 5, 0.9, 1, api_name="/write")
        other = client.predict(prompt, 60, 0.8, 5, 0.9, 2, api_name="/write")
        assert len(texts) == 4 and texts == again
        assert texts[0] == other[0] == prompt + model.generate(prompt, strategy="greedy", max_tokens=60)
        assert texts[1] != other[1] and all(text.startswith(prompt) and len(text) > 50 for text in texts)
        # One token allowed is greedy; no restriction is plain temperature.
        narrow = client.predict(prompt, 30, 1.0, 1, 0.05, 3, api_name="/write")
        assert narrow[0] == narrow[2]
        wide = client.predict(prompt, 30, 1.0, 100, 1.0, 3, api_name="/write")
        assert wide[1] == wide[2] == wide[3]
        # Past the context it goes on, and an empty or overlong prompt is none the worse.
        long = client.predict(prompt * 20, 300, 0.8, 5, 0.9, 1, api_name="/write")
        assert all(len(text) >= 320 + 250 for text in long)
        assert all(client.predict("", 20, 0.8, 5, 0.9, 1, api_name="/write"))


def test_a_model_that_is_not_there_is_one_sentence_on_the_page(tmp_path: Path) -> None:
    with (
        running_space(tmp_path, str(tmp_path / "nothing")) as url,
        pytest.raises(Exception, match="could not be loaded"),
    ):
        Client(url, verbose=False).predict("Once", 20, 0.8, 5, 0.9, 1, api_name="/write")
