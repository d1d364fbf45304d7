"""A model from the Hub, as a folder on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fundamentallm.checkpoint import INDEX_FILE, WEIGHTS_FILE, folder_config
from fundamentallm.errors import CheckpointError
from fundamentallm.hub_access import hub_api, hub_errors, local_token, on_a_space, parse_repository

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

# Everything loading may need beside the weights. Nothing else of a repository is ever fetched, least of all code.
_DESCRIPTIONS = (
    "config.json",
    "config.yaml",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    INDEX_FILE,
)

Progress = Callable[[str, float | None], None]


def find_checkpoint(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """The path a name means: a path that exists, or the local copy of the repository ``user/name[@revision]``.

    Raises:
        HubError: There is nothing here, and the Hub has no such repository or does not answer.
        CheckpointError: The repository holds no model that could be loaded.
    """
    path = Path(name)
    repository = parse_repository(name.as_posix() if isinstance(name, Path) else name)
    # `runs/my-modle` is a slip of the pen, not the model of somebody called runs.
    if path.exists() or repository is None or Path(path.parts[0]).exists():
        return path
    repo_id, its_revision = repository
    return fetch(repo_id, revision=revision or its_revision, token=token, endpoint=endpoint, progress=progress)


def fetch(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download what is needed of a model repository, unless the local cache has it.

    A model that could not be loaded is refused before its weights are downloaded.

    Args:
        repo_id: ``user/name``.
        revision: A branch, a tag or a commit; the main branch when not given.
        token: Whose rights count; those of the account signed in on this machine when not given.
        endpoint: Another Hub than the one ``HF_ENDPOINT`` names.
        progress: Is told what happens.

    Raises:
        HubError: The repository is missing, or the Hub cannot be reached and the cache does not have it.
        CheckpointError: It holds no model that could be loaded.
    """
    # Imported here: heavy, and most checkpoints are local.
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    token = token or local_token()
    with hub_errors(f"There is no checkpoint at {repo_id!r} here, and none could be loaded from the Hub"):
        try:
            info = hub_api(token, endpoint).model_info(repo_id, revision=revision, files_metadata=True)
        except (httpx2.ConnectError, httpx2.TimeoutException, OfflineModeIsEnabled):
            cached = _cached(repo_id, revision)
            if cached is None:
                raise
            return cached

        def download(names: list[str], version: str | None) -> Path:
            folder = snapshot_download(
                repo_id, revision=version, allow_patterns=names, token=token or False, endpoint=endpoint
            )
            return Path(folder)

        sizes = _sizes(info)
        _require_files(repo_id, sizes)
        described = [name for name in _DESCRIPTIONS if name in sizes]
        folder = download(described, revision)
        folder_config(folder)
        weights = _weights(folder, sizes)
        if progress is not None:
            megabytes = sum(sizes[name] for name in weights) / 1e6
            progress(f"Fetching {repo_id} from the Hub ({megabytes:,.1f} MB)", None)
        # The folder is named by its commit: weights and description come from the same one.
        return download([*described, *weights], folder.name)


def _sizes(info: ModelInfo) -> dict[str, int]:
    return {file.rfilename: file.size or 0 for file in info.siblings or ()}


def _require_files(repo_id: str, sizes: dict[str, int]) -> None:
    if not {WEIGHTS_FILE, INDEX_FILE} & sizes.keys():
        pickled = next((name for name in sizes if name.endswith((".bin", ".pt", ".pth", ".ckpt"))), None)
        instead = (
            f" only {pickled}, a format that can run code" if pickled is not None else " no weights that are read here"
        )
        raise CheckpointError(f"The repository {repo_id!r} has no {WEIGHTS_FILE}:{instead}.")
    for name in ("config.json", "tokenizer.json"):
        if name not in sizes:
            raise CheckpointError(f"The repository {repo_id!r} cannot be loaded: it has no {name}.")


def _weights(folder: Path, sizes: dict[str, int]) -> list[str]:
    """The files with the weights; an index that names others than there are is found out on loading."""
    if WEIGHTS_FILE in sizes:
        return [WEIGHTS_FILE]
    try:
        names = set(json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        names = set()
    return sorted(name for name in names if name in sizes and name.endswith(".safetensors"))


def _cached(repo_id: str, revision: str | None) -> Path | None:
    """An earlier download, where the Hub cannot be asked; for visitors of a Space there is none they may see."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if on_a_space():
        return None
    wanted = [*_DESCRIPTIONS, WEIGHTS_FILE, "model-*.safetensors"]
    try:
        return Path(snapshot_download(repo_id, revision=revision, local_files_only=True, allow_patterns=wanted))
    except LocalEntryNotFoundError:
        return None
