"""Writing files so that a reader, or a kill at any instant, never meets half of one."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

TEMPORARY_MARK = ".tmp-"


def temporary_name(path: Path) -> Path:
    """A hidden name beside ``path``, unique to this process, to write to before renaming."""
    return path.with_name(f".{path.name}{TEMPORARY_MARK}{os.getpid()}")


def remove_leftovers(directory: Path) -> None:
    """Delete what processes that were killed while writing left in ``directory``."""
    for leftover in directory.glob(f".*{TEMPORARY_MARK}*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace the content of ``path`` in one step.

    Where there is no room for a second file, the old one is overwritten in place: a full disk must still be able to
    say that it is full.
    """
    temporary = temporary_name(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        if not path.is_file():
            raise
        with path.open("r+", encoding="utf-8") as file:
            file.write(text)
            file.truncate()


def flush_to_disk(directory: Path) -> None:
    """Make every file of ``directory``, and the directory itself, survive a power cut."""
    for file in directory.iterdir():
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    _flush_directory(directory)


def rename_into_place(temporary: Path, path: Path) -> None:
    """Rename and make the new name survive a power cut."""
    os.replace(temporary, path)
    _flush_directory(path.parent)


def point_to(link: Path, target: Path) -> None:
    """Let ``link`` name its sibling directory ``target``: a relative symlink, or a copy where there are none."""
    temporary = temporary_name(link)
    remove_tree(temporary)
    try:
        temporary.symlink_to(target.name, target_is_directory=True)
    except OSError:
        shutil.copytree(target, temporary)
    if link.is_dir() and not link.is_symlink():
        remove_tree(link)  # a copy made earlier: a directory cannot be replaced by rename
    os.replace(temporary, link)


def remove_tree(path: Path) -> None:
    """Delete a file, a symlink (not what it points to) or a directory; a missing one is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def json_line(row: Mapping[str, object]) -> str:
    """One JSON object without line breaks; numbers that JSON lacks (NaN, infinity) become null."""
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(plain, ensure_ascii=False, allow_nan=False)


def append_line(path: Path, line: str) -> None:
    """Append one line; if a killed writer left half a line, it is closed first so that readers can skip it."""
    with path.open("ab+") as file:
        torn = file.tell() > 0 and _last_byte(file) != b"\n"
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")


def complete_lines(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects of all complete lines from byte ``offset`` on, and the offset to continue from.

    Lines that are no JSON object (torn by a kill) are skipped. A missing file has no lines.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], 0
    data = data[: data.rfind(b"\n") + 1]
    rows = []
    for line in data.splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows, offset + len(data)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in ``path``; None when it is missing or no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[bool]:
    """Hold the lock file ``path`` for the duration; yields False when another process or thread holds it.

    The operating system releases it when the holder dies, so no stale lock can remain.
    """
    with path.open("a+b") as file:
        yield _try_lock(file)


def _try_lock(file: IO[bytes]) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _last_byte(file: IO[bytes]) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def _flush_directory(directory: Path) -> None:
    # Windows has no way to open a directory for this, and needs none.
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
