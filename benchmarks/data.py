"""Text: how fast it becomes tokens, and what preparing a huge one and starting to train on it takes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.measuring import (
    Child,
    Column,
    Report,
    alternate,
    corpus_file,
    fundamentallm_command,
    medians,
    repeated,
    run_child,
)
from fundamentallm.config import DataConfig
from fundamentallm.data.tokenizers import BPETokenizer, CharacterTokenizer

_MEGABYTE = 1_000_000
Tokens = npt.NDArray[np.unsignedinteger]

# What people write instead, each as a program of its own: text file in, file of tokens out.
_WITH_A_DICT = """
import sys
import numpy as np
text = open(sys.argv[1], encoding="utf-8").read()
cut = int(len(text) * 0.9)
number_of = {character: number for number, character in enumerate(sorted(set(text[:cut])))}
np.array([number_of.get(character, 0) for character in text], dtype=np.uint16).tofile(sys.argv[2])
"""
_WITH_TOKENIZERS = """
import sys
import numpy as np
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[3])
with open(sys.argv[1], encoding="utf-8") as text, open(sys.argv[2], "wb") as out:
    while lines := text.readlines(1 << 20):
        for encoding in tokenizer.encode_batch_fast(lines, add_special_tokens=False):
            out.write(np.array(encoding.ids, dtype=np.uint16).tobytes())
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", metavar="FILE", help="a text file instead of Tiny Shakespeare")
    parser.add_argument("--megabytes", type=float, default=1000.0, help="size of the huge text (default: 1000)")
    parser.add_argument("--peer-megabytes", type=float, default=20.0, help="what the others prepare (default: 20)")
    parser.add_argument("--tokenizers", nargs="+", default=["character", "bpe"], choices=["character", "bpe"])
    parser.add_argument("--vocab-size", type=int, default=1024, help="of byte pair encoding (default: 1024)")
    parser.add_argument("--steps", type=int, default=20, help="training steps on the huge text (default: 20)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of every measurement in a round (default: 1)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="more settings")


def run(options: argparse.Namespace, directory: Path) -> Report:
    report = Report("data", vars(options))
    corpus = corpus_file(options.corpus, directory, report)
    text = corpus.read_text(encoding="utf-8")
    _measure_tokenizers(report, text, options)
    _measure_preparing(report, text, options, directory)
    return report


def _measure_tokenizers(report: Report, text: str, options: argparse.Namespace) -> None:
    table = report.table(
        f"Text to tokens, {len(text) / _MEGABYTE:.1f} million characters",
        Column("what", "vocabulary"),
        Column("who", "program"),
        Column("speed", "million characters/s", ",.1f"),
        Column("ratio", "ours over it", ",.1f"),
    )
    config = DataConfig(vocab_size=options.vocab_size)
    beyond_ascii = text.replace("e", "é")
    for what, contestants in (
        ("characters, ASCII", _character_encoders(text, config)),
        ("characters, others too", _character_encoders(beyond_ascii, config)),
        (f"byte pairs, {options.vocab_size}", _byte_pair_encoders(text, config)),
    ):
        measured = {name: repeated(encode, at_least=options.seconds) for name, encode in contestants.items()}
        samples = alternate(measured, options.rounds)
        report.keep(samples, prefix=f"{what}: ")
        seconds = medians(samples)
        for name, value in seconds.items():
            ours = name == "fundamentallm"
            speed = len(text) / value / _MEGABYTE
            table.add(what=what, who=name, speed=speed, ratio=None if ours else value / seconds["fundamentallm"])


def _character_encoders(text: str, config: DataConfig) -> dict[str, Callable[[], Tokens]]:
    from tokenizers import Tokenizer  # heavy: only for this benchmark

    ours = CharacterTokenizer.train([text], config)
    library = Tokenizer.from_str(ours.to_json())
    number_of = {character: number for number, character in enumerate(sorted(set(text)))}
    return {
        "fundamentallm": lambda: ours.encode(text),
        "tokenizers": lambda: _library_tokens(library, text),
        "Python dict": lambda: np.array([number_of[character] for character in text], dtype=np.uint16),
    }


def _byte_pair_encoders(text: str, config: DataConfig) -> dict[str, Callable[[], Tokens]]:
    from tokenizers import Tokenizer

    ours = BPETokenizer.train([text], config)
    library = Tokenizer.from_str(ours.to_json())
    return {"fundamentallm": lambda: ours.encode(text), "tokenizers": lambda: _library_tokens(library, text)}


def _library_tokens(tokenizer: object, text: str) -> Tokens:
    """The library at its fastest: line by line as one batch, over all cores, without offsets."""
    from tokenizers import Tokenizer

    assert isinstance(tokenizer, Tokenizer)
    encodings = tokenizer.encode_batch_fast(text.splitlines(keepends=True), add_special_tokens=False)
    return np.concatenate([np.array(encoding.ids, dtype=np.uint16) for encoding in encodings])


def _measure_preparing(report: Report, text: str, options: argparse.Namespace, directory: Path) -> None:
    table = report.table(
        "Preparing a text and starting to train on it, each as a process of its own",
        Column("what", "what"),
        Column("size", "text, MB", ",.0f"),
        Column("preparing", "preparing, s", ",.1f"),
        Column("speed", "MB/s", ",.1f"),
        Column("start", "start to first step, s", ",.1f"),
        Column("peak", "peak memory, MB", ",.0f"),
        Column("above", "above the idle engine, MB", ",.0f"),
        Column("own", "of the peak without mapped files, MB", ",.0f"),
    )

    idle = run_child([sys.executable, "-c", "import fundamentallm.training.session"], directory)
    table.add(what="the engine, idle", peak=_mb(idle.peak_bytes), own=_mb(idle.peak_own_bytes))

    def add(what: str, size: int, child: Child, preparing: float, start: float | None = None) -> None:
        table.add(
            what=what,
            size=size / _MEGABYTE,
            preparing=preparing,
            speed=size / _MEGABYTE / preparing,
            start=start,
            peak=_mb(child.peak_bytes),
            above=None if start is None else _mb(child.peak_bytes - idle.peak_bytes),
            own=_mb(child.peak_own_bytes),
        )

    huge = directory / "huge.txt"
    for tokenizer in options.tokenizers:
        # The same training on a small text shows what of the memory is the model's and the optimizer's.
        for megabytes in (1.0, options.megabytes):
            size = write_repeated(text, int(megabytes * _MEGABYTE), huge)
            place = directory / f"{tokenizer}-{megabytes:g}"
            place.mkdir()
            command = fundamentallm_command("train", huge, "--preset", "small", "--max-steps", str(options.steps))
            command += ["--json", "--set", f"data.tokenizer={tokenizer}", "--run-dir", place / "run"]
            command += ["--set", "training.log_every_n_steps=1"]
            command += [part for override in options.set for part in ("--set", override)]
            # The measurement of the whole held-out part at the end reads a tenth of the text: not what is asked here.
            child = run_child(command, place, until=lambda line: '"training_ended"' in line)
            working = [seconds for seconds, event in child.events() if event["event"] == "working"]
            first_step = next(
                seconds
                for seconds, event in child.events()
                if event["event"] == "step_logged" and event["metrics"]["step"] > 0
            )
            add(f"fundamentallm train, {tokenizer}", size, child, working[-1] - working[0], first_step)

    size = write_repeated(text, int(options.peer_megabytes * _MEGABYTE), huge)
    saved = directory / "tokenizer.json"
    saved.write_text(BPETokenizer.train([text], DataConfig(vocab_size=options.vocab_size)).to_json(), encoding="utf-8")
    for what, program in (("a Python dict", _WITH_A_DICT), ("tokenizers, byte pairs", _WITH_TOKENIZERS)):
        child = run_child([sys.executable, "-c", program, huge, directory / "out.bin", saved], directory)
        add(f"{what}, preparing only", size, child, child.seconds)


def _mb(count: int) -> float:
    return count / _MEGABYTE


def write_repeated(text: str, size: int, path: Path) -> int:
    """Write the text again and again until the file has ``size`` bytes or a little less; returns its size."""
    encoded = text.encode("utf-8")
    with path.open("wb") as file:
        for _ in range(size // len(encoded)):
            file.write(encoded)
        rest = encoded[: size % len(encoded)].decode("utf-8", "ignore").encode("utf-8")
        file.write(rest)
    return path.stat().st_size
