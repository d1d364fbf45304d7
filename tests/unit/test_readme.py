"""The README and the guides tell the truth: what they show runs, what they name exists.

Python blocks are executed, and so are shell lines that start with ``fundamentallm``, each document in a directory of
its own with a short my.txt and other.txt. Models are made tiny through the environment, which has less say than
anything a document states, and stated minutes pass fifty times as fast. Lines that would install something, serve a
page, or need Docker are held against the Makefile, the requirements, the command's own parser and the Dockerfile.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import yaml

from fundamentallm.cli import commands
from fundamentallm.config import load_config
from fundamentallm.data.examples import BUILT_IN

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
GUIDES = [
    README,
    *(
        ROOT / "docs" / f"{name}.md"
        for name in ("getting-started", "training-guide", "playground-guide", "architecture", "configuration")
    ),
]
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
TINY = {
    "MODEL__D_MODEL": "32",
    "MODEL__NUM_LAYERS": "1",
    "MODEL__SEQUENCE_LENGTH": "32",
    "TRAINING__BATCH_SIZE": "4",
    "TRAINING__MAX_STEPS": "3",
    "GENERATION__MAX_TOKENS": "20",
}
TIME_LAPSE = 50
MINUTES = re.compile(r"(--minutes |max_minutes=)(\d+(?:\.\d+)?)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path) -> list[tuple[str, str]]:
    return [(match[1], match[2]) for match in BLOCK.finditer(path.read_text(encoding="utf-8"))]


def hastened(text: str) -> str:
    return MINUTES.sub(lambda match: f"{match[1]}{float(match[2]) / TIME_LAPSE:g}", text)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with texts in it, in which every training is a small one."""
    text = BUILT_IN["tiny-tales"].load()
    assert isinstance(text, str)
    (tmp_path / "my.txt").write_text(text[:20_000], encoding="utf-8")
    (tmp_path / "other.txt").write_text(text[20_000:22_000], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name, value in TINY.items():
        monkeypatch.setenv(f"FUNDAMENTALLM_{name}", value)
    return tmp_path


@pytest.mark.parametrize("document", GUIDES, ids=lambda path: path.stem)
def test_what_a_document_shows_runs(document: Path, scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": document.stem}
    for language, code in blocks(document):
        if language == "python":
            exec(compile(hastened(code), f"{document.name}", "exec"), names)
        elif language == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                run_line(hastened(line), monkeypatch)
        elif language == "yaml":
            (scene / "my.yaml").write_text(code, encoding="utf-8")
            load_config(file=scene / "my.yaml")
        else:
            assert language in ("text", "mermaid"), f"say what kind of block this is: {code[:60]!r}"


def run_line(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line, comments=True)
    if not words:
        return
    if "|" in words:
        run_in_shell(line)
        return
    assert words[0] in CHECKS, f"{line!r}: the test does not know this command"
    CHECKS[words[0]](words[1:], monkeypatch)


def run_in_shell(line: str) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(["bash", "-c", line], check=True, env=os.environ | {"PATH": path}, capture_output=True)


def run_command(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if arguments[0] in ("playground", "push"):  # one serves for ever, one needs an account: only read
        command = commands.cli.get_command(click.Context(commands.cli), arguments[0])
        assert command is not None
        command.make_context(arguments[0], arguments[1:])
        return
    monkeypatch.setattr(sys, "stdin", io.StringIO("/quit\n"))
    with pytest.raises(SystemExit) as exit_:
        commands.main(arguments)
    assert exit_.value.code == 0, arguments


def check_make(words: list[str], _: object) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, is_variable, _value = word.partition("=")
        pattern = rf"^{name} \?= " if is_variable else rf"^{name}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"the Makefile has no {name}"


def check_pip(words: list[str], _: object) -> None:
    assert words[0] == "install"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = {"-e", "-r", "--no-deps", "."}
    files = {words[at + 1] for at, word in enumerate(words) if word == "-r"}
    assert all((ROOT / file).is_file() for file in files)
    for word in set(words[1:]) - known - files:
        if word.startswith(".["):
            assert word[2:-1] in project["optional-dependencies"]
        else:  # what only a caller of the endpoints, or of transformers, needs
            assert word in ("gradio_client", "transformers"), f"pip install {word}?"


def check_python(words: list[str], _: object) -> None:
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]) is not None
    else:
        assert (ROOT / words[0]).is_file(), words


def check_docker(words: list[str], _: object) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    port = re.search(r"^EXPOSE (\d+)$", dockerfile, re.MULTILINE)
    volume = re.search(r"^VOLUME (\S+)$", dockerfile, re.MULTILINE)
    assert port and volume
    if words[0] == "run":
        assert words[words.index("-p") + 1].endswith(f":{port[1]}")
        assert words[words.index("-v") + 1].endswith(f":{volume[1]}")
    for at, word in enumerate(words):
        if word == "--build-arg":
            assert f"ARG {words[at + 1].partition('=')[0]}" in dockerfile


def check_source(words: list[str], _: object) -> None:
    assert words == [".venv/bin/activate"]


CHECKS: dict[str, Callable[[list[str], pytest.MonkeyPatch], None]] = {
    "fundamentallm": run_command,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "docker": check_docker,
    "source": check_source,
}


# The file tree ------------------------------------------------------------------------------------------------------

UNLISTED = {".git", ".gitignore", ".github", ".ci", ".pre-commit-config.yaml", "__init__.py"}


def tree() -> set[str]:
    """Every path in the README's tree, folders with a slash at the end."""
    (listing,) = (code for language, code in blocks(README) if language == "text" and code.startswith("README.md"))
    paths: set[str] = set()
    folders: list[str] = []
    for line in listing.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, *meaning = line.split(maxsplit=1)
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
            paths.add("".join(folders))
        else:
            assert meaning, f"{name} has no explanation"
            paths.add("".join((*folders, name)))
    return paths


def committed() -> list[str]:
    """The files under version control: what somebody has just begun need not be explained yet."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git clone, so it cannot be told which files belong to the project")
    listing = subprocess.run(["git", "ls-files"], check=True, cwd=ROOT, capture_output=True, text=True)
    return [path for path in listing.stdout.splitlines() if (ROOT / path).exists()]


def test_the_file_tree_is_complete() -> None:
    listed = tree()
    for path in listed:
        assert (ROOT / path).exists(), f"the file tree in README.md names {path}, which does not exist"
    for path in committed():
        first, slash, _ = path.partition("/")
        modules = {path} if first == "fundamentallm" and path.endswith(".py") else set()
        for name in {first + slash} | modules:
            if Path(name).name not in UNLISTED:
                assert name in listed, f"add a line for {name} to the file tree in README.md"


# What else a document names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file) if file else page
        assert path.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z0-9_-]", "", h.lower().replace(" ", "-")) for h in headings}, target


def test_images_are_light() -> None:
    for path in (ROOT / "docs" / "images").glob("*"):
        assert path.stat().st_size < 300_000, path


def front_matter() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(README.read_text(encoding="utf-8").split("---\n")[1])
    return found


def test_the_front_matter_of_the_space() -> None:
    matter = front_matter()
    assert matter["sdk"] == "gradio"
    # The extra has what signing in needs: without it the Sign in button keeps the page from starting on a Space.
    assert f"gradio[oauth]=={matter['sdk_version']}\n" in (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert matter["hf_oauth"] is True
    assert matter["hf_oauth_scopes"] == ["contribute-repos"], "the least that allows a push"
    assert matter["suggested_hardware"] == "cpu-basic"
    assert (ROOT / matter["thumbnail"]).is_file()
    # ZeroGPU has no other Python 3.12 than this one; the image has the same minor version.
    assert matter["python_version"] == "3.12.12"
    assert f"FROM python:{matter['python_version'].rpartition('.')[0]}-slim" in (ROOT / "Dockerfile").read_text()
    assert (ROOT / matter["app_file"]).is_file()
    assert len(matter["short_description"]) <= 60  # the Hub refuses a longer one
    assert {matter["colorFrom"], matter["colorTo"]} <= set(
        ["red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"]
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert matter["license"] == project["license"].lower()
    lowest = tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    assert tuple(map(int, matter["python_version"].split("."))) >= lowest


def test_what_the_image_is_made_of_exists() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split() if line.startswith("!")}
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (.+)$", dockerfile, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert source in kept, f".dockerignore keeps {source} out"


def build_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_reference", ROOT / "docs" / "build_reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["configuration.md", "api-reference.md"])
def test_the_references_are_those_of_the_code(name: str) -> None:
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == build_reference().PAGES[name](), "run `python docs/build_reference.py`"
