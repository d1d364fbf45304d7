"""A page of its own for a model on the Hub: a Space that loads it with stock transformers and needs nothing of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import yaml

from fundamentallm.config import ModelConfig
from fundamentallm.errors import HubError
from fundamentallm.hub.repository import Cancelled, Destination, Progress, addition, push_files, required_token
from fundamentallm.hub_access import account, hub_api, hub_errors
from fundamentallm.models.interchange import why_ours_alone

if TYPE_CHECKING:
    from fundamentallm.hub.repository import Operation

_FOLDER = Path(__file__).parent
_APP, _CARD = "app.py", "README.md"
_APP_MARK = "# Written by FundamentaLLM. Take this line out, and no later push changes this Space."
_CARD_MARK = "<!-- Written by FundamentaLLM. Take this line out, and the next push keeps your own text. -->"
# The versions with which a Space is tested to start and to write.
_PYTHON = "3.12"
_GRADIO = "6.31.0"
_REQUIREMENTS = "torch==2.13.0\ntransformers==5.23.0\n"
_LONGEST_PROMPT = 500


def push_space(
    model_id: str,
    shape: ModelConfig,
    repo_id: str | None = None,
    *,
    prompt: str = "",
    private: bool = True,
    token: str | None = None,
    message: str | None = None,
    endpoint: str | None = None,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> str:
    """Create a Space in which a model that is on the Hub can be tried, in one commit.

    Args:
        model_id: The model, ``user/name``, or a bare name of the token's owner.
        shape: Its shape.
        repo_id: The Space, ``user/name``; called like the model when not given. A Space and a model may share a name.
        prompt: What stands in its prompt field at first.
        private: Whether only its owner may see it.
        token: A Hub token with write access; that of the account signed in on this machine when not given.
        message: Of the commit.
        endpoint: Another Hub than the one ``HF_ENDPOINT`` names.
        progress: Is told what happens, and the share that is done.
        cancelled: Asked between the steps; True ends the push before its commit.

    Returns:
        The Space's address.

    Raises:
        HubError: No stock class holds the model, it is not on the Hub, a Space of that name is somebody's own work, or
            something went wrong on the way; in one sentence.
    """
    why = why_ours_alone(shape)
    if why is not None:
        raise HubError(f"There can be no Space for this model: {why[0].lower()}{why[1:]}")
    token = required_token(token)
    model_id = model_id if "/" in model_id else f"{account(token, endpoint)}/{model_id}"
    with hub_errors(f"A Space needs its model on the Hub first, and {model_id!r} was not found there"):
        api = hub_api(token, endpoint)
        api.model_info(model_id)

    def operations(destination: Destination) -> list[Operation]:
        new = not destination.has(_APP)
        if not new and not destination.contains(_APP, _APP_MARK):
            raise HubError(
                f"The Space {destination.repo_id!r} exists already and its page is not ours: choose another name."
            )
        files = space_files(model_id, destination.repo_id, prompt=prompt, endpoint=api.endpoint)
        if not new and destination.has(_CARD) and not destination.contains(_CARD, _CARD_MARK):
            del files[_CARD]
        return [addition(name, text.encode()) for name, text in files.items()]

    return push_files(
        repo_id or model_id,
        operations,
        kind="space",
        what="The Space",
        message=message or f"A page for {model_id}",
        private=private,
        token=token,
        endpoint=endpoint,
        progress=progress,
        cancelled=cancelled,
    )


def space_files(
    model_id: str, repo_id: str, *, prompt: str = "", endpoint: str = "https://huggingface.co"
) -> dict[str, str]:
    """The files of a Space for ``model_id``: their text by name.

    Args:
        model_id: ``user/name``, or a folder.
        repo_id: Where the Space will be found.
        prompt: What stands in its prompt field at first.
        endpoint: Where the model's page is.
    """
    title = repo_id.rpartition("/")[2]
    address = f"{endpoint}/{model_id}"
    app = {
        "mark": _APP_MARK,
        "model": json.dumps(model_id),
        "prompt": json.dumps(prompt[:_LONGEST_PROMPT]),
        "title": json.dumps(title),
        "page": json.dumps(address),
    }
    metadata = {
        "title": title,
        "emoji": "🌱",
        "colorFrom": "green",
        "colorTo": "yellow",
        "sdk": "gradio",
        "sdk_version": _GRADIO,
        "python_version": _PYTHON,
        "app_file": _APP,
        "short_description": "A small language model, four ways to sample it",
        "license": "mit",
        "models": [model_id],
        "tags": ["fundamentallm", "text-generation"],
    }
    card = {
        "metadata": yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).strip(),
        "mark": _CARD_MARK,
        "title": title,
        "model_id": model_id,
        "address": address,
    }
    return {
        _APP: _filled("space_app.py.txt", app),
        _CARD: _filled("space_card.md", card),
        "requirements.txt": _REQUIREMENTS,
    }


def _filled(template: str, values: Mapping[str, str]) -> str:
    return Template((_FOLDER / template).read_text(encoding="utf-8")).substitute(values)
