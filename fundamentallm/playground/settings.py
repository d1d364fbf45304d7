"""Who may see and do what: the playground's settings, its visitors, and the one door to a run.

In local mode everything is allowed. In public mode a visitor sees only runs of their own; a run belongs to whoever
started it, known by a hash of a secret that only their browser (or, for API callers, their session) holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import gradio as gr

from fundamentallm.errors import CorpusError, RunError
from fundamentallm.hub_access import on_a_space
from fundamentallm.runs.run_directory import DEFAULT_RUNS_DIRECTORY, RunDirectory, list_runs

BUNDLED_ID = "bundled"
"""What the run selector holds for the tiny model that comes with the package."""
SOURCE_UPLOAD = "upload"
"""Value of the corpus source that means: the uploaded files."""
SOURCE_PASTE = "paste"
"""Value of the corpus source that means: the pasted text."""
SOURCE_HUB = "hub"
"""Value of the choice that means: a dataset on the Hub, whose name is written beside it."""

_PACKAGE = Path(__file__).parent.parent
# In a wheel the checkpoint lies inside the package, in a clone under examples/.
_BUNDLED = (_PACKAGE / "tiny-checkpoint", _PACKAGE.parent / "examples" / "tiny-checkpoint")
_OWNER_FILE = "owner.json"
_MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Limits:
    """Caps on what one visitor may ask for; None means no cap."""

    upload_bytes: int = 4_000 * _MEGABYTE
    """Largest single uploaded file."""
    corpus_bytes: int | None = None
    """Largest corpus."""
    parameters: int | None = None
    """Largest model."""
    minutes: float | None = None
    """Longest training."""
    trainings_per_visitor: int | None = None
    """Trainings one visitor may have at work or waiting."""
    trainings_in_total: int | None = None
    """Trainings at work on the whole server; the others wait."""
    trainings_waiting: int | None = None
    """Trainings that may wait for a place."""
    threads_per_training: int | None = None
    """Threads one training computes with; all there are when None."""
    generated_tokens: int | None = None
    """Longest text one request may write."""
    evaluated_tokens: int | None = None
    """Longest beginning of a text that is measured."""
    run_hours: float | None = None
    """Age at which what visitors left behind is removed."""


def processor_pairs() -> int:
    """How many trainings this machine bears at once: one for every two processors.

    A Space says in ``CPU_CORES`` how many are its own; the operating system counts those of the whole host.
    """
    try:
        cores = int(float(os.environ["CPU_CORES"]))
    except (KeyError, ValueError):
        cores = os.cpu_count() or 1
    return max(1, cores // 2)


# Sized for a free Space of two cores and 16 GB, where one training has the machine to itself and learns visibly within
# a minute. A full line of the longest trainings there is two hours long: nobody waits longer than that.
PUBLIC_LIMITS = Limits(
    upload_bytes=20 * _MEGABYTE,
    corpus_bytes=20 * _MEGABYTE,
    parameters=12_000_000,
    minutes=10.0,
    trainings_per_visitor=1,
    trainings_in_total=1,
    trainings_waiting=12,
    threads_per_training=2,
    generated_tokens=1_000,
    evaluated_tokens=200_000,
    run_hours=24.0,
)


@dataclass(frozen=True)
class Visitor:
    """Who is asking: nobody in particular in local mode, a hash of a secret in public mode."""

    owner: str | None = None

    @classmethod
    def of(cls, secret: object, request: gr.Request | None = None) -> Visitor:
        """The visitor who holds ``secret``, the browser's; without one, the visitor of this session.

        Both values come from the client, so they are credentials, never names: only their hash is kept.
        """
        if isinstance(secret, str) and 16 <= len(secret) <= 200:
            return cls(_hashed("browser", secret))
        session = request.session_hash if request is not None else None
        if isinstance(session, str) and 8 <= len(session) <= 200:
            return cls(_hashed("session", session))
        return cls(None)


@dataclass(frozen=True)
class PlaygroundSettings:
    """What one playground serves, and to whom."""

    runs_directory: Path = DEFAULT_RUNS_DIRECTORY
    public: bool = False
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def create(cls, runs_directory: str | Path | None = None, public: bool | None = None) -> PlaygroundSettings:
        """Settings for a directory; public when asked for or when this is a Space (``SPACE_ID`` is set)."""
        is_public = on_a_space() if public is None else public
        directory = Path(runs_directory or os.environ.get("FUNDAMENTALLM_RUNS_DIR") or DEFAULT_RUNS_DIRECTORY)
        limits = replace(PUBLIC_LIMITS, trainings_in_total=processor_pairs()) if is_public else Limits()
        return cls(directory.absolute(), is_public, limits)

    @property
    def uploads_directory(self) -> Path:
        """Where a public page keeps what is uploaded: temporary, and apart from what others keep there."""
        name = hashlib.sha256(str(self.runs_directory).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"fundamentallm-uploads-{name}"

    def open_run(self, run_id: object, visitor: Visitor) -> RunDirectory:
        """The run named ``run_id``, if this visitor may see it. Every function that takes a run id comes through here.

        Raises:
            RunError: There is no such run, or it is someone else's; the two cannot be told apart.
        """
        missing = RunError("There is no such run here: choose one from the list at the top.")
        # A plain name only: no separators, no drive, no "..", nothing hidden.
        if not isinstance(run_id, str) or not run_id or run_id != Path(run_id).name or run_id.startswith("."):
            raise missing
        if "\0" in run_id or "\\" in run_id or len(run_id) > 200:
            raise missing
        path = self.runs_directory / run_id
        if path.is_symlink() or not path.is_dir():
            raise missing
        if self.public and (visitor.owner is None or _owner(path) != visitor.owner):
            raise missing
        return RunDirectory(path)

    def visible_runs(self, visitor: Visitor) -> list[RunDirectory]:
        """The runs this visitor may see, newest first."""
        runs = list_runs(self.runs_directory)
        if not self.public:
            return runs
        return [run for run in runs if visitor.owner is not None and _owner(run.path) == visitor.owner]

    def visitors_runs(self) -> list[RunDirectory]:
        """The runs that visitors of a public page started, whoever they are; not those of whoever serves the page."""
        return [run for run in list_runs(self.runs_directory) if _owner(run.path) is not None]

    def model_path(self, run_id: object, visitor: Visitor) -> Path:
        """The checkpoint to load for ``run_id``: the bundled model's folder, or the run's own directory.

        Raises:
            RunError: There is no such run for this visitor, or it has no checkpoint yet.
        """
        if run_id == BUNDLED_ID:
            folder = bundled_checkpoint()
            if folder is None:
                raise RunError("The bundled model is not installed: train one in the Train tab.")
            return folder
        run = self.open_run(run_id, visitor)
        if not run.has_checkpoint:
            raise RunError("This run has no saved model yet: wait for its first checkpoint.")
        return run.path

    def claim(self, run: RunDirectory, visitor: Visitor) -> None:
        """Write down whose run this is."""
        if visitor.owner is not None:
            (run.path / _OWNER_FILE).write_text(json.dumps({"owner": visitor.owner}), encoding="utf-8")

    def check_corpus_size(self, size_bytes: int) -> None:
        """Raises CorpusError when a corpus is larger than a visitor may bring."""
        cap = self.limits.corpus_bytes
        if cap is not None and size_bytes > cap:
            raise CorpusError(
                f"This text has {size_bytes / _MEGABYTE:.0f} MB, and this page takes at most {cap / _MEGABYTE:.0f} MB: "
                "use a part of it, or run the playground on your own computer."
            )


@dataclass(frozen=True)
class PlaygroundContext:
    """What every tab's ``build`` receives."""

    settings: PlaygroundSettings
    run_selector: gr.Dropdown
    """Value: a run id or ``BUNDLED_ID``. Its change event says that another run was chosen."""
    visitor_secret: gr.BrowserState
    """Input of every handler that takes a run id; pass it to ``Visitor.of(secret, request)``."""
    tabs: gr.Tabs
    """Update with ``gr.Tabs(selected="train")``: ids corpus, train, compare, evaluate, publish."""


@dataclass(frozen=True)
class CorpusParts:
    """The components of the Corpus tab that say which text is meant."""

    source: gr.Textbox
    """Name of a built-in corpus, ``SOURCE_UPLOAD``, ``SOURCE_PASTE``, or ``hub:user/dataset…`` once that is fetched."""
    text: gr.Textbox
    files: gr.File


def bundled_checkpoint() -> Path | None:
    """The folder of the tiny model that comes with the package, if it is there."""
    return next((folder for folder in _BUNDLED if (folder / "model.safetensors").is_file()), None)


def _hashed(kind: str, secret: str) -> str:
    return hashlib.sha256(f"fundamentallm visitor {kind} {secret}".encode()).hexdigest()


def _owner(path: Path) -> str | None:
    try:
        owner = json.loads((path / _OWNER_FILE).read_text(encoding="utf-8"))["owner"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return owner if isinstance(owner, str) else None


def running(runs: list[RunDirectory]) -> Iterator[RunDirectory]:
    """Those runs whose training is under way."""
    return (run for run in runs if run.status().is_active)
