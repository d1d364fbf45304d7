"""One commit to a repository on the Hub: all of it or nothing, safe to repeat, and seen by nobody who was not meant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from fundamentallm.errors import HubError
from fundamentallm.hub_access import hub_api, hub_errors, local_token

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.hf_api import ModelInfo, SpaceInfo

    Operation = CommitOperationAdd | CommitOperationDelete

Progress = Callable[[str, float], None]
Cancelled = Callable[[], bool]
Kind = Literal["model", "space"]


class Destination:
    """A repository that exists and may be written to.

    Args:
        api: The client of whoever pushes.
        info: What the Hub says of it.
        kind: What it holds.
    """

    def __init__(self, api: HfApi, info: ModelInfo | SpaceInfo, kind: Kind) -> None:
        self._api = api
        self._info = info
        self._kind = kind
        self.repo_id: str = info.id
        self.files = [file.rfilename for file in info.siblings or ()]

    def has(self, name: str) -> bool:
        """Whether it holds a file of this name."""
        return name in self.files

    def contains(self, name: str, text: str) -> bool:
        """Whether the file ``name``, which is there, contains ``text``.

        Raises:
            HubError: It cannot be fetched.
        """
        with hub_errors(f"{self.repo_id!r} could not be read"), TemporaryDirectory() as directory:
            path = self._api.hf_hub_download(
                self.repo_id, name, repo_type=self._kind, revision=self._info.sha, local_dir=directory
            )
            return text in Path(path).read_text(encoding="utf-8", errors="replace")


def push_files(
    repo_id: str,
    operations: Callable[[Destination], Sequence[Operation]],
    *,
    kind: Kind,
    what: str,
    message: str,
    private: bool,
    token: str | None,
    endpoint: str | None,
    progress: Progress | None,
    cancelled: Cancelled | None,
) -> str:
    """Create a repository unless it exists, and change it in one commit.

    Args:
        repo_id: ``user/name``, or a bare name for the token's owner.
        operations: Makes the changes, once it is known where they go.
        kind: What the repository holds.
        what: The beginning of every error, such as ``The model``.
        message: Of the commit.
        private: Whether only its owner may see it.
        token: Whose rights count; those of the account signed in on this machine when not given.
        endpoint: Another Hub than the one ``HF_ENDPOINT`` names.
        progress: Is told what happens, and the share that is done.
        cancelled: Asked between the steps; True ends the push before its commit.

    Returns:
        The repository's address.

    Raises:
        HubError: Whatever went wrong, in one sentence.
    """
    from huggingface_hub import CommitOperationAdd  # heavy: only a push needs it

    report = progress or (lambda _what, _share: None)
    token = required_token(token)
    failure = f"{what} could not be pushed to {repo_id!r}"

    def step(description: str, share: float) -> None:
        if cancelled is not None and cancelled():
            raise HubError("The push was stopped before its commit: nobody can see any of it, and it can be repeated.")
        report(description, share)

    step("Creating the repository", 0.0)
    with hub_errors(failure):
        api = hub_api(token, endpoint)
        sdk = "gradio" if kind == "space" else None
        url = api.create_repo(repo_id, private=private, exist_ok=True, repo_type=kind, space_sdk=sdk)
        info = api.model_info(url.repo_id) if kind == "model" else api.space_info(url.repo_id)
    _require_visibility(info, private)
    step("Writing what stands beside it", 0.05)
    changes = list(operations(Destination(api, info, kind)))
    additions = [change for change in changes if isinstance(change, CommitOperationAdd)]
    size = sum(addition.upload_info.size for addition in additions)
    step(f"Uploading {size / 1e6:,.1f} MB", 0.1)
    with hub_errors(failure):
        # Large files go first, which takes long and changes nothing: only the commit makes them seen.
        api.preupload_lfs_files(url.repo_id, additions, repo_type=kind, free_memory=False)
    step("Committing", 0.9)
    with hub_errors(failure):
        api.create_commit(url.repo_id, changes, commit_message=message, repo_type=kind)
    report(f"{what} is on the Hub", 1.0)
    return str(url)


def required_token(token: str | None) -> str:
    """The token given, or that of this machine.

    Raises:
        HubError: There is neither.
    """
    token = token or local_token()
    if token is None:
        raise HubError(
            "Pushing needs a token of the Hugging Face Hub with write access: sign in with `hf auth login`, set "
            "HF_TOKEN, or pass one."
        )
    return token


def addition(name: str, content: bytes | Path) -> CommitOperationAdd:
    """The operation that puts a file into a repository."""
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(
        path_in_repo=name, path_or_fileobj=content if isinstance(content, bytes) else str(content)
    )


def _require_visibility(info: ModelInfo | SpaceInfo, private: bool) -> None:
    """Creating a repository that exists does not change who may see it."""
    if private and info.private is False:
        raise HubError(
            f"The repository {info.id!r} exists already and everybody can see it: make it private in its settings on "
            "the Hub, push to another name, or push publicly."
        )
    if not private and info.private:
        raise HubError(
            f"The repository {info.id!r} exists already and is private: make it public in its settings on the Hub, or "
            "push privately."
        )
