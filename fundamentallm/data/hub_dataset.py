"""Texts from datasets on the Hugging Face Hub: ``hub:user/dataset[@revision][:split][:column]``.

Only the files of one split are fetched, straight into temporary files, and read like files a person has chosen. No code
of a dataset is ever run.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fundamentallm.data.file_formats import TextSource, open_file, too_large
from fundamentallm.errors import CorpusError
from fundamentallm.hub_access import hub_api, hub_errors, local_token, parse_repository

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Progress = Callable[[str, float], None]

PREFIX = "hub:"
_KINDS = {
    "text": (".txt", ".txt.gz", ".md", ".text"),
    "records": (".jsonl", ".jsonl.gz", ".ndjson", ".json"),
    "table": (".csv", ".csv.gz", ".tsv"),
    "parquet": (".parquet",),
}
# How split names are spelled in files' names, where the dataset's card does not list them.
_SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "eval"),
}
_ATTEMPTS = 5
_SECONDS = 60.0  # without a byte, after which a connection counts as lost
_MAX_JSON_BYTES = 500_000_000


@dataclass(frozen=True)
class DatasetName:
    """The parts of ``hub:user/dataset@revision:split:column``; a subset is written before the split, with a slash."""

    repo_id: str
    revision: str | None
    subset: str | None
    split: str | None
    column: str | None


def parse_dataset(source: str) -> DatasetName:
    """Take a name apart; raises CorpusError when it is none."""
    repository, *rest = source.removeprefix(PREFIX).split(":")
    parsed = parse_repository(repository)
    if parsed is None or len(rest) > 2:
        raise CorpusError(f"{source!r} names no dataset on the Hub: write hub:user/dataset, hub:user/dataset:split, "
                          "or hub:user/dataset:split:column.")  # fmt: skip
    split, column = ([part or None for part in rest] + [None, None])[:2]
    subset, slash, name = (split or "").rpartition("/")
    return DatasetName(*parsed, subset if slash else None, name or None, column)


def fetch_dataset(
    source: str,
    directory: Path,
    *,
    max_bytes: int | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    token: str | None = None,
    as_nobody: bool = False,
    endpoint: str | None = None,
) -> list[TextSource]:
    """Fetch one split of a dataset and open its texts.

    Args:
        source: ``hub:user/dataset[@revision][:[subset/]split][:column]``; without a split the training split.
        directory: An empty temporary directory for the files.
        max_bytes: Take no more than the beginning that fits into this.
        progress: Is told first how large it is, then the share that is there.
        cancelled: Asked at every block; True ends it with CorpusError.
        token: For a private dataset; that of the account signed in on this machine when not given.
        as_nobody: Without any token, on behalf of strangers: public datasets only.
        endpoint: Another Hub than the one ``HF_ENDPOINT`` names.

    Raises:
        CorpusError: There is no such split or column, no text, or no room for it.
        HubError: The dataset is missing, or the Hub cannot be reached.
    """
    wanted = parse_dataset(source)
    token = None if as_nobody else token or local_token()
    api = hub_api(token, endpoint)
    failure = f"The dataset {wanted.repo_id!r} could not be fetched from the Hub"
    with hub_errors(failure):
        info = api.dataset_info(wanted.repo_id, revision=wanted.revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    card: Any = info.card_data
    names = _choose(wanted, sizes, card.to_dict() if card is not None else {})
    total = sum(sizes[name] for name in names)
    taken = total if max_bytes is None else min(total, max_bytes)
    if taken > shutil.disk_usage(directory).free:
        raise CorpusError(f"{source!r} is {total / 1e6:,.0f} MB, for which the disk has no room: free some space.")
    report = progress or (lambda _what, _share: None)
    report(f"Fetching {_megabytes(taken)} of {wanted.repo_id} from the Hub", 0.0)
    texts: list[TextSource] = []
    done = 0
    for number, name in enumerate(names):
        left = None if max_bytes is None else max_bytes - done
        if left is not None and (left <= 0 or (left < sizes[name] and not _can_be_cut(name))):
            break
        path = directory / f"{number:05d}-{PurePosixPath(name).name}"
        download = _Download(api, wanted.repo_id, str(info.sha), name, left, cancelled)
        with hub_errors(failure):
            for size in download.to(path):
                report(f"Fetching {wanted.repo_id}", min(1.0, (done + size) / max(1, taken)))
        done += path.stat().st_size
        texts += open_file(_as_records(path), name, column=wanted.column)
        if left is not None and left < sizes[name]:
            break
    if not texts:
        assert max_bytes is not None
        raise CorpusError(too_large(max_bytes))
    if done < total:
        texts[0].notes.append(f"Only the first {_megabytes(done)} of {_megabytes(total)} of {source!r} are taken.")
    return texts


@dataclass(frozen=True)
class _Download:
    api: HfApi
    repo_id: str
    sha: str
    name: str
    limit: int | None
    cancelled: Callable[[], bool] | None

    def to(self, path: Path) -> Any:
        """Write the file, or its beginning, and yield the size reached after every block; goes on after a cut."""
        import httpx2

        for attempt in range(_ATTEMPTS):
            try:
                with path.open("ab") as file:
                    yield from self._blocks(file)
                break
            except (httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.TimeoutException):
                if attempt == _ATTEMPTS - 1:
                    raise
        if self.limit is not None and path.stat().st_size >= self.limit:
            _cut(path, self.limit)

    def _blocks(self, file: Any) -> Any:
        import httpx2
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

        url = hf_hub_url(self.repo_id, self.name, repo_type="dataset", revision=self.sha, endpoint=self.api.endpoint)
        headers = build_hf_headers(token=self.api.token) | {"Accept-Encoding": "identity"}
        size = file.tell()
        if size:
            headers["Range"] = f"bytes={size}-"
        with get_session().stream("GET", url, headers=headers, timeout=_SECONDS) as response:
            if response.is_error:
                response.read()
            hf_raise_for_status(response)
            if size and response.status_code != httpx2.codes.PARTIAL_CONTENT:
                file.truncate(0)
                size = 0
            for block in response.iter_raw():
                if self.cancelled is not None and self.cancelled():
                    raise CorpusError("Fetching the dataset was stopped.")
                file.write(block)
                size += len(block)
                yield size
                if self.limit is not None and size >= self.limit:
                    return


def _choose(wanted: DatasetName, sizes: Mapping[str, int], card: Mapping[str, Any]) -> list[str]:
    """The files of the wanted split, in order; those of one kind, where there are several."""
    readable = [name for name in sizes if _kind(name) and not PurePosixPath(name).name.lower().startswith("readme")]
    if not readable:
        raise CorpusError(
            f"The dataset {wanted.repo_id!r} holds no text, JSONL, CSV or Parquet file: choose another dataset."
        )
    splits = _listed_splits(wanted, card) or _spelled_splits(readable)
    split = wanted.split or ("train" if "train" in splits or len(splits) != 1 else next(iter(splits)))
    if split not in splits:
        raise CorpusError(
            f"The dataset {wanted.repo_id!r} has no split {split!r}: write hub:{wanted.repo_id}:SPLIT with one of "
            f"{', '.join(splits)}."
        )
    chosen = [name for name in readable if any(_matches(name, pattern) for pattern in splits[split])]
    if not chosen:
        raise CorpusError(f"The split {split!r} of {wanted.repo_id!r} holds no text, JSONL, CSV or Parquet file.")
    by_kind: dict[str, list[str]] = {}
    for name in sorted(chosen):
        by_kind.setdefault(_kind(name), []).append(name)
    return max(by_kind.values(), key=lambda names: sum(sizes[name] for name in names))


def _kind(name: str) -> str:
    return next((kind for kind, endings in _KINDS.items() if name.lower().endswith(endings)), "")


def _listed_splits(wanted: DatasetName, card: Mapping[str, Any]) -> dict[str, list[str]]:
    """The splits of the wanted subset and their files' patterns, where the dataset's card lists them."""
    configs = [config for config in card.get("configs") or () if isinstance(config, dict) and config.get("data_files")]
    if not configs:
        return {}
    named = {str(config.get("config_name", "default")): config for config in configs}
    default = next((name for name, config in named.items() if config.get("default") is True), "default")
    subset = wanted.subset or (default if default in named else next(iter(named)) if len(named) == 1 else None)
    if subset not in named:
        raise CorpusError(
            f"The dataset {wanted.repo_id!r} has several subsets: write hub:{wanted.repo_id}:SUBSET/"
            f"{wanted.split or 'train'} with one of {', '.join(list(named)[:20])}."
        )
    files = named[subset]["data_files"]
    if isinstance(files, str) or (isinstance(files, list) and all(isinstance(file, str) for file in files)):
        return {"train": _patterns(files)}
    return {str(file["split"]): _patterns(file["path"]) for file in files if isinstance(file, dict) and "path" in file}


def _patterns(value: object) -> list[str]:
    return (
        [str(pattern) for pattern in value]
        if isinstance(value, Sequence) and not isinstance(value, str)
        else [str(value)]
    )


def _spelled_splits(names: Sequence[str]) -> dict[str, list[str]]:
    """The splits that files' names tell, each with its files; all files are for training where none does."""
    found: dict[str, list[str]] = {}
    for split, spellings in _SPELLINGS.items():
        word = re.compile(rf"(?:^|[/._ -])(?:{'|'.join(spellings)})(?=[/._ -]|$)", re.I)
        files = [name for name in names if word.search(name)]
        if files:
            found[split] = files
    return found or {"train": list(names)}


def _matches(name: str, pattern: str) -> bool:
    # `**/` also stands for no folder at all.
    return name == pattern or fnmatchcase(name, pattern) or fnmatchcase(name, pattern.replace("**/", ""))


def _can_be_cut(name: str) -> bool:
    """Whether the beginning of such a file can be read: not of an archive, nor of a list with an end."""
    return not name.lower().endswith((".parquet", ".gz", ".json"))


def _cut(path: Path, limit: int) -> None:
    """Keep at most ``limit`` bytes, and whole lines where there are any."""
    with path.open("r+b") as file:
        file.seek(max(0, limit - (1 << 20)))
        tail = file.read(min(limit, 1 << 20))
        file.truncate(limit - len(tail) + (tail.rfind(b"\n") + 1 or len(tail)))


def _as_records(path: Path) -> Path:
    """A ``.json`` file as lines of records: so it is often written, and a list can be written so."""
    if path.suffix.lower() != ".json":
        return path
    lines = path.with_suffix(".jsonl")
    with path.open("rb") as file:
        first = file.read(1024).lstrip()[:1]
    if first != b"[":
        return path.rename(lines)
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise CorpusError(f"{path.name!r} is one JSON list of more than {_megabytes(_MAX_JSON_BYTES)}: choose JSONL.")
    try:
        records = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise CorpusError(f"{path.name!r} is no valid JSON: choose another dataset.") from None
    with lines.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(record) + "\n" for record in records)
    path.unlink()
    return lines


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
