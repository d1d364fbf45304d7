"""The way to the Hugging Face Hub: whose token is used, and what went wrong in one sentence.

A token is handed to the Hub's client explicitly and appears in no message: sentences are made from the kind of an
error and its status, never from its text.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fundamentallm.errors import HubError

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 60.0
"""How long the Hub may say nothing at all. A commit of many large files keeps it busy for the better part of that."""
_limiting = threading.Lock()

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPOSITORY = re.compile(rf"({_NAME}/{_NAME})(?:@([\w./-]+))?")


def parse_repository(name: str) -> tuple[str, str | None] | None:
    """``user/name`` or ``user/name@revision`` as its two parts; None for what cannot be the name of a repository."""
    match = _REPOSITORY.fullmatch(name)
    return (match[1], match[2]) if match else None


def on_a_space() -> bool:
    """Whether strangers use this program, on somebody's Space."""
    return bool(os.environ.get("SPACE_ID"))


def local_token() -> str | None:
    """The token of whoever started this program; on a Space nobody's, since visitors must not act as its owner."""
    if on_a_space():
        return None
    # Imported here, as everywhere below: the Hub's client takes its time, and most commands do not need it.
    from huggingface_hub import get_token

    return get_token()


def hub_api(token: str | None, endpoint: str | None) -> HfApi:
    """The Hub's client for one person; without a token it asks as nobody, never as whoever is signed in here."""
    from huggingface_hub import HfApi

    _limit_silence()
    return HfApi(endpoint=endpoint, token=token or False, library_name="fundamentallm")


def account(token: str, endpoint: str | None = None) -> str:
    """The name of the account that a token belongs to; asks the Hub.

    Raises:
        HubError: The Hub cannot be reached, or does not accept the token.
    """
    with hub_errors("The account could not be found out"):
        return str(hub_api(token, endpoint).whoami()["name"])


def _limit_silence() -> None:
    """Let the Hub's client give up on a Hub that says nothing; left to itself it waits for ever.

    All threads share that client and its factory, and setting a factory closes the client: so it is done once, and not
    where the program that uses this library has set a factory of its own.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    with _limiting:
        if _http._GLOBAL_CLIENT_FACTORY is _http.default_client_factory:
            set_client_factory(_client)


def _client() -> httpx2.Client:
    import httpx2
    from huggingface_hub.utils import _http

    client = _http.default_client_factory()
    client.timeout = httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
    return client


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn whatever the Hub's client raises into one sentence.

    Args:
        what: The beginning of the sentence, such as ``"The model could not be pushed to 'user/name'"``.

    Raises:
        HubError: Something went wrong on the way, or on the Hub.
    """
    import httpx2

    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, RuntimeError) as error:
        reason = _reason(error)
    else:
        return
    raise HubError(f"{what}: {reason}.") from None


def _reason(error: Exception) -> str:
    import httpx2
    from huggingface_hub import errors

    # A missing cache entry hides why the Hub could not be asked, a failed upload of a large file what failed.
    if isinstance(error, errors.LocalEntryNotFoundError | RuntimeError) and isinstance(error.__cause__, Exception):
        return _reason(error.__cause__)
    reasons: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
        ((errors.OfflineModeIsEnabled,), "HF_HUB_OFFLINE is set, so the Hub is not asked; unset it and try again"),
        ((errors.HFValidationError,), "that is no name of a repository; write user/name, with letters, digits, -_."),
        ((errors.GatedRepoError,), "its owner admits people one by one; ask on its page on the Hub, and sign in"),
        ((errors.RepositoryNotFoundError,), "there is no such repository, or the token may not see it"),
        ((errors.RevisionNotFoundError,), "the repository has no such revision"),
        ((errors.RemoteEntryNotFoundError,), "the repository has no such file"),
        ((errors.HfHubHTTPError,), ""),
        (
            (httpx2.ConnectError, httpx2.ConnectTimeout, errors.LocalEntryNotFoundError),
            "the Hub cannot be reached; check the network connection and try again",
        ),
        ((httpx2.TimeoutException,), "the Hub did not answer in time; try again"),
        ((httpx2.HTTPError, ConnectionError), "the connection to the Hub was cut; try again, nothing is half done"),
    )
    reason = next((sentence for kinds, sentence in reasons if isinstance(error, kinds)), None)
    if isinstance(error, errors.HfHubHTTPError) and not reason:
        return _reason_of_status(error.response)
    if reason is None and isinstance(error, OSError) and error.strerror:
        return f"{error.strerror.lower()} ({error.filename})" if error.filename else error.strerror.lower()
    return reason or f"the Hub's client failed with {type(error).__name__}; try again"


_REASONS = {
    400: "the Hub rejects the request as invalid",
    401: "the Hub does not accept the token; sign in again with `hf auth login`, or give another token",
    402: "the account's storage or plan does not allow it",
    403: "the token has no right to do that; give one with write access to that user or organisation",
    404: "there is no such repository, or the token may not see it",
    409: "somebody else is changing the repository, or its name is taken; try again, or choose another name",
    412: "somebody else changed the repository at the same moment; try again",
    413: "it is larger than the Hub accepts",
}


def _reason_of_status(response: object) -> str:
    import httpx2

    assert isinstance(response, httpx2.Response)
    status = response.status_code
    if status == 429:
        wait = response.headers.get("retry-after", "")
        return f"the Hub allows no more requests for now; try again in {f'{wait} s' if wait.isdecimal() else 'an hour'}"
    if status >= 500:
        return f"the Hub has a problem of its own (status {status}); try again in a few minutes, nothing is half done"
    return _REASONS.get(status, f"the Hub answered with status {status}")
