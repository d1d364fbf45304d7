"""A checkpoint folder to the Hub: one commit, all of it or nothing, and safe to repeat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fundamentallm.checkpoint import INDEX_FILE, WEIGHTS_FILE, folder_config
from fundamentallm.errors import CheckpointError
from fundamentallm.hub.model_card import CARD_MARK, CURVE_FILE, Sample, model_card, public_config
from fundamentallm.hub.repository import Cancelled, Destination, Progress, addition, push_files, required_token
from fundamentallm.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    from fundamentallm.hub.repository import Operation

# What a stranger needs. Whatever else lies in the folder (optimizer state, notes, a dataset) stays at home.
_PUBLISHED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    INDEX_FILE,
    "model*.safetensors",
    "*.gguf",
)


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    message: str | None = None,
    endpoint: str | None = None,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
    run: RunDirectory | None = None,
    samples: Sequence[Sample] = (),
) -> str:
    """Publish a checkpoint folder, with a model card, in one commit; the folder itself is only read.

    A card that somebody edited on the Hub and took our mark out of is left as it is.

    Args:
        folder: A checkpoint folder.
        repo_id: ``user/name``, or a bare name for the token's owner; created when it does not exist.
        private: Whether only its owner may see it.
        token: A Hub token with write access; that of the account signed in on this machine when not given. A page for
            visitors passes the visitor's.
        message: Of the commit.
        endpoint: Another Hub than the one ``HF_ENDPOINT`` names.
        progress: Is told what happens, and the share that is done.
        cancelled: Asked between the steps; True ends the push before its commit.
        run: The run that the card tells of; the one the folder lies in, when not given.
        samples: Texts for the card; the run's last one when not given.

    Returns:
        The repository's address.

    Raises:
        HubError: Whatever went wrong, in one sentence; it can be repeated.
        CheckpointError: The folder is no complete checkpoint.
    """
    folder = Path(folder)
    token = required_token(token)
    files = _published_files(folder)
    config = folder_config(folder)
    run = run or run_around(folder)

    def operations(destination: Destination) -> list[Operation]:
        changes: list[Operation] = [addition(name, folder / name) for name in files]
        if (folder / "config.yaml").is_file():
            changes.append(addition("config.yaml", public_config(config).to_yaml().encode()))
        changes += _outdated(destination, files)
        if not destination.has("README.md") or destination.contains("README.md", CARD_MARK):
            changes += _card(folder, destination.repo_id, run, samples)
        return changes

    return push_files(
        repo_id,
        operations,
        kind="model",
        what="The model",
        message=message or "A model trained with FundamentaLLM",
        private=private,
        token=token,
        endpoint=endpoint,
        progress=progress,
        cancelled=cancelled,
    )


def run_around(folder: Path) -> RunDirectory | None:
    """The run that a checkpoint lies in, if it does."""
    runs = (RunDirectory(parent) for parent in folder.resolve().parents)
    return next((run for run in runs if run.exists), None)


def _published_files(folder: Path) -> list[str]:
    names = sorted({path.name for pattern in _PUBLISHED for path in folder.glob(pattern) if path.is_file()})
    for needed in ("config.json", "tokenizer.json"):
        if needed not in names:
            raise CheckpointError(f"{str(folder)!r} is no complete checkpoint folder: it has no {needed}.")
    if not {WEIGHTS_FILE, INDEX_FILE} & set(names):
        raise CheckpointError(f"{str(folder)!r} is no complete checkpoint folder: it has no {WEIGHTS_FILE}.")
    return names


def _outdated(destination: Destination, files: list[str]) -> list[Operation]:
    """Weights of an earlier push that this one would leave beside its own."""
    from huggingface_hub import CommitOperationDelete

    weights = [
        name
        for name in destination.files
        if name == INDEX_FILE or (name.startswith("model-") and name.endswith(".safetensors"))
    ]
    return [CommitOperationDelete(path_in_repo=name) for name in weights if name not in files]


def _card(folder: Path, repo_id: str, run: RunDirectory | None, samples: Sequence[Sample]) -> list[Operation]:
    card = model_card(folder, repo_id, run=run, samples=samples)
    added: list[Operation] = [addition("README.md", card.text.encode())]
    if card.curve is not None:
        added.append(addition(CURVE_FILE, card.curve))
    return added
