"""Datasets on the Hugging Face Hub as texts of the page: each is fetched once, and kept for what is done with it."""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from fundamentallm.data.corpus import Corpus
from fundamentallm.data.file_formats import open_file
from fundamentallm.data.hub_dataset import PREFIX, fetch_dataset, parse_dataset
from fundamentallm.errors import CorpusError
from fundamentallm.playground.settings import PlaygroundSettings

Report = Callable[[float, str], None]
_FETCHED_SHARE = 0.9
"""Share of the progress bar for fetching; the rest is for reading what was fetched."""
_MEGABYTE = 1_000_000


def dataset_source(name: str | None) -> str:
    """``hub:user/dataset…`` for what somebody wrote into the box, with or without the prefix."""
    return PREFIX + (name or "").strip().removeprefix(PREFIX).strip()


class HubTexts:
    """The datasets fetched last, as plain text in temporary files that vanish with them."""

    def __init__(self, capacity: int = 4) -> None:
        self._capacity = capacity
        self._texts: OrderedDict[tuple[str, int | None, bool], Corpus] = OrderedDict()
        self._lock = threading.Lock()

    def has(self, settings: PlaygroundSettings, source: str) -> bool:
        """Whether a dataset was fetched already."""
        with self._lock:
            return _key(settings, source) in self._texts

    def get(self, settings: PlaygroundSettings, source: str) -> Corpus:
        """A dataset that was fetched already.

        Raises:
            CorpusError: It was not; the sentence says what to do.
        """
        with self._lock:
            corpus = self._texts.get(_key(settings, source))
            if corpus is not None:
                self._texts.move_to_end(_key(settings, source))
                return corpus
        if source == PREFIX:
            raise CorpusError("There is no dataset yet: write its name, and press Fetch.")
        parse_dataset(source)
        raise CorpusError(f"{source.removeprefix(PREFIX)!r} is not here yet: press Fetch in the Corpus tab.")

    def fetch(
        self,
        settings: PlaygroundSettings,
        source: str,
        report: Report | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Corpus:
        """A dataset, from the Hub unless it is here already; of one that is too large the beginning.

        Args:
            settings: The cap on corpora, and whose rights count: on a public page nobody's, so that visitors reach
                public datasets only.
            source: ``hub:user/dataset[@revision][:[subset/]split][:column]``.
            report: Is told the share that is there, and what is going on; the size first.
            cancelled: Asked at every block; True ends it with CorpusError.

        Raises:
            CorpusError: There is no such split or column, no text, or no room for it.
            HubError: The dataset is missing, or the Hub cannot be reached.
        """
        with self._lock:
            known = self._texts.get(_key(settings, source))
        if known is not None:
            return known
        if source == PREFIX:
            raise CorpusError("There is no dataset yet: write its name, as in user/dataset.")
        tell = report or (lambda _share, _what: None)
        asked = cancelled or (lambda: False)
        corpus = _fetched(settings, source, tell, asked)
        with self._lock:
            self._texts[_key(settings, source)] = corpus
            while len(self._texts) > self._capacity:
                self._texts.popitem(last=False)
        return corpus


def _key(settings: PlaygroundSettings, source: str) -> tuple[str, int | None, bool]:
    return source, settings.limits.corpus_bytes, settings.public


def _fetched(settings: PlaygroundSettings, source: str, tell: Report, cancelled: Callable[[], bool]) -> Corpus:
    cap = settings.limits.corpus_bytes
    folder = tempfile.TemporaryDirectory(prefix="fundamentallm-")
    raw = tempfile.TemporaryDirectory(prefix="fundamentallm-")
    with raw:
        texts = fetch_dataset(
            source,
            Path(raw.name),
            max_bytes=cap,
            progress=lambda what, share: tell(_FETCHED_SHARE * share, what),
            cancelled=cancelled,
            as_nobody=settings.public,
        )
        notes = [note for text in texts for note in text.notes]
        path = Path(folder.name) / "text.txt"
        tell(_FETCHED_SHARE, "Reading it")
        if _written(Corpus(source, texts), path, cap, cancelled):
            assert cap is not None
            notes.append(f"Only the first {cap / _MEGABYTE:,.0f} MB of {source!r} are taken.")
    return Corpus(source, open_file(path, source), list(dict.fromkeys(notes)), keep=[folder])


def _written(corpus: Corpus, path: Path, cap: int | None, cancelled: Callable[[], bool]) -> bool:
    """Write a corpus as plain text, at most ``cap`` bytes of it; whether that was not all."""
    size = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        for piece in corpus.chunks():
            if cancelled():
                raise CorpusError("Fetching the dataset was stopped.")
            encoded = piece.encode()
            if cap is not None and size + len(encoded) > cap:
                file.write(encoded[: cap - size].decode(errors="ignore"))
                return True
            file.write(piece)
            size += len(encoded)
    if size == 0:
        raise CorpusError(f"{corpus.name!r} holds no text: choose another.")
    return False


HUB_TEXTS = HubTexts()
"""The store that all tabs and endpoints of this process share."""
