"""What the Evaluate tab and its endpoint do: measure a model on a text, and be followed and stopped meanwhile."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from fundamentallm.data.corpus import open_corpus
from fundamentallm.data.token_store import open_prepared, prepare
from fundamentallm.errors import CorpusError, FundamentaLLMError
from fundamentallm.playground.model_cache import MODELS
from fundamentallm.playground.settings import BUNDLED_ID, PlaygroundSettings, Visitor
from fundamentallm.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    from fundamentallm.evaluation.baselines import Baseline
    from fundamentallm.language_model import LanguageModel

_SECONDS_BETWEEN_UPDATES = 0.15
_MODEL_SHARE = 0.8
"""Share of the progress bar for the model; the rest is for the baselines."""
_SEARCHED_TOKENS = 5_000_000
"""Training tokens that are searched for copies, from the beginning: half a second of searching."""
_AROUND = 60
"""Characters of the training text shown on either side of a copied piece."""
SURPRISE_TOKENS = 1_500
"""Tokens shown with their surprise: some screens of text."""


@dataclass(frozen=True)
class Subject:
    """A model, the text it is measured on, and the training text that the counting models learn from."""

    model: LanguageModel
    text: str
    tokens: npt.NDArray[Any]
    """(N,)"""
    previous: npt.NDArray[Any] | None
    """The training tokens directly before the text, when it is the held-out part."""
    train: npt.NDArray[Any] | None
    """None when the run's training text is not there any more."""
    note: str = ""
    """What the reader must know: that only the beginning is measured."""

    @property
    def previous_token(self) -> int | None:
        """The training token directly before the text, if it is the held-out part."""
        return None if self.previous is None or not len(self.previous) else int(self.previous[-1])


def subject_of(settings: PlaygroundSettings, run_id: object, visitor: Visitor, text: str | None) -> Subject:
    """What is to be measured: ``text``, or the run's held-out part when it is None.

    Raises:
        FundamentaLLMError: No such run, no checkpoint, an empty or too long text.
    """
    path = settings.model_path(run_id, visitor)
    model = MODELS.load(path)
    if text is not None:
        if not text:
            raise CorpusError("There is no text yet: paste one, or choose a file.")
        settings.check_corpus_size(len(text.encode("utf-8", "surrogatepass")))
    cap = settings.limits.evaluated_tokens
    directory = _tokens_of(run_id, path)
    try:
        prepared = open_prepared(directory)
    except FundamentaLLMError:
        if text is None:
            raise CorpusError("The training text of this run is gone: paste a text to measure on.") from None
        return _given(model, text, None, cap)
    train = prepared.train.tokens
    if text is not None:
        return _given(model, text, train, cap)
    held_out = (directory / "tokens" / "validation.txt").read_text(encoding="utf-8")
    tokens = prepared.validation.tokens
    if cap is not None and len(tokens) > cap:
        return replace(_given(model, held_out, train, cap), previous=train[-2:])
    return Subject(model, held_out, tokens, train[-2:], train)


def _given(model: LanguageModel, text: str, train: npt.NDArray[Any] | None, cap: int | None) -> Subject:
    """A text of any length, or its beginning: as many characters as ``cap``, and no more tokens than that."""
    beginning = text[:cap]
    tokens = model.tokenizer.encode(beginning)
    # Only where a character is several tokens.
    while cap is not None and len(tokens) > cap:
        beginning = beginning[: len(beginning) * cap // len(tokens)]
        tokens = model.tokenizer.encode(beginning)
    if len(beginning) == len(text):
        return Subject(model, text, tokens, None, train)
    note = f"This page measures the beginning of a long text: its first {len(beginning):,} characters."
    return Subject(model, beginning, tokens, None, train, note)


def measure(
    subject: Subject,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """The numbers of an evaluation by name, and under ``baselines`` what they are compared with.

    Raises:
        EvaluationStopped: ``cancelled`` returned True.
    """
    # Imported here, as everywhere below: it loads PyTorch, which takes seconds, and the page is up before.
    from fundamentallm.evaluation.evaluator import evaluate

    report = progress or (lambda share, doing: None)
    result: dict[str, Any] = evaluate(
        subject.model.model,
        subject.model.tokenizer,
        tokens=subject.tokens,
        characters=len(subject.text),
        bytes=len(subject.text.encode("utf-8", "surrogatepass")),
        previous_token=subject.previous_token,
        progress=lambda share: report(_MODEL_SHARE * share, "The model reads the text"),
        cancelled=cancelled,
    ).as_dict()
    report(_MODEL_SHARE, "Counting and compressing, for comparison")
    if subject.note:
        result["note"] = subject.note
    result["baselines"] = [rung.as_dict() for rung in baselines_of(subject)]
    return result


def baselines_of(subject: Subject) -> list[Baseline]:
    """The ladder for a subject; none where its training text is gone."""
    from fundamentallm.evaluation.baselines import ladder

    if subject.train is None:
        return []
    vocabulary = subject.model.tokenizer.vocab_size
    return ladder(subject.train, subject.tokens, vocabulary, subject.text, previous_tokens=subject.previous)


def held_out_baselines(settings: PlaygroundSettings, run_id: object, visitor: Visitor) -> list[dict[str, Any]]:
    """The ladder for a run's held-out part, without loading its model; remembered, since a run's text never changes.

    Raises:
        FundamentaLLMError: No such run for this visitor, or its text is gone.
    """
    run = settings.open_run(run_id, visitor)
    return _ladder_in(run.path, (run.path / "tokens").stat().st_mtime_ns if (run.path / "tokens").is_dir() else 0)


@lru_cache(maxsize=32)
def _ladder_in(directory: Path, written: int) -> list[dict[str, Any]]:
    from fundamentallm.evaluation.baselines import ladder

    del written  # a part of the key only
    data = open_prepared(directory)
    train = data.train.tokens
    rungs = ladder(
        train,
        data.validation.tokens,
        data.tokenizer.vocab_size,
        data.validation_text(),
        previous_tokens=train[-2:],
    )
    return [rung.as_dict() for rung in rungs]


def surprise_of(subject: Subject) -> list[tuple[str, float]]:
    """The beginning of the text, token by token, each with its loss in nats."""
    from fundamentallm.evaluation.evaluator import token_losses

    tokens = subject.tokens[:SURPRISE_TOKENS]
    model, tokenizer = subject.model.model, subject.model.tokenizer
    losses = token_losses(model, tokenizer, tokens, previous_token=subject.previous_token)
    return [(tokenizer.token_text(int(token)), float(loss)) for token, loss in zip(tokens, losses, strict=True)]


def copies_of(
    settings: PlaygroundSettings, run_id: object, visitor: Visitor, texts: Sequence[str]
) -> list[dict[str, Any]] | None:
    """What of each text stands word for word in the training text, for assets/compare.js; None where that is gone.

    Raises:
        FundamentaLLMError: No such run for this visitor.
    """
    path = settings.model_path(run_id, visitor)
    directory = _tokens_of(run_id, path)
    try:
        corpus = _training_text(directory, (directory / "tokens").stat().st_mtime_ns)
    except (FundamentaLLMError, OSError):
        return None
    return [_copies(text, corpus) for text in texts]


def _copies(text: str, corpus: str) -> dict[str, Any]:
    from fundamentallm.evaluation.memorization import copied_spans

    spans = copied_spans(text, corpus)
    view: dict[str, Any] = {"spans": [[span.start, span.end] for span in spans]}
    if not spans:
        return view | {"note": "Nothing is copied word for word"}
    longest = max(spans, key=lambda span: span.length)
    share = sum(span.length for span in spans) / len(text)
    start, end = longest.corpus_position, longest.corpus_position + longest.length
    return view | {
        "note": f"{share:.0%} stands in the training text, up to {longest.length:,} characters on end",
        "source": f"The longest, from character {start + 1:,} of the training text:\n"
        f"…{corpus[max(0, start - _AROUND) : start]}▸{corpus[start:end]}◂{corpus[end : end + _AROUND]}…",
    }


@lru_cache(maxsize=2)
def _training_text(directory: Path, written: int) -> str:
    del written  # a part of the key only
    data = open_prepared(directory)
    return data.tokenizer.decode(data.train.tokens[:_SEARCHED_TOKENS])


def stored_evaluation(settings: PlaygroundSettings, run_id: object, visitor: Visitor) -> dict[str, Any] | None:
    """The numbers written down when training ended, if there are any."""
    if run_id == BUNDLED_ID:
        return RunDirectory(settings.model_path(run_id, visitor)).evaluation()
    return settings.open_run(run_id, visitor).evaluation()


@dataclass(frozen=True)
class Progress:
    """How far a piece of work has come."""

    share: float
    doing: str


Work = Callable[[Callable[[float, str], None], Callable[[], bool]], dict[str, Any]]


def followed(work: Work) -> Iterator[Progress | dict[str, Any]]:
    """Do ``work`` in a thread and yield its progress, then its result.

    Closing this generator, as Gradio does when Stop is pressed or the browser leaves, tells the work to stop: a
    blocking call could not be interrupted.
    """
    state = Progress(0.0, "Starting")
    stopped = threading.Event()
    outcome: list[dict[str, Any] | Exception] = []

    def report(share: float, doing: str) -> None:
        nonlocal state
        state = Progress(share, doing)

    def target() -> None:
        try:
            outcome.append(work(report, stopped.is_set))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_SECONDS_BETWEEN_UPDATES)
            if thread.is_alive():
                yield state
    finally:
        stopped.set()
    result = outcome[0]
    if isinstance(result, Exception):
        raise result
    yield result


_preparing = threading.Lock()


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fundamentallm-")


def _tokens_of(run_id: object, model_path: Path) -> Path:
    """The directory with a model's training text as tokens."""
    return _bundled_tokens(model_path) if run_id == BUNDLED_ID else model_path


def _bundled_tokens(folder: Path) -> Path:
    """The bundled model's corpus, made again: it is a pure function of a seed, and too large to ship."""
    directory = Path(_scratch().name)
    with _preparing:
        if not (directory / "tokens" / "validation.txt").exists():
            model = MODELS.load(folder)
            data = model.config.data
            prepare(
                open_corpus(data.source),
                data,
                directory,
                sequence_length=model.config.model.sequence_length,
                tokenizer=model.tokenizer,
            )
    return directory
