"""What every benchmark shares: the machine, measurements in alternation, child processes, tables and their JSON."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from fundamentallm.data.corpus import open_corpus
from fundamentallm.devices import describe_device, resolve_precision
from fundamentallm.errors import CorpusError, FundamentaLLMError

REPOSITORY = Path(__file__).resolve().parents[1]
_POLL_SECONDS = 0.02


class BenchmarkError(FundamentaLLMError):
    """Something a benchmark needs is missing or failed; one sentence."""


# Tables and their JSON


@dataclass(frozen=True)
class Column:
    """A column: the key of its values, its title with the unit, and how numbers are printed (a format spec)."""

    key: str
    title: str
    form: str = ""


@dataclass
class Table:
    title: str
    columns: Sequence[Column]
    rows: list[dict[str, object]] = field(default_factory=list)

    def add(self, **values: object) -> None:
        self.rows.append(values)

    def markdown(self) -> str:
        """The table as Markdown that is readable as it stands; a value that is missing is a dash."""
        titles = [column.title for column in self.columns]
        cells = [[_shown(row.get(column.key), column.form) for column in self.columns] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
        numeric = [bool(column.form) for column in self.columns]
        lines = [[title.ljust(width) for title, width in zip(titles, widths, strict=True)]]
        lines.append(
            ["-" * (width - 1) + ":" if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
        )
        for row in cells:
            pairs = zip(row, widths, numeric, strict=True)
            lines.append([cell.rjust(width) if right else cell.ljust(width) for cell, width, right in pairs])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class Report:
    """What a benchmark found: tables, sentences about what could not be run, and the machine it ran on."""

    def __init__(self, name: str, settings: Mapping[str, object], device: torch.device | None = None) -> None:
        self.name = name
        self.settings = dict(settings)
        self.machine = describe_machine(device or torch.device("cpu"))
        self.tables: list[Table] = []
        self.notes: list[str] = []
        self.samples: dict[str, list[float]] = {}
        """Every single measurement behind the medians."""
        load, cores = self.machine["load_at_start"], self.machine["cores"]
        if isinstance(load, float) and isinstance(cores, int) and load > 0.5 * cores:
            self.note(f"The machine was busy (load {load:.1f} on {cores} cores), so these numbers say little.")

    def table(self, title: str, *columns: Column) -> Table:
        self.tables.append(Table(title, columns))
        return self.tables[-1]

    def note(self, sentence: str) -> None:
        """Keep a sentence, once, and say it at once: what follows may take a while."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            print(sentence, file=sys.stderr)

    def keep(self, samples: Mapping[str, Sequence[float]], *, prefix: str = "") -> None:
        for name, values in samples.items():
            self.samples.setdefault(f"{prefix}{name}", []).extend(values)

    def machine_line(self) -> str:
        found = self.machine
        return (
            f"{found['processor']}, {found['cores']} cores, {found['memory_gb']} GB; {found['device']}; "
            f"torch {found['torch']}, Python {found['python']}; {found['date']}"
        )

    def text(self) -> str:
        parts = [f"**{table.title}** ({self.machine_line()})\n\n{table.markdown()}\n" for table in self.tables]
        return "\n".join([*parts, *self.notes])

    def as_dict(self) -> dict[str, object]:
        return {
            "benchmark": self.name,
            "machine": self.machine,
            "settings": self.settings,
            "notes": self.notes,
            "tables": [
                {"title": table.title, "columns": {c.key: c.title for c in table.columns}, "rows": table.rows}
                for table in self.tables
            ],
            "samples": self.samples,
        }

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_dict(), indent=1, default=str) + "\n", encoding="utf-8")


def _shown(value: object, form: str) -> str:
    if value is None:
        return "–"
    return format(value, form) if form and isinstance(value, int | float) else str(value)


def describe_machine(device: torch.device) -> dict[str, object]:
    """Processor, cores, memory, versions, and how busy the machine is before anything is measured."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return {
        "processor": _processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count() or 1,
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "device": describe_device(device, resolve_precision("auto", device)),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "load_at_start": round(psutil.getloadavg()[0], 2),
    }


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


# Time


def alternate(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Let everyone measure once per round, so that a machine that slows down slows all of them alike.

    The order turns round with every round: nobody always runs on the caches or the heat that another left.
    """
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds):
        for name in list(contestants)[:: -1 if round_ % 2 else 1]:
            samples[name].append(contestants[name]())
    return samples


def medians(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in samples.items() if values}


def repeated(
    function: Callable[[], object], device: torch.device | None = None, *, at_least: float
) -> Callable[[], float]:
    """A measurement of the seconds per call, over so many calls that it takes ``at_least`` seconds.

    The function is called twice now: to warm up, and to find out how many calls that is.
    """
    function()
    calls = max(1, round(at_least / max(1e-9, _seconds(function, 1, device))))
    return lambda: _seconds(function, calls, device)


def _seconds(function: Callable[[], object], calls: int, device: torch.device | None) -> float:
    synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize(device)
    return (time.perf_counter() - started) / calls


def synchronize(device: torch.device | None) -> None:
    """Wait until the device has done what it was given."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device is not None and device.type == "mps":
        torch.mps.synchronize()


def ratio(theirs: float | None, ours: float | None) -> float | None:
    return theirs / ours if theirs is not None and ours else None


# Child processes


@dataclass
class Child:
    """A process that has ended."""

    seconds: float
    exit_code: int
    lines: list[tuple[float, str]]
    """What it printed on standard output, each line with the seconds after the start at which it came."""
    errors: str
    peak_bytes: int
    """Most memory that was resident at a time, memory-mapped files included."""
    peak_own_bytes: int
    """Most memory at a time that was not backed by a file, as sampled."""

    def events(self) -> Iterator[tuple[float, dict[str, Any]]]:
        """The JSON objects among the lines."""
        for seconds, line in self.lines:
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    yield seconds, value


def run_child(
    command: Sequence[str | Path],
    directory: Path,
    *,
    until: Callable[[str], bool] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Child:
    """Run a command to its end, or kill it at the first line of its output for which ``until`` holds.

    Raises:
        BenchmarkError: It ended with an error.
    """
    with (directory / "errors.log").open("w+b") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=directory,
            env=child_environment() | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
        )
        memory = _MemoryWatch(process.pid)
        lines: list[tuple[float, str]] = []
        ended_by_us = False
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append((time.perf_counter() - started, line.rstrip("\n")))
                ended_by_us = until is not None and until(line)
                if ended_by_us:
                    break
            else:
                process.wait()
        finally:
            process.kill()
            process.stdout.close()
            exit_code = process.wait()
            seconds = time.perf_counter() - started
            memory.finish()
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace")
    if exit_code and not ended_by_us:
        reason = (said.strip() or "it said nothing").splitlines()[-1].rstrip(".")
        raise BenchmarkError(f"`{Path(command[0]).name} … {command[-1]}` ended with {exit_code}: {reason}.")
    return Child(seconds, exit_code, lines, said, memory.peak_bytes, memory.peak_own_bytes)


def fundamentallm_command(*arguments: str | Path) -> list[str | Path]:
    return [sys.executable, "-P", "-m", "fundamentallm", *arguments]


def child_environment() -> dict[str, str]:
    """Ours, such that a child finds this package wherever it runs and prints without delay."""
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}


class _MemoryWatch:
    """Looks at a process's memory again and again until it is gone."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self.peak_own_bytes = 0
        self._finished: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._watch, args=(pid,), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        self._finished.put(None)
        self._thread.join()

    def _watch(self, pid: int) -> None:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            while True:
                memory = process.memory_info()
                self.peak_bytes = max(self.peak_bytes, memory.rss)
                # Linux tells how much is shared with files; elsewhere all of it counts.
                self.peak_own_bytes = max(self.peak_own_bytes, memory.rss - getattr(memory, "shared", 0))
                with contextlib.suppress(queue.Empty):
                    self._finished.get(timeout=_POLL_SECONDS)
                    return


# Text


def corpus_file(given: str | None, directory: Path, report: Report) -> Path:
    """The text a benchmark runs on, as a file: the given one, Tiny Shakespeare, or else Tiny Tales with a note."""
    source = given or "tiny-shakespeare"
    try:
        corpus = open_corpus([source])
        name, text = corpus.name, corpus.read()
    except CorpusError as error:
        report.note(f"{error} This ran on Tiny Tales instead: losses cannot be compared with those on {source}.")
        name, text = "tiny-tales", open_corpus(["tiny-tales"]).read()
    report.settings["corpus"] = name
    path = directory / "corpus.txt"
    path.write_text(text, encoding="utf-8", newline="\n")
    return path
