"""What the Publish tab and its endpoints do: pack a model up, and push it with the token of whoever asks.

A token is an argument and nothing else: it is handed on to the Hub's client, and kept nowhere.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr
from gradio.utils import get_space, get_upload_folder

from fundamentallm.errors import CheckpointError, HubError
from fundamentallm.hub_access import account, local_token
from fundamentallm.playground.header import NO_RUN, run_label
from fundamentallm.playground.model_cache import MODELS
from fundamentallm.playground.settings import BUNDLED_ID, PlaygroundSettings, Visitor

if TYPE_CHECKING:
    from fundamentallm.language_model import LanguageModel

PACKAGES = (".zip", ".safetensors", ".pt", ".gguf")
"""Endings of what can be downloaded."""
NAMES = {"qwen3": "Qwen3", "llama": "Llama", "gpt2": "GPT-2"}
Report = Callable[[str, float], None]
Asked = Callable[[], bool]
_KNOWN_ACCOUNTS = 256
_SALT = secrets.token_bytes(16)


@dataclass(frozen=True)
class Described:
    """The chosen model, as the tab shows it."""

    label: str
    name: str
    """A name for its repository."""
    facts: tuple[str, ...]
    why_no_gguf: str | None


def describe(settings: PlaygroundSettings, run_id: object, visitor: Visitor) -> Described:
    """What there is to publish.

    Raises:
        FundamentaLLMError: Nothing, yet; the sentence says what to do.
    """
    # Imported here, as below: they load PyTorch, which takes seconds, and the page is up before.
    from fundamentallm.hub.gguf_export import require_gguf
    from fundamentallm.models.interchange import family

    model = _model(settings, run_id, visitor)
    shape = model.config.model
    kind = family(shape)
    parameters = model.model.num_parameters()
    stock = "loads with FundamentaLLM only" if kind == "fundamentallm" else "opens with transformers"
    facts = (
        NAMES.get(kind, "a shape of its own"),
        f"{parameters:,} parameters",
        f"{model.tokenizer.name} vocabulary of {model.tokenizer.vocab_size:,}",
        f"context of {shape.sequence_length:,}",
        stock,
    )
    why = None
    try:
        require_gguf(model.tokenizer, model.config)
    except CheckpointError as error:
        why = str(error)
    if run_id == BUNDLED_ID:
        return Described("Tiny model (bundled)", repository_name(run_id), facts, why)
    run = settings.open_run(run_id, visitor)
    return Described(run_label(run, marked=False), repository_name(run.id), facts, why)


def repository_name(run_id: str) -> str:
    """A name for the repository of a run: what it learned from, without the time."""
    if run_id == BUNDLED_ID:
        return "tiny-tales"
    name = re.sub(r"^\d{4}-\d\d-\d\d_\d{6}-", "", run_id)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    # The Hub takes neither two dots nor two hyphens in a row.
    return re.sub(r"([.-])\1+", r"\1", plain).strip(".-_")[:90] or "my-model"


def pack(settings: PlaygroundSettings, run_id: object, visitor: Visitor, ending: str) -> Path:
    """The model as one file to download.

    It lies where the server keeps what it hands out, in a folder whose name nobody can guess, and is removed with the
    rest of it when it is old.

    Args:
        settings: Those of the page.
        run_id: Whose model.
        visitor: Who asks.
        ending: One of ``PACKAGES``.

    Raises:
        FundamentaLLMError: There is no model yet, or it has no such form.
    """
    from fundamentallm.hub.model_card import public_config
    from fundamentallm.language_model import LanguageModel

    if ending not in PACKAGES:
        raise CheckpointError(f"A model is packed as {', '.join(PACKAGES)}, not as {ending!r}.")
    model = _model(settings, run_id, visitor)
    path = Path(get_upload_folder()) / secrets.token_hex(16) / f"{repository_name(str(run_id))}{ending}"
    # Where a text lay on this machine is no business of whoever gets the file.
    LanguageModel(model.model, model.tokenizer, public_config(model.config)).save(path)
    return path


def _model(settings: PlaygroundSettings, run_id: object, visitor: Visitor) -> LanguageModel:
    if run_id in (None, NO_RUN):
        raise CheckpointError("There is no model yet: train one in the Train tab.")
    return MODELS.load(settings.model_path(run_id, visitor))


# Who pushes ----------------------------------------------------------------------------------------------------------


def sign_in_possible() -> bool:
    """Whether visitors can sign in with their account of the Hub.

    On a Space that is so when its description asks for it. Elsewhere, with OAUTH_CLIENT_ID set, Gradio acts it for
    developers, and needs the account that is signed in on this machine to do so.
    """
    if not os.environ.get("OAUTH_CLIENT_ID"):
        return False
    return get_space() is not None or local_token() is not None


def token_of(
    settings: PlaygroundSettings, signed_in: gr.OAuthToken | None, pasted: object, request: gr.Request | None
) -> str | None:
    """The token to push with: of whoever signed in, pasted, or of this machine's user; None where there is none.

    The last is for that user alone: not for the visitors of a public page, and not for other computers on the network.
    """
    if signed_in is not None:
        return signed_in.token
    if settings.public:
        return None
    if isinstance(pasted, str) and pasted.strip():
        return pasted.strip()
    return local_token() if _asked_from_this_computer(request) else None


def required_token(
    settings: PlaygroundSettings, signed_in: gr.OAuthToken | None, pasted: object, request: gr.Request | None
) -> str:
    """Like :func:`token_of`.

    Raises:
        HubError: There is none; the sentence says how to get one.
    """
    token = token_of(settings, signed_in, pasted, request)
    if token is not None:
        return token
    if not settings.public:
        raise HubError("Pushing needs a token of the Hugging Face Hub with write access: paste one above.")
    if sign_in_possible():
        raise HubError("Sign in with Hugging Face first: the model will belong to your account.")
    raise HubError("Nobody can sign in on this page: download the model, and push it with `fundamentallm push`.")


def _asked_from_this_computer(request: gr.Request | None) -> bool:
    host = request.client.host if request is not None and request.client is not None else None
    try:
        return host is not None and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Accounts:
    """Names of the accounts that tokens belong to, remembered by a hash: the Hub counts how often it is asked."""

    def __init__(self) -> None:
        self._names: OrderedDict[bytes, str] = OrderedDict()
        self._lock = threading.Lock()

    def name(self, token: str) -> str:
        """The name of the account; asks the Hub the first time.

        Raises:
            HubError: It cannot be reached, or does not accept the token.
        """
        key = hashlib.blake2b(token.encode(), key=_SALT).digest()
        with self._lock:
            known = self._names.get(key)
        if known is None:
            known = account(token)
            with self._lock:
                self._names[key] = known
                while len(self._names) > _KNOWN_ACCOUNTS:
                    self._names.popitem(last=False)
        return known


ACCOUNTS = Accounts()
"""Shared by all visitors of this process."""


@dataclass(frozen=True)
class Push:
    """A push that somebody asked for, with everything it needs but the token."""

    model: LanguageModel
    repo_id: str
    private: bool
    message: str | None

    @classmethod
    def checked(
        cls,
        settings: PlaygroundSettings,
        run_id: object,
        visitor: Visitor,
        repo_id: object,
        private: bool,
        message: object = None,
    ) -> Push:
        """What was asked for.

        Raises:
            FundamentaLLMError: There is no such model for this visitor, or no name.
        """
        model = _model(settings, run_id, visitor)
        if not isinstance(repo_id, str) or not repo_id.strip():
            raise HubError("The repository needs a name, such as my-model or my-name/my-model.")
        text = message.strip() if isinstance(message, str) else ""
        return cls(model, repo_id.strip(), private, text or None)

    def model_to_hub(self, token: str, progress: Report | None = None, cancelled: Asked | None = None) -> str:
        """Push the model; returns its address, or raises HubError."""
        return self.model.push_to_hub(
            self.repo_id,
            private=self.private,
            token=token,
            message=self.message,
            progress=progress,
            cancelled=cancelled,
        )

    def space_to_hub(self, token: str, progress: Report | None = None, cancelled: Asked | None = None) -> str:
        """Push a Space for the model, which is on the Hub already; returns its address, or raises HubError."""
        return self.model.push_space(
            self.repo_id, private=self.private, token=token, progress=progress, cancelled=cancelled
        )
