"""A checkpoint folder to the Hub: one commit, all of it or nothing, and safe to repeat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from fundamentallm.checkpoint import INDEX_FILE, WEIGHTS_FILE, folder_config
from fundamentallm.config import Config
from fundamentallm.errors import CheckpointError, HubError
from fundamentallm.hub.model_card import CARD_MARK, CURVE_FILE, Sample, model_card, public_config
from fundamentallm.hub_access import hub_api, hub_errors, local_token
from fundamentallm.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.hf_api import ModelInfo

Progress = Callable[[str, float], None]

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
        run: The run that the card tells of; the one the folder lies in, when not given.
        samples: Texts for the card; the run's last one when not given.

    Returns:
        The repository's address.

    Raises:
        HubError: Whatever went wrong, in one sentence; it can be repeated.
        CheckpointError: The folder is no complete checkpoint.
    """
    folder = Path(folder)
    report = progress or (lambda _what, _share: None)
    token = token or local_token()
    if token is None:
        raise HubError(
            "Pushing needs a token of the Hugging Face Hub with write access: sign in with `hf auth login`, set "
            "HF_TOKEN, or pass one."
        )
    files = _published_files(folder)
    config = folder_config(folder)
    run = run or _run_around(folder)
    failure = f"The model could not be pushed to {repo_id!r}"
    with hub_errors(failure):
        api = hub_api(token, endpoint)
        report("Creating the repository", 0.0)
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        info = api.model_info(url.repo_id)
        writes_card = _card_is_ours(api, info)
    _require_visibility(info, private)
    report("Writing the model card", 0.05)
    operations = [*_additions(folder, files, config), *_outdated(info, files)]
    if writes_card:
        operations += _card(folder, url.repo_id, run, samples)
    size = sum((folder / name).stat().st_size for name in files)
    report(f"Uploading {size / 1e6:,.1f} MB", 0.1)
    with hub_errors(failure):
        message = message or "A model trained with FundamentaLLM"
        api.create_commit(url.repo_id, operations, commit_message=message)
    report("The model is on the Hub", 1.0)
    return str(url)


def _published_files(folder: Path) -> list[str]:
    names = sorted({path.name for pattern in _PUBLISHED for path in folder.glob(pattern) if path.is_file()})
    for needed in ("config.json", "tokenizer.json"):
        if needed not in names:
            raise CheckpointError(f"{str(folder)!r} is no complete checkpoint folder: it has no {needed}.")
    if not {WEIGHTS_FILE, INDEX_FILE} & set(names):
        raise CheckpointError(f"{str(folder)!r} is no complete checkpoint folder: it has no {WEIGHTS_FILE}.")
    return names


def _run_around(folder: Path) -> RunDirectory | None:
    runs = (RunDirectory(parent) for parent in folder.resolve().parents)
    return next((run for run in runs if run.exists), None)


def _require_visibility(info: ModelInfo, private: bool) -> None:
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


def _additions(folder: Path, files: list[str], config: Config) -> list[CommitOperationAdd | CommitOperationDelete]:
    from huggingface_hub import CommitOperationAdd

    added: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in files
    ]
    if (folder / "config.yaml").is_file():
        content = public_config(config).to_yaml().encode()
        added.append(CommitOperationAdd(path_in_repo="config.yaml", path_or_fileobj=content))
    return added


def _outdated(info: ModelInfo, files: list[str]) -> list[CommitOperationDelete]:
    """Weights of an earlier push that this one would leave beside its own."""
    from huggingface_hub import CommitOperationDelete

    there = [file.rfilename for file in info.siblings or ()]
    weights = [
        name for name in there if name == INDEX_FILE or (name.startswith("model-") and name.endswith(".safetensors"))
    ]
    return [CommitOperationDelete(path_in_repo=name) for name in weights if name not in files]


def _card_is_ours(api: HfApi, info: ModelInfo) -> bool:
    if not any(file.rfilename == "README.md" for file in info.siblings or ()):
        return True
    with TemporaryDirectory() as directory:
        path = api.hf_hub_download(info.id, "README.md", revision=info.sha, local_dir=directory)
        return CARD_MARK in Path(path).read_text(encoding="utf-8")


def _card(
    folder: Path, repo_id: str, run: RunDirectory | None, samples: Sequence[Sample]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    from huggingface_hub import CommitOperationAdd

    card = model_card(folder, repo_id, run=run, samples=samples)
    added: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=card.text.encode())
    ]
    if card.curve is not None:
        added.append(CommitOperationAdd(path_in_repo=CURVE_FILE, path_or_fileobj=card.curve))
    return added
