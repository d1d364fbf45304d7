"""Every benchmark runs from end to end with tiny settings. How fast anything is, is not asked here."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator

import pytest
import torch

from benchmarks import data, measuring, playground_overhead, throughput, time_to_loss
from benchmarks.__main__ import main
from benchmarks.measuring import BenchmarkError, Column, Report, Table, alternate, medians, ratio, repeated, run_child
from fundamentallm.config import Config
from fundamentallm.runs import RunDirectory


@pytest.fixture(autouse=True)
def _benchmarks_say_where_tensors_lie() -> Iterator[None]:
    with torch.device("cpu"):
        yield


TINY = {
    "model.num_layers": 1,
    "model.d_model": 16,
    "model.num_heads": 2,
    "model.sequence_length": 16,
    "training.batch_size": 4,
    "training.eval_tokens": 256,
}
TINY_SETTINGS = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]

# The interface of nanoGPT that the benchmarks use, with a bigram in place of its transformer.
NANOGPT_MODEL = """
import torch
from dataclasses import dataclass

@dataclass
class GPTConfig:
    block_size: int = 64
    vocab_size: int = 65
    n_layer: int = 1
    n_head: int = 1
    n_embd: int = 8
    dropout: float = 0.0
    bias: bool = True

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)
        print("number of parameters: few")
    def forward(self, idx, targets=None):
        logits = self.table(idx)
        if targets is None:
            return logits[:, [-1]], None
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.SGD(self.parameters(), lr=learning_rate)
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None):
        for _ in range(max_new_tokens):
            idx = torch.cat((idx, self(idx)[0][:, -1].argmax(-1, keepdim=True)), 1)
        return idx
"""
NANOGPT_TRAIN = """
import os, pickle, sys
import torch
from model import GPT, GPTConfig
assert "--max_iters=3" in sys.argv and "--eval_interval=3" in sys.argv, sys.argv
with open("data/shakespeare_char/meta.pkl", "rb") as file:
    vocabulary = pickle.load(file)["vocab_size"]
arguments = dict(n_layer=1, n_head=1, n_embd=8, block_size=64, bias=False, vocab_size=vocabulary, dropout=0.0)
model = GPT(GPTConfig(**arguments))
print("step 0: train loss 4.0000, val loss 4.5000")
print("step 3: train loss 2.0000, val loss 2.0000")
os.makedirs("out-shakespeare-char")
torch.save({"model": model.state_dict(), "model_args": arguments}, "out-shakespeare-char/ckpt.pt")
"""


@pytest.fixture
def nanogpt(tmp_path):
    directory = tmp_path / "nanoGPT"
    (directory / "config").mkdir(parents=True)
    (directory / "model.py").write_text(NANOGPT_MODEL)
    (directory / "train.py").write_text(NANOGPT_TRAIN)
    (directory / "configurator.py").write_text("")
    return directory


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("".join(f"The {i}th day was a fine day, and nobody said a word.\n" for i in range(400)))
    return path


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run a benchmark; its JSON, what it printed, and what it said on standard error."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def ran(name, *arguments):
        output = tmp_path / "results" / f"{name}.json"
        assert main([name, "--output", str(output), *map(str, arguments)]) == 0
        printed = capsys.readouterr()
        result = json.loads(output.read_text())
        assert result["benchmark"] == name
        assert result["machine"]["torch"] == torch.__version__
        for table in result["tables"]:
            assert table["rows"]
            assert f"**{table['title']}** ({result['machine']['processor']}" in printed.out
        return result, printed.out, printed.err

    return ran


def rows(result, table=0):
    return result["tables"][table]["rows"]


# The measuring module


def test_a_table_is_markdown_with_dashes_for_what_is_missing():
    table = Table("Speed", [Column("who", "program"), Column("speed", "tokens/s", ",.0f")])
    table.add(who="ours", speed=12345.6)
    table.add(who="theirs")
    assert table.markdown().splitlines() == [
        "| program | tokens/s |",
        "| ------- | -------: |",
        "| ours    |   12,346 |",
        "| theirs  |        – |",
    ]


def test_contestants_take_turns_and_the_order_turns_round():
    order = []
    contestants = {name: (lambda name=name: order.append(name) or float(len(order))) for name in "ab"}
    samples = alternate(contestants, 3)
    assert "".join(order) == "abbaab"
    assert samples == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}
    assert medians(samples) == {"a": 4.0, "b": 3.0}
    assert medians({"nobody": []}) == {}


def test_ratios_need_both_sides():
    assert ratio(6.0, 3.0) == 2.0
    assert ratio(None, 3.0) is None
    assert ratio(6.0, None) is None


def test_repeated_gives_seconds_per_call():
    calls = []
    measure = repeated(lambda: calls.append(0), at_least=0.001)
    before = len(calls)
    assert 0 < measure() < 0.001
    assert len(calls) > before + 1


def test_a_child_reports_lines_events_and_memory(tmp_path):
    program = "import json; x = bytearray(30_000_000); print('hello'); print(json.dumps({'event': 'end'}))"
    child = run_child([sys.executable, "-c", program], tmp_path)
    assert [line for _, line in child.lines] == ["hello", '{"event": "end"}']
    assert [event for _, event in child.events()] == [{"event": "end"}]
    assert 0 < child.lines[0][0] <= child.lines[1][0] <= child.seconds
    program = "import time; x = bytearray(b'1' * 30_000_000); time.sleep(0.5)"
    child = run_child([sys.executable, "-c", program], tmp_path)
    assert child.peak_bytes >= child.peak_own_bytes > 30_000_000


def test_a_child_is_ended_at_the_awaited_line(tmp_path):
    program = "import time; print('one'); print('two'); time.sleep(60)"
    child = run_child([sys.executable, "-c", program], tmp_path, until=lambda line: line.startswith("two"))
    assert child.lines[-1][1] == "two"
    assert child.seconds < 50


def test_a_failing_child_is_one_sentence(tmp_path):
    with pytest.raises(BenchmarkError, match=r"ended with 3: No way\.$"):
        run_child([sys.executable, "-c", "import sys; print('No way.', file=sys.stderr); sys.exit(3)"], tmp_path)


def test_a_missing_corpus_is_one_sentence_and_something_is_run(tmp_path, capsys):
    report = Report("any", {})
    path = measuring.corpus_file(str(tmp_path / "nothing.txt"), tmp_path, report)
    assert len(path.read_text()) > 100_000
    assert "nothing.txt" in report.notes[-1] and "Tiny Tales instead" in report.notes[-1]
    assert report.notes[-1] in capsys.readouterr().err


def test_a_busy_machine_is_mentioned(monkeypatch, capsys):
    monkeypatch.setattr(measuring.psutil, "getloadavg", lambda: (99.0, 0.0, 0.0))
    assert "busy (load 99.0" in Report("any", {}).notes[0]
    monkeypatch.setattr(measuring.psutil, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert not Report("any", {}).notes


def test_huge_texts_are_written_to_size(tmp_path):
    path = tmp_path / "huge.txt"
    assert data.write_repeated("añb\n", 22, path) == 21
    assert path.read_text(encoding="utf-8") == "añb\n" * 4 + "a"


def test_the_whole_loss_is_the_mean_over_every_token():
    torch.manual_seed(0)
    table = torch.randn(5, 5)
    tokens = torch.randint(5, (16 * 64 * 2 + 21,))
    expected = torch.nn.functional.cross_entropy(table[tokens[:-1]], tokens[1:])
    assert time_to_loss.whole_loss(lambda inputs: table[inputs], tokens.numpy(), 16) == pytest.approx(float(expected))


# The command line


def test_help_names_every_benchmark(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("time_to_loss", "throughput", "generation", "data", "start_up"))


def test_what_cannot_work_is_one_sentence(capsys, tmp_path):
    assert main(["throughput", "--shapes", "big", "--output", str(tmp_path / "x.json")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("'big' is no shape: write layers x width")
    assert main(["generation", "--presets", "tiny", "--output", str(tmp_path / "x.json")]) == 2
    assert "no preset named 'tiny'" in capsys.readouterr().err


# The benchmarks


def test_throughput(run, nanogpt, corpus):
    options = ["--corpus", corpus, "--rounds", 1, "--seconds", 0.01, "--shapes", "1x16x16x2", "1x16x32x1"]
    result, printed, _ = run("throughput", *options, "--nanogpt", nanogpt)
    assert [row["shape"] for row in rows(result)] == ["1 × 16 × 16 × 2", "1 × 16 × 32 × 1"]
    for row in rows(result):
        assert row["flops"] == pytest.approx(6 * row["parameters"] * row["tokens"] / 1e9)
        assert row["share"] == pytest.approx(row["flops"] / row["peak"])
        assert row["nanogpt_ratio"] == pytest.approx(row["tokens"] / row["nanogpt"])
        assert row["transformers_ratio"] == pytest.approx(row["tokens"] / row["transformers"])
    assert "times nanoGPT" in printed


def test_throughput_without_peers(run, tmp_path, corpus):
    options = ["--corpus", corpus, "--rounds", 1, "--seconds", 0.01, "--shapes", "1x16x16x2", "--no-transformers"]
    result, _, said = run("throughput", *options, "--nanogpt", tmp_path)
    assert f"'{tmp_path}' is no nanoGPT checkout (it has no model.py): ran without it." in said
    assert rows(result)[0]["nanogpt"] is None and rows(result)[0]["transformers"] is None


def test_shapes_keep_heads_of_64_where_they_can():
    model = throughput.shape_config("8x512x256x16", "fp32", torch.device("cpu")).model
    assert (model.num_layers, model.d_model, model.sequence_length, model.num_heads) == (8, 512, 256, 8)
    assert throughput.shape_config("4x128x64x12", "fp32", torch.device("cpu")).model.num_heads == 4


def test_generation(run, nanogpt):
    options = ["--presets", "small", "--batches", 1, 2, "--tokens", 3, "--rounds", 1, "--seconds", 0.01]
    result, _, _ = run("generation", *options, "--prompt", 4, "--nanogpt", nanogpt)
    assert [(row["batch"], row["who"]) for row in rows(result)] == [
        (batch, who) for batch in (1, 2) for who in ("fundamentallm", "transformers", "nanoGPT")
    ]
    assert all(row["prefill"] == pytest.approx(row["batch"] * 4 / row["first"] * 1000) for row in rows(result))
    assert rows(result, 1)[0]["ratio"] > 0


def test_data(run, corpus):
    options = ["--corpus", corpus, "--megabytes", 0.2, "--peer-megabytes", 0.1, "--tokenizers", "character"]
    result, _, _ = run("data", *options, "--steps", 2, "--rounds", 1, "--seconds", 0.01, *TINY_SETTINGS)
    assert [(row["what"], row["who"]) for row in rows(result)] == [
        ("characters, ASCII", "fundamentallm"),
        ("characters, ASCII", "tokenizers"),
        ("characters, ASCII", "Python dict"),
        ("characters, others too", "fundamentallm"),
        ("characters, others too", "tokenizers"),
        ("characters, others too", "Python dict"),
        ("byte pairs, 1024", "fundamentallm"),
        ("byte pairs, 1024", "tokenizers"),
    ]
    assert [round(row.get("size", 0), 1) for row in rows(result, 1)] == [0, 1.0, 0.2, 0.1, 0.1]
    assert all(row["peak"] > 0 for row in rows(result, 1))


def test_time_to_loss(run, nanogpt, corpus):
    options = ["--corpus", corpus, "--nanogpt", nanogpt, "--nanogpt-iterations", 3, "--seeds", 5, "--target", 4.0]
    more = ["--set", "training.max_steps=40", "--set", "training.eval_every_n_steps=10"]
    result, printed, _ = run("time_to_loss", *options, *TINY_SETTINGS, *more)
    ours, middle, theirs = rows(result)
    assert (ours["seed"], middle["seed"]) == ("5", "median")
    assert ours["loss"] <= 4.0 and ours["steps"] <= 40
    assert ours["training"] < ours["until"] <= ours["whole"]
    assert theirs["who"] == "nanoGPT" and theirs["until"] <= theirs["whole"] and theirs["loss"] > 0
    assert middle["ratio"] == pytest.approx(theirs["whole"] / ours["whole"])
    assert "validation loss 4" in printed


def test_time_to_loss_says_when_the_target_was_not_reached_and_goes_on_without_a_broken_peer(run, nanogpt, corpus):
    (nanogpt / "train.py").write_text("raise SystemExit('nothing works')")
    options = ["--corpus", corpus, "--nanogpt", nanogpt, "--seeds", 1, "--target", 0.01]
    result, _, said = run("time_to_loss", *options, *TINY_SETTINGS, "--set", "training.max_steps=2")
    assert rows(result)[0]["until"] is None and len(rows(result)) == 2
    assert "nothing works. Went on without nanoGPT." in said
    assert "Not reached with seed 1" in said


def test_start_up(run, corpus):
    result, _, _ = run("start_up", "--corpus", corpus, "--rounds", 1, "--no-page", *TINY_SETTINGS)
    assert [row["what"] for row in rows(result)] == [
        "python, doing nothing",
        "fundamentallm --help",
        "import fundamentallm",
        "fundamentallm train: first step",
    ]
    assert all(row["seconds"] > 0 for row in rows(result))


def test_the_playground_without_a_browser_measures_the_command_alone(run, monkeypatch):
    def missing():
        raise BenchmarkError("Without a browser.")

    monkeypatch.setattr(playground_overhead, "chromium", missing)
    monkeypatch.setattr(playground_overhead, "_SETTLING_SECONDS", 0.1)
    monkeypatch.setattr(playground_overhead, "_SPARE_SECONDS", 0.5)
    result, _, said = run("playground_overhead", "--pairs", 1, "--seconds", 0.2, *TINY_SETTINGS)
    assert [row["who"] for row in rows(result)] == ["alone"]
    assert "Only the command alone was measured." in said


def test_the_playground_with_a_browser(run, monkeypatch):
    pytest.importorskip("playwright", reason="playwright is not installed")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))):
        pytest.skip("no Chromium is installed: `apt-get install chromium` or `playwright install chromium`")
    monkeypatch.setattr(playground_overhead, "_SETTLING_SECONDS", 0.5)
    result, _, _ = run("playground_overhead", "--pairs", 2, "--seconds", 0.5, *TINY_SETTINGS)
    assert [row["who"] for row in rows(result)] == ["alone", "with the page in sight"]
    assert all(row["speed"] > 0 for row in rows(result))
    assert {name: len(values) for name, values in result["samples"].items()} == {
        "alone": 3,
        "with the page in sight": 2,
    }


def test_a_loss_is_taken_from_the_speeds_on_both_sides():
    # A machine that gets faster all the time is no loss and no gain.
    assert playground_overhead.losses([100, 120, 140], [110, 130]) == [0, 0]
    assert playground_overhead.losses([100, 100], [97]) == [pytest.approx(3)]


def test_speed_between_two_times(tmp_path):
    run = RunDirectory.create_at(tmp_path / "run", config=Config())
    lines = [{"step": step, "tokens": 100 * step, "elapsed_seconds": 2.0 * step} for step in (0, 1, 2, 5)]
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(run.metrics_path, (1000.0, 1010.0))  # so the first row was written at 1000
    assert playground_overhead.speed_between(run, 1001.0, 1003.0) == pytest.approx(50)
    assert playground_overhead.speed_between(run, 1003.0, 1010.0) == pytest.approx(50)
