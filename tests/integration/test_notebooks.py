"""The notebooks and scripts in examples/ run, and notebooks are stored without output."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from on_device import seeded

nbformat = pytest.importorskip("nbformat", reason="notebooks are run by nbformat and nbclient: make install-dev")
nbclient = pytest.importorskip("nbclient", reason="notebooks are run by nbformat and nbclient: make install-dev")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
# Through the environment, so that the notebooks themselves stay as a learner runs them.
TINY = {
    "OMP_NUM_THREADS": "1",
    "FUNDAMENTALLM_MODEL__D_MODEL": "64",
    "FUNDAMENTALLM_MODEL__NUM_LAYERS": "1",
    "FUNDAMENTALLM_TRAINING__MAX_STEPS": "20",
    "FUNDAMENTALLM_TRAINING__EVAL_EVERY_N_STEPS": "10",
    "FUNDAMENTALLM_TRAINING__EVAL_TOKENS": "2048",
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(EXAMPLES / "tiny-checkpoint", tmp_path / "tiny-checkpoint")
    for name, value in TINY.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert shown(notebook), "a notebook shows at least one chart"


def shown(notebook: Any) -> list[Any]:
    kind = "application/vnd.plotly.v1+json"
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output for output in outputs if kind in output.get("data", {})]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_output(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert notebook.cells[0].cell_type == "markdown"


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 3


@pytest.mark.parametrize("script", ["own_sampler", "stop_when_it_can_spell"])
def test_a_script_runs(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script])
    for name, value in TINY.items():
        monkeypatch.setenv(name, value)
    runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")
    assert len(capsys.readouterr().out) > 100


def test_the_own_sampler_is_a_distribution() -> None:
    sampler = runpy.run_path(str(EXAMPLES / "own_sampler.py"))["TypicalSampler"](0.5)
    logits = torch.randn(4, 30, generator=seeded(1))
    logits[0, 3] = float("-inf")
    probabilities = sampler.probabilities(logits)
    torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(4))
    assert probabilities[0, 3] == 0
    full = logits.softmax(dim=-1)
    assert (full[probabilities > 0].sum() > 0.5 * 4) and (probabilities == 0).any()
