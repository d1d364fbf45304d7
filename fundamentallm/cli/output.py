"""What the command line shows: text and tables.

What was asked for goes to standard output, everything about getting there to standard error. Text of a model or a
corpus is never read as markup, and at a terminal its control characters are made visible instead of obeyed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from fundamentallm.language_model import LanguageModel

# Escape sequences in a text could move the cursor or worse: shown as the Unicode pictures of control characters.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_VISIBLE |= {code: 0xFFFD for code in range(0x80, 0xA0)}
_PIPE_WIDTH = 160  # of a table that no terminal limits

_MEANINGS = {
    "loss": "nats per token: how surprised the model is",
    "perplexity": "among how many equally likely tokens it hesitates",
    "bits_per_character": "comparable between tokenizers",
    "bits_per_byte": "comparable with a compressor",
    "accuracy": "share of tokens that were its first guess",
    "tokens": "scored, each exactly once",
    "characters": "of the text",
    "bytes": "of the text in UTF-8",
    "unknown_characters": "missing from the vocabulary",
}


def write(text: str) -> None:
    """Print to standard output at once, as it is."""
    sys.stdout.write(text)
    sys.stdout.flush()


def warn(sentence: str) -> None:
    """Print a line to standard error."""
    click.secho(printable(sentence), fg="yellow", err=True)


def printable(text: str, *, always: bool = False) -> str:
    """The text as it may be sent to a terminal; unchanged when the output goes elsewhere, unless ``always``."""
    return text.translate(_VISIBLE) if always or sys.stdout.isatty() else text


def output_console() -> Console:
    """Standard output; a table in a pipe is wide enough for its contents."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False, markup=False)


def message_console() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False, markup=False)


def find_checkpoint(name: str) -> Path:
    """The path a user means: as given, or the name of a run in ./runs."""
    # Imported here: the run directory needs psutil.
    from fundamentallm.runs.run_directory import DEFAULT_RUNS_DIRECTORY

    path, by_name = Path(name), DEFAULT_RUNS_DIRECTORY / name
    return by_name if path.name == name and not path.exists() and by_name.is_dir() else path


def load_model(name: str) -> LanguageModel:
    """The model in a checkpoint, a run, or the run of that name in ./runs."""
    # Imported here: torch takes seconds.
    from fundamentallm.language_model import load

    return load(find_checkpoint(name))


def number(value: int) -> str:
    """An integer with thousands separated."""
    return f"{value:,}"


def duration(seconds: float | None) -> str:
    """A time in words short enough for a table: ``42 s``, ``3 min 5 s``, ``2 h 10 min``."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right_aligned: Sequence[int] = (),
    header: bool = True,
) -> Table:
    """A table of plain text; the first column is never cut."""
    result = Table(
        title=Text(title) if title else None, title_justify="left", show_header=header, box=None, pad_edge=False
    )
    for index, column in enumerate(columns):
        justify = "right" if index in right_aligned else "left"
        result.add_column(column, justify=justify, overflow="fold", no_wrap=index == 0)  # type: ignore[arg-type]
    for row in rows:
        result.add_row(*(Text(printable(cell, always=True)) for cell in row))
    return result


def write_table(content: Table) -> None:
    """Print a table to standard output."""
    output_console().print(content)
    sys.stdout.flush()


def evaluation_table(evaluation: Mapping[str, object], title: str) -> Table:
    """The numbers of an evaluation, each with a line on what it means."""
    rows = []
    for name, meaning in _MEANINGS.items():
        value = evaluation.get(name)
        if isinstance(value, int):
            rows.append((name.replace("_", " "), number(value), meaning))
        elif isinstance(value, float):
            shown = f"{value:.1%}" if name == "accuracy" else f"{value:.4f}" if value < 1000 else f"{value:,.0f}"
            rows.append((name.replace("_", " "), shown, meaning))
    return table(title, ["", "", ""], rows, right_aligned=(1,), header=False)


@contextmanager
def share_bar(label: str) -> Iterator[Callable[[float], None]]:
    """A progress bar on standard error for something of known extent; nothing where that is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    console = message_console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=1.0)
        yield lambda share: bar.update(task, completed=share)
