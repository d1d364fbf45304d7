"""``fundamentallm evaluate``, ``info``, ``runs`` and ``playground``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from fundamentallm.cli.commands import debug_option
from fundamentallm.cli.output import (
    duration,
    evaluation_table,
    find_checkpoint,
    load_model,
    number,
    share_bar,
    table,
    write,
    write_table,
)
from fundamentallm.errors import RunError


@click.command(epilog="Example: fundamentallm evaluate runs/2026-01-31_120000-tiny-tales other.txt --json")
@click.argument("checkpoint")
@click.argument("text_file", required=False)
@click.option(
    "--stride", type=int, help="Tokens between two windows; half the context when not given, at most the context."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the JSON object to this file.")
@debug_option
def evaluate(checkpoint: str, text_file: str | None, stride: int | None, as_json: bool, output: Path | None) -> None:
    """Measure how well the model in CHECKPOINT predicts TEXT_FILE.

    Without a file the text is the part of the run's corpus that was held out. Every token of the whole text is scored
    exactly once, with at least half a context before it. A stride as long as the context gives the plain windowed loss.
    """
    # Imported here: reading a corpus needs numpy.
    from fundamentallm.data.corpus import open_corpus

    text = None if text_file is None else open_corpus([text_file]).read()
    model = load_model(checkpoint)
    with share_bar("Evaluating") as progress:
        evaluation = model.evaluate(text, stride=stride, progress=progress)
    line = json.dumps(evaluation.as_dict())
    if output is not None:
        output.write_text(line + "\n", encoding="utf-8")
    if as_json:
        write(line + "\n")
    else:
        write_table(evaluation_table(evaluation.as_dict(), text_file or "held-out part"))


@click.command(epilog="Example: fundamentallm info runs/2026-01-31_120000-tiny-tales")
@click.argument("checkpoint")
@debug_option
def info(checkpoint: str) -> None:
    """Show what CHECKPOINT is: its network, its vocabulary, and how it was trained."""
    # Imported here: both need torch.
    from fundamentallm.checkpoint import load_checkpoint
    from fundamentallm.hub import download
    from fundamentallm.models.interchange import family
    from fundamentallm.runs.run_directory import RunDirectory

    path = download.find_checkpoint(find_checkpoint(checkpoint))
    loaded = load_checkpoint(path)
    shape, data, training = loaded.config.model, loaded.config.data, loaded.config.training
    ends = [
        f"{value:g} {unit}"
        for value, unit in (
            (training.max_steps, "steps"),
            (training.max_epochs, "epochs"),
            (training.max_minutes, "minutes"),
        )
        if value is not None
    ]
    rows = [
        ("Checkpoint", str(loaded.path or path)),
        ("Architecture", shape.architecture),
        ("Parameters", number(loaded.model.num_parameters())),
        ("Layers, width, heads", f"{shape.num_layers}, {shape.d_model}, {shape.num_heads}"),
        ("Context", f"{shape.sequence_length} tokens"),
        ("Tokenizer", f"{data.tokenizer}, {number(loaded.tokenizer.vocab_size)} tokens"),
        ("In transformers", family(shape).replace("fundamentallm", "no, a shape of ours alone")),
    ]
    if data.source:  # a model made elsewhere does not tell
        rows += [
            ("Trained on", ", ".join(data.source)),
            ("Trained for", f"{number(loaded.step)} steps, of {' or '.join(ends)}"),
            ("Optimizer", f"{training.optimizer}, {training.lr_scheduler} schedule, batches of {training.batch_size}"),
        ]
    run = RunDirectory(path)
    if run.exists:
        status = run.status()
        rows.append(("Run", f"{status.state}{f': {status.message}' if status.message else ''}"))
        if status.best_val_loss is not None:
            rows.append(("Best validation loss", f"{status.best_val_loss:.4f}"))
    write_table(table("", ["", ""], rows, header=False))
    measured = run.evaluation() if run.exists else None
    if measured is not None:
        write_table(evaluation_table(measured, "held-out part"))


@click.command(epilog="Example: fundamentallm runs")
@click.argument("directory", required=False, metavar="[DIR]")
@debug_option
def runs(directory: str | None) -> None:
    """List the runs in DIR (./runs when not given), newest first."""
    # Imported here: psutil, which tells the living from the dead, takes its time.
    from fundamentallm.runs.run_directory import DEFAULT_RUNS_DIRECTORY, list_runs

    if directory is not None and not Path(directory).is_dir():
        raise RunError(f"There is no directory {directory!r}: check the path.")
    parent = Path(directory) if directory is not None else DEFAULT_RUNS_DIRECTORY
    found = list_runs(parent)
    if not found:
        write(f"No runs in {str(parent)!r} yet: start one with `fundamentallm train tiny-tales`.\n")
        return
    rows = []
    for run in found:
        status = run.status()
        best = "" if status.best_val_loss is None else f"{status.best_val_loss:.4f}"
        rows.append((run.id, status.state, number(status.step), best, duration(status.elapsed_seconds), status.message))
    columns = ["Run", "State", "Step", "Best validation loss", "Time", ""]
    write_table(table(f"Runs in {parent}", columns, rows, right_aligned=(2, 3, 4)))


@click.command(epilog="Example: fundamentallm playground --port 8000")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for everyone.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port; the first free one from 7860 when not given.")
@click.option("--runs-dir", type=click.Path(file_okay=False, path_type=Path), help="Where runs are kept; ./runs.")
@click.option("--public", is_flag=True, help="Let visitors see only their own runs, within limits.")
@debug_option
def playground(host: str, port: int | None, runs_dir: Path | None, public: bool) -> None:
    """Open the playground: a page to train, compare and measure models in."""
    # Imported here: gradio takes seconds.
    from fundamentallm.playground.page import launch

    # Without --public the playground decides itself: a Space is public, a computer at home is not.
    launch(host, port, runs_dir, True if public else None)
