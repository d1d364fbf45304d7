"""Train the tiny model that comes with FundamentaLLM, and write down how it was made.

    python examples/make_tiny_checkpoint.py [FOLDER]

It takes some minutes. The corpus is a pure function of a seed and so is the training: on the same kind of machine the
weights come out the same (on one thread, since sums depend on how work is divided), elsewhere they differ by rounding.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch

import fundamentallm as fl
from fundamentallm.config import Config
from fundamentallm.data.token_store import open_prepared
from fundamentallm.evaluation.baselines import ladder
from fundamentallm.runs.run_directory import RunDirectory

FOLDER = Path(__file__).parent / "tiny-checkpoint"
THREADS = 1
MAX_BYTES = 2_000_000
PROMPT = "Once upon a time"
CONFIG = Config().with_values(
    data={"source": ("tiny-tales",), "tokenizer": "character"},
    model={"d_model": 96, "num_heads": 4, "num_layers": 3, "sequence_length": 128},
    training={
        "batch_size": 12,
        "max_steps": 1500,
        "muon_learning_rate": 0.02,
        "eval_every_n_steps": 500,
        "save_every_n_steps": 1500,
        "precision": "fp32",
        "device": "cpu",
        "seed": 1337,
    },
)

PROVENANCE = """# The bundled tiny model

So that the playground writes something before anything was trained. Made by `python examples/make_tiny_checkpoint.py`,
which trains it from nothing; no other model or data took part.

| | |
|---|---|
| Corpus | *Tiny Tales*, this project's own story grammar: {corpus[characters]:,} characters, \
SHA-256 `{corpus[sha256]}` |
| Split | the first {config.data.train_split:.0%} for training, the rest held out |
| Model | {parameters:,} parameters: {config.model.num_layers} layers, {config.model.d_model} wide, \
{config.model.num_heads} heads, context {config.model.sequence_length}, {vocabulary} characters |
| Training | {config.training.max_steps:,} steps of {config.training.batch_size} × \
{config.model.sequence_length} tokens, Muon and AdamW, seed {config.training.seed}, float32 on {threads} thread |
| Made with | FundamentaLLM {version}, PyTorch {torch} |
| Held-out loss | {result.loss:.4f} nats per character (perplexity {result.perplexity:.3f}, \
{result.bits_per_byte:.3f} bits per byte, accuracy {result.accuracy:.1%}) |
| Licence | MIT, as the project |

The exact settings are in `config.yaml`, the numbers of the held-out part in `evaluation.json`. What it writes after
“{prompt}” when it always takes the likeliest character:

> {sample}
"""


def main(folder: Path = FOLDER) -> None:
    """Train, measure, save, and check that the folder stays small."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as scratch:
        run_path = Path(scratch) / "run"
        model = fl.train("tiny-tales", config=CONFIG, run_dir=run_path)
        data = open_prepared(run_path)
        evaluation = model.evaluate()
        text = (run_path / "tokens" / "validation.txt").read_text(encoding="utf-8")
        train = data.train.tokens
        rungs = ladder(train, data.validation.tokens, model.tokenizer.vocab_size, text, previous_tokens=train[-2:])
        corpus = RunDirectory.open(run_path).corpus() or {}
        shutil.rmtree(folder, ignore_errors=True)
        model.save(folder)
    numbers = {**evaluation.as_dict(), "baselines": [rung.as_dict() for rung in rungs]}
    (folder / "evaluation.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    sample = model.generate(PROMPT, max_tokens=300, strategy="greedy")
    (folder / "PROVENANCE.md").write_text(
        PROVENANCE.format(
            corpus=corpus,
            config=CONFIG,
            result=evaluation,
            vocabulary=model.tokenizer.vocab_size,
            parameters=model.model.num_parameters(),
            threads=THREADS,
            version=fl.__version__,
            torch=torch.__version__,
            prompt=PROMPT,
            sample=" ".join((PROMPT + sample).split()),
        ),
        encoding="utf-8",
    )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.2f} MB, held-out loss {evaluation.loss:.4f}")
    if size > MAX_BYTES:
        raise SystemExit(
            f"The folder has {size:,} bytes, and the package takes at most {MAX_BYTES:,}: shrink the model."
        )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
