"""How the page starts: on a Space, on ZeroGPU, and before PyTorch is there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from gradio_client import Client
from serving import free_port, serving

from fundamentallm import devices
from fundamentallm.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
# Notes every file that any Python process opens for writing, makes, or renames to.
RECORDER = """
import os, sys
_LOG = os.open(os.environ["WRITTEN_PATHS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def _record(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        flags = arguments[2] or 0
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        path = arguments[0]
    elif event in ("os.mkdir", "os.symlink", "os.rename", "os.link"):
        path = arguments[0 if event == "os.mkdir" else 1]
    else:
        return
    os.write(_LOG, os.fsencode(os.path.abspath(os.fsdecode(path))) + b"\\n")
sys.addaudithook(_record)
"""


@contextlib.contextmanager
def started_app(directory: Path, port: int, **variables: str):
    """``python app.py`` with everything it may write inside ``directory``; yields its URL, its output, itself."""
    for name in ("cwd", "home", "runs", "tmp", "recorder"):
        (directory / name).mkdir()
    (directory / "recorder" / "sitecustomize.py").write_text(RECORDER)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GRADIO_", "SPACE"))},
        "HOME": str(directory / "home"),
        "TMPDIR": str(directory / "tmp"),
        "FUNDAMENTALLM_RUNS_DIR": str(directory / "runs"),
        "WRITTEN_PATHS": str(directory / "written"),
        "PYTHONPATH": f"{directory / 'recorder'}{os.pathsep}{REPOSITORY}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "PORT": str(port),
        "HOST": "127.0.0.1",
        **variables,
    }
    log = directory / "app.log"
    command = [sys.executable, str(REPOSITORY / "app.py")]
    with serving(command, port, log=log, cwd=directory / "cwd", environment=environment) as process:
        while not log.stat().st_size:  # the line that says where, right after the first answer
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/", log, process


def test_on_a_space_the_page_is_public_and_writes_only_where_it_may(tmp_path):
    space = {
        "SPACE_ID": "someone/fundamentallm",
        "SPACE_HOST": "someone-fundamentallm.hf.space",
        "CPU_CORES": "2",
        "OAUTH_CLIENT_ID": "an id",
        "OAUTH_CLIENT_SECRET": "a secret",
        "OAUTH_SCOPES": "openid profile contribute-repos",
        "OPENID_PROVIDER_URL": "http://127.0.0.1:9",
    }
    tiny = {"model.num_layers": 1, "model.d_model": 16, "model.num_heads": 1, "model.sequence_length": 16}
    with started_app(tmp_path, free_port(), **space) as (url, log, _):
        client = Client(url, verbose=False)
        with pytest.raises(Exception, match="cannot be set on a public page"):
            client.predict("tiny-tales", "", "small", 0.5, {"training.device": "cpu"}, api_name="/start_training")
        settings = tiny | {"training.max_steps": 20}
        run_id = client.predict("paste", "one two three\n" * 300, "small", 0.5, settings, api_name="/start_training")
        deadline = time.monotonic() + 60
        while (status := client.predict(run_id, api_name="/run_status"))["state"] not in ("finished", "failed"):
            assert time.monotonic() < deadline, status
            time.sleep(0.3)
        assert status["state"] == "finished", status
        assert all(client.predict(run_id, "one", 10, api_name="/compare"))
        assert log.read_text().count("\n") == 1, log.read_text()
    written = set((tmp_path / "written").read_text().splitlines())
    allowed = (str(tmp_path / "runs"), str(tmp_path / "tmp"), "/dev/", str(tmp_path / "written"))
    assert any(path.startswith(str(tmp_path / "runs" / run_id)) for path in written), "the recorder is at work"
    assert [path for path in sorted(written) if not path.startswith(allowed)] == []
    assert list((tmp_path / "home").iterdir()) == list((tmp_path / "cwd").iterdir()) == []


def test_one_line_says_where_and_ctrl_c_ends_it_without_a_traceback(tmp_path):
    with started_app(tmp_path, port := free_port()) as (_, log, process):
        assert log.read_text() == f"The playground is on http://127.0.0.1:{port}/ (stop it with Ctrl-C).\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert "Traceback" not in log.read_text()


def test_the_first_page_is_there_before_pytorch(tmp_path):
    code = (
        "import sys; from fundamentallm.playground import page; from fundamentallm.playground.settings import *;"
        "page.build_page(PlaygroundSettings.create(sys.argv[1], False));"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    built = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert built.stdout.strip() == "[]"


@pytest.mark.parametrize("value", ["true", "1"])
def test_on_zero_gpu_trainings_run_on_the_cpu(monkeypatch, value):
    """It claims a GPU, and lends it to no process of ours."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert devices.resolve_device("auto").type == "cuda"
    monkeypatch.setenv("SPACES_ZERO_GPU", value)
    assert devices.resolve_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match="use auto or cpu"):
        devices.resolve_device("cuda")
