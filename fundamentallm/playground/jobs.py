"""Starting, resuming, stopping and measuring trainings on behalf of a visitor.

Everything is checked before anything is written, so a refused training leaves nothing behind. The run directory gets
its own copy of pasted or uploaded text: it can be resumed after the browser and its temporary files are gone.
"""

from __future__ import annotations

import re
import shlex
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from fundamentallm.config import Config, load_config
from fundamentallm.data.corpus import Corpus
from fundamentallm.data.examples import BUILT_IN
from fundamentallm.data.file_formats import well_formed
from fundamentallm.data.hub_dataset import PREFIX
from fundamentallm.data.statistics import needed_characters, too_short
from fundamentallm.errors import ConfigError, CorpusError, RunError
from fundamentallm.playground.corpus_tab import chosen_corpus
from fundamentallm.playground.settings import SOURCE_PASTE, SOURCE_UPLOAD, PlaygroundSettings, Visitor, running
from fundamentallm.playground.train_form import FIELDS, corpus_title
from fundamentallm.runs import launcher, waiting_line
from fundamentallm.runs.run_directory import RunDirectory, list_runs
from fundamentallm.runs.waiting_line import Place

# Counting the trainings, and adding one or letting one leave, must not interleave with another visitor's.
_starting = threading.Lock()
_TEXT_FOLDER = "text"
_SAMPLE_CHARACTERS = 300_000
_PUBLIC_FIELDS = frozenset(field.path for field in FIELDS) | {
    "model.num_kv_heads",
    "model.activation",
    "model.norm",
    "model.pos_encoding",
    "model.qk_norm",
    "model.tie_embeddings",
    "training.max_steps",
    "training.muon_learning_rate",
    "training.warmup_fraction",
    "training.decay_fraction",
    "training.early_stopping_patience",
    "training.target_val_loss",
}
"""What a stranger may set: nothing that names a path or a device, or fills a disk."""
_PUBLIC_TOKENS_PER_STEP = 32_768
_PUBLIC_CONTEXT = 1_024


def start_training(
    settings: PlaygroundSettings,
    visitor: Visitor,
    *,
    source: str,
    text: str | None = None,
    files: Sequence[str] | None = None,
    preset: str = "small",
    minutes: float = 1.0,
    overrides: Mapping[str, object] | None = None,
) -> RunDirectory:
    """Start a training in its own process and a run directory of its own, or let it wait for a place there.

    Args:
        settings: Where runs are kept, and the caps.
        visitor: Whose run it will be.
        source: Name of a built-in corpus, ``"upload"``, ``"paste"``, or ``hub:user/dataset…``, fetched already.
        text: The pasted text.
        files: Paths of the uploaded files.
        preset: Name of a preset.
        minutes: How long to train.
        overrides: Settings by path, such as ``{"model.d_model": 64}``.

    Raises:
        FundamentaLLMError: One sentence; nothing was started and nothing is left behind.
    """
    config = resolve(settings, preset, minutes, overrides or {})
    corpus = chosen_corpus(settings, source, text, files)
    _check_length(corpus, config)
    _check_model_size(settings, config, _vocabulary_size(corpus, config))
    _require_owner(settings, visitor)
    with _starting, _writable():
        _check_places(settings, visitor)
        shown = _arguments(_shown_sources(source, files), preset, minutes, overrides or {})
        is_file = source in (SOURCE_PASTE, SOURCE_UPLOAD)
        name = Path(corpus_title(source, files)).stem if is_file else source.removeprefix(PREFIX)
        run = RunDirectory.create(
            settings.runs_directory, name, config=config, command=["fundamentallm", "train", *shown]
        )
        try:
            settings.claim(run, visitor)
            sources = _kept_sources(run, source, text, files, corpus)
            run.write_config(config.with_values(data={"source": sources}))
            _start_or_wait(settings, run, _arguments(sources, preset, minutes, overrides or {}))
        except BaseException:
            shutil.rmtree(run.path, ignore_errors=True)
            raise
    return run


def resume_training(settings: PlaygroundSettings, visitor: Visitor, run_id: object) -> RunDirectory:
    """Continue a stopped or failed run from its last checkpoint, or from the beginning if it has none.

    Raises:
        RunError: It is still at work, waits, is finished, or is not this visitor's.
    """
    run = settings.open_run(run_id, visitor)
    with _starting, _writable():
        status = run.status()
        if status.is_active:
            raise RunError("This run is still at work: stop it first.")
        if status.state == "waiting":
            raise RunError("This run is in the waiting line already: it starts by itself.")
        if status.state == "finished":
            raise RunError("This run is finished: start a new one to train longer.")
        _check_places(settings, visitor)
        _start_or_wait(settings, run, launcher.train_command(resume=run.path))
    return run


def start_waiting(settings: PlaygroundSettings) -> list[RunDirectory]:
    """Start the trainings that wait and for which there is a place by now; returns them."""
    with _starting:
        limits = settings.limits
        return waiting_line.start_next(
            settings.runs_directory, limits.trainings_in_total, threads=limits.threads_per_training
        )


def stop_training(settings: PlaygroundSettings, visitor: Visitor, run_id: object) -> None:
    """Ask a training to save and stop; one that waits leaves the line, one that has ended stays as it is.

    Raises:
        RunError: There is no such run for this visitor.
    """
    run = settings.open_run(run_id, visitor)
    with _starting, _writable():
        waiting_line.leave(run)
        launcher.stop(run)


def place_of(settings: PlaygroundSettings, run: RunDirectory, state: str) -> Place | None:
    """Where a run in this state stands in the waiting line; None when it does not wait."""
    if state != "waiting":
        return None
    return waiting_line.place_of(run, settings.limits.trainings_in_total)


def status_dict(settings: PlaygroundSettings, run: RunDirectory) -> dict[str, Any]:
    """The status of a run as plain values, for the API: what ``status.json`` says, its id, and its final numbers.

    ``place``, ``waiting`` and ``starts_in_seconds`` say where it stands in the line, and are None unless it waits.
    """
    status = run.status().as_dict()
    for private in ("pid", "pid_created"):
        status.pop(private, None)
    place = place_of(settings, run, status["state"])
    return {
        "run_id": run.id,
        **status,
        "place": place and place.number,
        "waiting": place and place.waiting,
        "starts_in_seconds": place and place.seconds,
        "evaluation": run.evaluation(),
    }


def resolve(settings: PlaygroundSettings, preset: str, minutes: float, overrides: Mapping[str, object]) -> Config:
    """The configuration of a training, checked against the caps.

    Raises:
        ConfigError: A setting is unknown, impossible, or more than this page allows.
    """
    sections: dict[str, dict[str, object]] = {"training": {"max_minutes": minutes}}
    for path, value in overrides.items():
        section, _, field = path.partition(".")
        if path.startswith("data.source"):
            raise ConfigError("data.source cannot be set here: choose the text in the Corpus tab.")
        if settings.public and path not in _PUBLIC_FIELDS:
            raise ConfigError(f"{path} cannot be set on a public page: run the playground on your own computer.")
        sections.setdefault(section, {})[field] = value
    config = load_config(preset=preset, values=sections)
    cap = settings.limits.minutes
    if cap is not None and minutes > cap:
        raise ConfigError(f"This page trains for at most {cap:g} minutes: choose a shorter time.")
    if settings.public:
        tokens = config.training.batch_size * config.model.sequence_length
        if tokens > _PUBLIC_TOKENS_PER_STEP or config.model.sequence_length > _PUBLIC_CONTEXT:
            raise ConfigError(
                f"This page takes at most {_PUBLIC_TOKENS_PER_STEP:,} tokens a step and a context of "
                f"{_PUBLIC_CONTEXT:,}: lower training.batch_size or model.sequence_length."
            )
    return config


def measure(
    settings: PlaygroundSettings,
    source: str,
    text: str | None,
    files: Sequence[str] | None,
    preset: str,
    minutes: float,
    overrides: Mapping[str, object],
) -> dict[str, object]:
    """Size, memory and measured speed of a training, from a few real steps on this machine.

    Raises:
        FundamentaLLMError: It could not be started as it is set up.
    """
    config = resolve(settings, preset, minutes, overrides)
    try:
        corpus = chosen_corpus(settings, source, text, files)
    except CorpusError:
        vocabulary = 100  # No text chosen yet: about an alphabet.
    else:
        _check_length(corpus, config)
        vocabulary = _vocabulary_size(corpus, config)
    _check_model_size(settings, config, vocabulary)
    busy = any(running(list_runs(settings.runs_directory)))
    result = _measured(config.to_yaml(), vocabulary, busy)
    steps = minutes * 60 / result["seconds_per_step"]
    if config.training.max_steps is not None:
        steps = min(steps, config.training.max_steps)
    conditions = " while another training is at work" if busy else ""
    seconds = result["seconds_per_step"]
    pace = f"{seconds:.2g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
    return {
        **result,
        "steps": steps,
        "note": f"Measured on this computer{conditions}: {pace} a step.",
    }


def display_command(
    source: str, files: Sequence[str] | None, *, preset: str, minutes: float, overrides: Mapping[str, object]
) -> str:
    """The command line that does the same, as a person would type it."""
    arguments = _arguments(_shown_sources(source, files), preset, minutes, overrides)
    return shlex.join(["fundamentallm", "train", *arguments])


@lru_cache(maxsize=64)
def _measured(config_yaml: str, vocabulary: int, busy: bool) -> dict[str, float]:
    # Imported here: torch takes seconds to load, and the page should be up before it is needed.
    from fundamentallm.training.estimate import estimate

    result = estimate(Config.model_validate(yaml.safe_load(config_yaml)), vocabulary)
    return {
        "parameters": result.parameters,
        "memory_bytes": result.memory_bytes,
        "seconds_per_step": result.seconds_per_step,
        "tokens_per_second": result.tokens_per_second,
    }


def _vocabulary_size(corpus: Corpus, config: Config) -> int:
    if config.data.tokenizer == "bpe":
        return config.data.vocab_size
    return len(set(corpus.read(_SAMPLE_CHARACTERS))) + 4  # and the special tokens


@contextmanager
def _writable() -> Iterator[None]:
    """A full disk, or one that may not be written, is said in one sentence."""
    try:
        yield
    except OSError as error:
        raise RunError(f"The run cannot be written: {(error.strerror or str(error)).lower()}.") from None


def _check_length(corpus: Corpus, config: Config) -> None:
    """Refuse at once what the trainer would refuse after its start."""
    context = config.model.sequence_length
    needed = needed_characters(context, config.data.train_split)
    beginning = corpus.read(needed)
    length = len(beginning) if config.data.tokenizer == "character" else len(beginning.encode("utf-8", "replace"))
    if length < needed:
        raise CorpusError(too_short(len(beginning), needed, context))


def _check_model_size(settings: PlaygroundSettings, config: Config, vocabulary: int) -> None:
    cap = settings.limits.parameters
    if cap is None:
        return
    # Imported here for the same reason as in _measured.
    from fundamentallm.training.estimate import count_parameters

    parameters = count_parameters(config.model.model_copy(update={"vocab_size": vocabulary}))
    if parameters > cap:
        raise ConfigError(
            f"This model has {parameters / 1e6:.1f} million parameters, and this page takes at most {cap / 1e6:.0f}: "
            "choose a smaller preset, or lower model.num_layers or model.d_model."
        )


def _require_owner(settings: PlaygroundSettings, visitor: Visitor) -> None:
    if settings.public and visitor.owner is None:
        raise RunError("This page cannot tell whose training this would be: allow it to store data, and reload.")


def _check_places(settings: PlaygroundSettings, visitor: Visitor) -> None:
    """Refuse a visitor's second training, and one for which there is no room even in the line."""
    limits = settings.limits
    if limits.trainings_per_visitor is not None:
        states = [run.status() for run in settings.visible_runs(visitor)]
        if sum(status.is_pending for status in states) >= limits.trainings_per_visitor:
            other = "waits for its turn" if any(s.state == "waiting" for s in states) else "is still at work"
            raise RunError(f"Your other training {other}: wait for it, or stop it first.")
    waiting = len(waiting_line.waiting_runs(settings.runs_directory))
    if limits.trainings_waiting is not None and waiting >= limits.trainings_waiting and not _has_place(settings):
        raise RunError("Even the waiting line is full at the moment: try again in some minutes.")


def _has_place(settings: PlaygroundSettings, besides: RunDirectory | None = None) -> bool:
    """Whether one more training may start now: a place is free, and nobody waits for it."""
    places = settings.limits.trainings_in_total
    if places is None:
        return True
    others = [run for run in list_runs(settings.runs_directory) if besides is None or run.id != besides.id]
    return sum(1 for _ in running(others)) < places and not waiting_line.waiting_runs(settings.runs_directory)


def _start_or_wait(settings: PlaygroundSettings, run: RunDirectory, arguments: Sequence[str]) -> None:
    if _has_place(settings, besides=run):
        launcher.start(arguments, run, threads=settings.limits.threads_per_training)
    else:
        minutes = run.config().training.max_minutes
        waiting_line.join(run, arguments, None if minutes is None else 60 * minutes)


def _shown_sources(source: str, files: Sequence[str] | None) -> list[str]:
    if source == SOURCE_PASTE:
        return ["my-text.txt"]
    if source == SOURCE_UPLOAD:
        return [Path(file).name for file in files or ()] or ["my-text.txt"]
    return [source]


def _kept_sources(
    run: RunDirectory, source: str, text: str | None, files: Sequence[str] | None, corpus: Corpus
) -> list[str]:
    """What the trainer reads: a built-in name, or copies inside the run directory."""
    if source in BUILT_IN:
        return [source]
    folder = run.path / _TEXT_FOLDER
    folder.mkdir()
    if source == SOURCE_PASTE:
        kept = folder / "pasted-text.txt"
        kept.write_text(well_formed(text or ""), encoding="utf-8")
        return [str(kept)]
    if source.startswith(PREFIX):
        # A dataset may change on the Hub, and need not be fetched again by whoever resumes.
        kept = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', source.removeprefix(PREFIX))}.txt"
        with kept.open("w", encoding="utf-8", newline="") as out:
            out.writelines(corpus.chunks())
        return [str(kept)]
    paths = []
    for number, file in enumerate(files or (), start=1):
        # Numbered, so that two uploads of one name stay two and keep their order.
        kept = folder / f"{number:03d}-{Path(file).name}"
        shutil.copyfile(file, kept)
        paths.append(str(kept))
    return paths


def _arguments(sources: Sequence[str], preset: str, minutes: float, overrides: Mapping[str, object]) -> list[str]:
    # The time first: it is what the button says.
    return launcher.train_command(sources, preset=preset, overrides={"training.max_minutes": minutes, **overrides})
