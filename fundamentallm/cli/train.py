"""``fundamentallm train``."""

from __future__ import annotations

import shlex
import shutil
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import click

from fundamentallm.cli.commands import debug_option
from fundamentallm.cli.output import evaluation_table, find_checkpoint, warn, write, write_table
from fundamentallm.config import Config, field_help, load_config
from fundamentallm.errors import ConfigError, FundamentaLLMError

if TYPE_CHECKING:
    from fundamentallm.checkpoint import Checkpoint
    from fundamentallm.data.corpus import Corpus
    from fundamentallm.runs.run_directory import RunDirectory


def _help(field: str) -> str:
    return field_help("training", field)


@click.command(epilog="Example: fundamentallm train my.txt --preset small --minutes 1 --set model.dropout=0.1")
@click.argument("data", nargs=-1)
@click.option("--preset", help="Settings to start from: small, default or large.")
@click.option("--config", "config_file", help="A YAML file of settings to start from.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.FIELD=VALUE", help="Any setting; give several.")
@click.option("--run-dir", help="A new directory for this run; under ./runs, named by date, when not given.")
@click.option("--epochs", "max_epochs", type=float, help=_help("max_epochs"))
@click.option("--max-steps", type=int, help=_help("max_steps"))
@click.option("--minutes", "max_minutes", type=float, help=_help("max_minutes"))
@click.option("--batch-size", type=int, help=_help("batch_size"))
@click.option("--learning-rate", type=float, help=_help("learning_rate"))
@click.option("--device", help=_help("device"))
@click.option("--seed", type=int, help=_help("seed"))
@click.option("--from", "start", metavar="CHECKPOINT", help="Start from its weights and vocabulary, at a low rate.")
@click.option("--resume", metavar="RUN", help="Go on with a run that stopped; it knows its text and settings.")
@click.option("--quiet", is_flag=True, help="Print nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per event on standard output.")
@debug_option
def train(
    *,
    data: tuple[str, ...],
    preset: str | None,
    config_file: str | None,
    overrides: tuple[str, ...],
    run_dir: str | None,
    max_epochs: float | None,
    max_steps: int | None,
    max_minutes: float | None,
    batch_size: int | None,
    learning_rate: float | None,
    device: str | None,
    seed: int | None,
    start: str | None,
    resume: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train a model on DATA, from scratch or from a checkpoint, or go on with a run.

    DATA is one or more files, a folder, - for standard input, the name of a built-in corpus (tiny-tales, arithmetic,
    python-manual, python-stdlib or tiny-shakespeare), or a dataset on the Hugging Face Hub:
    hub:user/dataset[:split][:column].

    Ctrl-C saves and stops; --resume goes on from there.
    """
    options = {
        "max_epochs": max_epochs,
        "max_steps": max_steps,
        "max_minutes": max_minutes,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "device": device,
        "seed": seed,
    }
    training: dict[str, object] = {name: value for name, value in options.items() if value is not None}
    if resume is not None:
        if data or start is not None or preset is not None or config_file is not None or run_dir is not None:
            raise ConfigError("--resume goes on with the run's own text and settings: leave DATA and the others out.")
        run, config = _resumed(resume, overrides, training)
        _run(config, None, run, quiet, as_json)
        return
    if start is not None:
        training["from_checkpoint"] = str(find_checkpoint(start))
    values: dict[str, dict[str, object]] = {"training": training}
    if data:
        values["data"] = {"source": data}
    config = load_config(preset=preset, file=config_file, overrides=overrides, values=values)
    if "source" not in config.data.model_fields_set:
        raise click.UsageError("Missing argument 'DATA...'", click.get_current_context())

    try:
        initial = None
        if config.training.from_checkpoint is not None:
            # Imported here: it needs torch.
            from fundamentallm.training.further import further_config, starting_point

            initial = starting_point(config.training.from_checkpoint)
            config = further_config(initial, preset=preset, file=config_file, overrides=overrides, values=values)
        _train_anew(config, run_dir, initial, quiet=quiet, as_json=as_json)
    except FundamentaLLMError as error:
        if run_dir is not None:
            _note_failure(run_dir, str(error))
        raise


def _train_anew(config: Config, run_dir: str | None, initial: Checkpoint | None, *, quiet: bool, as_json: bool) -> None:
    # Imported here: both need numpy, and a wrong option should be answered before it is loaded.
    from fundamentallm.data.corpus import open_corpus
    from fundamentallm.runs.run_directory import DEFAULT_RUNS_DIRECTORY, RunDirectory

    def say_once(what: str, share: float) -> None:
        if share == 0.0 and not quiet:
            click.echo(what, err=True)

    corpus = open_corpus(config.data.source, progress=say_once)
    command = ["fundamentallm", *sys.argv[1:]]
    if run_dir is not None:
        run = RunDirectory.create_at(run_dir, config=config, command=command)
        _run(config, corpus, run, quiet, as_json, initial)
        return
    run = RunDirectory.create(DEFAULT_RUNS_DIRECTORY, corpus.name, config=config, command=command)
    try:
        _run(config, corpus, run, quiet, as_json, initial)
    except BaseException:
        # A run that never learned anything would only clutter the list. One whose directory was chosen stays, since
        # whoever chose it looks there for what happened.
        if not run.has_checkpoint:
            shutil.rmtree(run.path, ignore_errors=True)
        raise


def _note_failure(run_dir: str, sentence: str) -> None:
    """Let the run that somebody made for this training say why it never started."""
    # Imported here: it needs psutil.
    from fundamentallm.runs.run_directory import RunDirectory, RunStatus

    run = RunDirectory(run_dir)
    if run.exists and not run.was_started:
        run.write_status(RunStatus("failed", message=sentence))


def _resumed(name: str, overrides: tuple[str, ...], training: dict[str, object]) -> tuple[RunDirectory, Config]:
    """The run called ``name``, and its settings with changes to the section ``training``."""
    # Imported here: it needs psutil.
    from fundamentallm.runs.run_directory import RunDirectory

    run = RunDirectory.open(find_checkpoint(name))
    config = load_config(file=run.config_path, overrides=overrides, values={"training": training}, environment=False)
    return run, config


def _run(
    config: Config,
    corpus: Corpus | None,
    run: RunDirectory,
    quiet: bool,
    as_json: bool,
    initial: Checkpoint | None = None,
) -> None:
    """Train in ``run``, from the start on ``corpus`` or, without one, from the last checkpoint."""
    # Imported here: torch takes seconds.
    from fundamentallm.cli.console import display, json_line
    from fundamentallm.training.session import run_training

    keep_freed_memory()
    path = shlex.quote(str(run.path))
    try:
        with closing(display(quiet=quiet, as_json=as_json)) as shown:
            run_training(config, corpus, run, [shown], resume=corpus is None, initial=initial)
    except KeyboardInterrupt:  # the second one: no time was left to save
        if run.has_checkpoint:
            warn(f"Interrupted: fundamentallm train --resume {path} goes on from the last checkpoint.")
        raise
    status, evaluation = run.status(), run.evaluation()
    if as_json:
        finished = {"event": "finished", "run": run.path, "state": status.state, "evaluation": evaluation}
        write(json_line(finished) + "\n")
    elif not quiet:
        if evaluation is not None:
            write_table(evaluation_table(evaluation, "On the held-out part"))
        write(f"The run is in {run.path}\n")
        if status.state == "stopped":
            write(f"To go on:         fundamentallm train --resume {path}\n")
        write(f"To let it write:  fundamentallm generate {path}\n")


# Parameters of glibc's mallopt(3): what may lie free at the end of the heap, how much it grows by, and from which size
# on a block is a mapping of its own, which is never kept (32 MB is the most that can be set).
_KEEPING = {-1: 2**31 - 1, -2: 2**26, -3: 2**25}


def keep_freed_memory() -> None:
    """Let this process reuse the memory that it frees instead of handing it back to the system.

    For a process that does nothing but train. A training step asks for the same tens of megabytes again and again, and
    every page that comes anew from the system is cleared first: 34,000 page faults a step of six layers of 256 in bf16
    became a hundred, 623 ms a step 595. Where the C library is not glibc, nothing happens.
    """
    import ctypes  # here, so that --help does not wait for it
    import platform

    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    for parameter, value in _KEEPING.items():
        library.mallopt(parameter, value)
