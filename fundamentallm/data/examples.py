"""Built-in texts. None is stored here: they are generated, found in the Python installation, or downloaded once."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import random
import sys
import sysconfig
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fundamentallm.data.tiny_tales import tiny_tales
from fundamentallm.errors import CorpusError

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_BYTES = 1_115_394
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

# Enough code for a model that trains for minutes, and read in a fraction of a second.
_STDLIB_CHARACTERS = 8_000_000


@dataclass(frozen=True)
class ExampleCorpus:
    """A built-in text.

    Attributes:
        name: As a user types it.
        title: As a user reads it.
        description: One sentence on what it is.
        load: Makes the text, whole or in pieces; may raise CorpusError.
    """

    name: str
    title: str
    description: str
    load: Callable[[], str | Iterator[str]]


def arithmetic(lines: int = 60_000, seed: int = 1) -> str:
    """Sums such as ``37+58=95``, one a line, with some differences and products among them."""
    draw = random.Random(f"arithmetic {seed}")
    written = []
    for _ in range(lines):
        a, b = int(draw.random() * 100), int(draw.random() * 100)
        kind = draw.random()
        if kind < 0.7:
            written.append(f"{a}+{b}={a + b}\n")
        elif kind < 0.9:
            a, b = max(a, b), min(a, b)
            written.append(f"{a}-{b}={a - b}\n")
        else:
            a, b = a % 10, b % 10
            written.append(f"{a}*{b}={a * b}\n")
    return "".join(written)


def python_manual() -> str:
    """The language reference as ``help()`` shows it, which every CPython brings along."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise CorpusError("This Python came without its manual: choose another text.") from None
    return "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"


def python_stdlib(characters: int = _STDLIB_CHARACTERS) -> Iterator[str]:
    """The source of the standard library, one file after another, in the order of their names."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3", "pydoc_data"}
    found = 0
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - skipped)
        for name in sorted(files):
            if not name.endswith(".py"):
                continue
            try:
                source = (Path(folder) / name).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue  # a few files are in another encoding on purpose
            found += len(source)
            if found > characters:
                return
            yield source.rstrip() + "\n\n\n"
    if not found:
        raise CorpusError(f"Python {sys.version_info.major} came without its source files: choose another text.")


def tiny_shakespeare() -> str:
    """A million characters of Shakespeare's plays, downloaded once and checked against a known SHA-256."""
    data: bytes
    path = cache_directory() / "tiny-shakespeare.txt"
    advice = f"choose another text, or save {SHAKESPEARE_URL} as {str(path)!r}."
    with contextlib.suppress(OSError):  # not there yet
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == SHAKESPEARE_SHA256:
            return data.decode("utf-8")
    try:
        with urllib.request.urlopen(SHAKESPEARE_URL, timeout=10) as response:
            data = response.read(SHAKESPEARE_BYTES + 1)
    except (OSError, http.client.HTTPException):
        raise CorpusError(f"Tiny Shakespeare cannot be downloaded, perhaps this machine is offline: {advice}") from None
    if hashlib.sha256(data).hexdigest() != SHAKESPEARE_SHA256:
        raise CorpusError(f"What was downloaded is not Tiny Shakespeare (its SHA-256 differs): {advice}")
    # A full or read-only disk only means downloading it again next time.
    with contextlib.suppress(OSError):
        _store(path, data)
    return data.decode("utf-8")


def cache_directory() -> Path:
    """Where downloads are kept: ``FUNDAMENTALLM_CACHE``, or the place that the operating system has for such things."""
    chosen = os.environ.get("FUNDAMENTALLM_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fundamentallm"


def _store(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)


_TEXTS = (
    ExampleCorpus(
        "tiny-tales",
        "Tiny Tales",
        "Short stories for children, made up by a grammar; a small model writes readable ones after half a minute.",
        # Kept: a page asks for the default text again and again.
        cache(tiny_tales),
    ),
    ExampleCorpus(
        "arithmetic",
        "Arithmetic",
        "Sums, differences and products of small numbers, one a line; a model can be seen learning to carry.",
        arithmetic,
    ),
    ExampleCorpus(
        "python-manual",
        "Python manual",
        "The reference manual of the Python language, technical English with bits of code.",
        python_manual,
    ),
    ExampleCorpus(
        "python-stdlib",
        "Python standard library",
        "Eight million characters of Python code, the source of the standard library on this machine.",
        python_stdlib,
    ),
    ExampleCorpus(
        "tiny-shakespeare",
        "Tiny Shakespeare",
        "A million characters of Shakespeare's plays, the classic of small language models; downloaded once.",
        tiny_shakespeare,
    ),
)
BUILT_IN: dict[str, ExampleCorpus] = {text.name: text for text in _TEXTS}
