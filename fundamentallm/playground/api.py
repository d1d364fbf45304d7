"""The named endpoints that gradio_client can call; docs/api-endpoints.md shows each at work.

In public mode a run belongs to the client session that started it: ``gradio_client.Client`` keeps one for its life.
"""

# No `from __future__ import annotations` here: gradio reads the return annotations of endpoints as types, and a tuple
# written as a string would count as one value instead of four.
from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.events import api as register

from fundamentallm.data.hub_dataset import PREFIX
from fundamentallm.errors import ConfigError, CorpusError
from fundamentallm.playground import jobs
from fundamentallm.playground.compare_tab import checked_prompt, column_settings
from fundamentallm.playground.corpus_tab import chosen_corpus, examined, files_by_name
from fundamentallm.playground.errors import shown_to_the_user
from fundamentallm.playground.hub_texts import HUB_TEXTS
from fundamentallm.playground.measuring import measure, subject_of
from fundamentallm.playground.model_cache import MODELS
from fundamentallm.playground.publishing import Push, required_token
from fundamentallm.playground.settings import PlaygroundContext, PlaygroundSettings, Visitor


class Endpoints:
    """The endpoints over one playground's settings. Their docstrings are shown on the page's API panel."""

    def __init__(self, settings: PlaygroundSettings) -> None:
        self._settings = settings

    def _fetch(self, source: object) -> None:
        if isinstance(source, str) and source.startswith(PREFIX):
            HUB_TEXTS.fetch(self._settings, source)

    def describe_corpus(self, source: str, text: str = "", files: list[dict] | None = None) -> dict:  # type: ignore[type-arg]
        """Counts, alphabet, preview of a text: a built-in name, "paste", "upload", or "hub:user/dataset"."""
        with shown_to_the_user():
            self._fetch(source)
            paths = uploaded_paths(files)
            with files_by_name(paths):
                return examined(chosen_corpus(self._settings, source, text, paths)).as_dict()

    def start_training(
        self,
        request: gr.Request,
        source: str,
        text: str = "",
        preset: str = "small",
        minutes: float = 1.0,
        settings: dict | None = None,  # type: ignore[type-arg]
    ) -> str:
        """Start a training, or let it wait for a place, and return its run id; settings as in {"training.seed": 1}."""
        with shown_to_the_user():
            self._fetch(source)
            run = jobs.start_training(
                self._settings,
                Visitor.of(None, request),
                source=source,
                text=text,
                preset=preset,
                minutes=minutes,
                overrides=as_settings(settings),
            )
            return run.id

    def run_status(self, request: gr.Request, run_id: str) -> dict:  # type: ignore[type-arg]
        """State, step, losses, progress, time left or place in the line of a run, and its final numbers at the end."""
        with shown_to_the_user():
            return jobs.status_dict(self._settings, self._settings.open_run(run_id, Visitor.of(None, request)))

    def stop_training(self, request: gr.Request, run_id: str) -> dict:  # type: ignore[type-arg]
        """Ask a training to save its work and stop, or to wait no longer; returns the run's status."""
        with shown_to_the_user():
            visitor = Visitor.of(None, request)
            jobs.stop_training(self._settings, visitor, run_id)
            return jobs.status_dict(self._settings, self._settings.open_run(run_id, visitor))

    def compare(
        self,
        request: gr.Request,
        run_id: str = "bundled",
        prompt: str = "",
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 5,
        top_p: float = 0.9,
        seed: int = 1,
    ) -> tuple[str, str, str, str]:
        """What a model writes after a prompt: greedy, temperature, top-k, top-p, decoded as one batch with one seed."""
        with shown_to_the_user():
            wanted = column_settings(self._settings, max_tokens, temperature, top_k, top_p, seed)
            model = MODELS.load(self._settings.model_path(run_id, Visitor.of(None, request)))
            texts = ["", "", "", ""]
            for pieces in model.compare(checked_prompt(prompt), wanted, seed=seed):
                texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
            return texts[0], texts[1], texts[2], texts[3]

    def evaluate(self, request: gr.Request, run_id: str = "bundled", text: str | None = None) -> dict:  # type: ignore[type-arg]
        """Loss, perplexity and so on, and the baselines, on a text; on the run's held-out part when text is null."""
        with shown_to_the_user():
            return measure(subject_of(self._settings, run_id, Visitor.of(None, request), text or None))

    def push(
        self,
        request: gr.Request,
        signed_in: gr.OAuthToken | None,
        run_id: str,
        repo_id: str,
        private: bool = True,
        message: str = "",
    ) -> str:
        """Push a model to the Hub as whoever calls, with Client(…, oauth_token=…), and return its address there."""
        with shown_to_the_user():
            token = required_token(self._settings, signed_in, None, request)
            visitor = Visitor.of(None, request)
            return Push.checked(self._settings, run_id, visitor, repo_id, private, message).model_to_hub(token)

    def push_space(
        self,
        request: gr.Request,
        signed_in: gr.OAuthToken | None,
        run_id: str,
        repo_id: str,
        private: bool = True,
    ) -> str:
        """Create a Space, of the same name, for a model that was pushed before, and return its address."""
        with shown_to_the_user():
            token = required_token(self._settings, signed_in, None, request)
            visitor = Visitor.of(None, request)
            return Push.checked(self._settings, run_id, visitor, repo_id, private).space_to_hub(token)


def uploaded_paths(files: object) -> list[str]:
    """The paths of files that the client uploaded.

    Gradio has checked a path, that it lies among the uploads, only where it is marked as a file; anything else could
    name any file on this machine.
    """
    if files is None:
        return []
    if not isinstance(files, list):
        raise CorpusError("files must be a list: [gradio_client.handle_file(path), …].")
    paths = []
    for file in files:
        meta = file.get("meta") if isinstance(file, Mapping) else None
        path = file.get("path") if isinstance(file, Mapping) else None
        if not isinstance(meta, Mapping) or meta.get("_type") != "gradio.FileData" or not isinstance(path, str):
            raise CorpusError("files must be uploads: [gradio_client.handle_file(path), …].")
        paths.append(path)
    return paths


def as_settings(settings: object) -> dict[str, object]:
    """The settings of a training as paths and values."""
    if settings is None:
        return {}
    if not isinstance(settings, Mapping) or not all(isinstance(path, str) for path in settings):
        raise ConfigError('settings must be paths and values, as in {"training.seed": 1}.')
    return dict(settings)


def build(context: PlaygroundContext) -> None:
    """Register the endpoints; called inside the Blocks, after all tabs."""
    endpoints = Endpoints(context.settings)
    limits: dict[Any, tuple[int, str]] = {
        endpoints.describe_corpus: (4, "corpus"),
        endpoints.start_training: (2, "starting"),
        endpoints.run_status: (16, "status"),
        endpoints.stop_training: (16, "status"),
        endpoints.compare: (4, "writing"),
        endpoints.evaluate: (2, "evaluating"),
        endpoints.push: (4, "pushing"),
        endpoints.push_space: (4, "pushing"),
    }
    for endpoint, (limit, group) in limits.items():
        register(endpoint, concurrency_limit=limit, concurrency_id=group)
