"""The house rules: no import runs upward, the engine stays free of user interfaces, importing is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fundamentallm

PACKAGE = Path(fundamentallm.__file__).parent
# Rooms by floor, as in docs/architecture.md. A room may use itself and every floor below its own.
FLOORS: dict[str, float] = {
    "errors": 0,
    "registry": 0.5,
    "config": 1,
    "devices": 1,
    "hub_access": 1,
    "recording": 1,
    "data": 2,
    "models": 2,
    "runs": 3,
    "checkpoint": 4,
    "generation": 5,
    "evaluation": 5,
    "hub": 5,
    "training": 6,
    "language_model": 7,
    "playground": 8,
    "cli": 9,  # above the playground only because one of its commands opens it
}
ENTRANCES = {"__main__", "__init__"}
INTERFACES = {"gradio", "gradio_client", "plotly", "click", "rich", "prompt_toolkit"}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    """``fundamentallm.data.corpus`` → ``data``; the package itself → ``__init__``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> list[tuple[str, bool]]:
    """Every module imported anywhere in a file, and whether only for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in for_types) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            assert node.module
            whole = node.module == "fundamentallm"
            found += [(f"{node.module}.{a.name}" if whole else node.module, id(node) in for_types) for a in node.names]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_import_runs_upward(path: Path) -> None:
    own = room(".".join(("fundamentallm", *path.relative_to(PACKAGE).with_suffix("").parts)))
    if own in ENTRANCES:
        return
    for module, _ in imports(path):
        if module.split(".")[0] != "fundamentallm":
            continue
        other = room(module)
        if other == own or other.startswith("__"):
            continue
        assert FLOORS[other] < FLOORS[own], f"{path.name} imports {module}, which is not below it"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_top_floor_knows_user_interfaces(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own not in ("cli", "playground"):
        assert not INTERFACES & {module.split(".")[0] for module, _ in imports(path)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_engine_never_prints(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] in ("cli", "playground"):
        return
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_is_unpickled(path: Path) -> None:
    assert not {"pickle", "dill", "joblib", "marshal", "shelve"} & {module.split(".")[0] for module, _ in imports(path)}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert arguments.get("weights_only") == "True"


def test_files_stay_short() -> None:
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: n for name, n in lengths.items() if n > 420} == {}


def modules_loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_engine_loads_no_user_interface() -> None:
    statement = "import fundamentallm.language_model, fundamentallm.training, fundamentallm.evaluation.baselines"
    assert not INTERFACES & modules_loaded_by(statement)


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not {"torch", "numpy", "pydantic", "yaml", *INTERFACES} & modules_loaded_by("import fundamentallm")


def test_all_is_exact() -> None:
    for name in fundamentallm.__all__:
        assert getattr(fundamentallm, name) is not None
    assert set(fundamentallm.__all__) <= set(dir(fundamentallm))
    with pytest.raises(AttributeError):
        _ = fundamentallm.nothing  # type: ignore[attr-defined]
