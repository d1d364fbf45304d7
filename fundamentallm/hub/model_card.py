"""The page that tells a stranger what a model is: made from the checkpoint folder and the run it lies in."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from string import Template
from typing import Any

from safetensors import SafetensorError, safe_open

from fundamentallm.checkpoint import folder_config
from fundamentallm.config import Config, ModelConfig
from fundamentallm.data.examples import BUILT_IN
from fundamentallm.errors import CheckpointError
from fundamentallm.hub.loss_curve import draw_loss_curve
from fundamentallm.hub_access import parse_repository
from fundamentallm.models.interchange import family, why_ours_alone
from fundamentallm.runs.run_directory import RunDirectory

CURVE_FILE = "loss.png"
CARD_MARK = "<!-- Written by FundamentaLLM. Take this line out, and the next push keeps your own text. -->"
_TEMPLATE = Path(__file__).with_name("model_card.md")
_SAMPLE_CHARACTERS = 1200


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote after a prompt."""

    prompt: str
    text: str


@dataclass(frozen=True)
class ModelCard:
    """The text of README.md, its metadata included, and the picture it shows, if there was a curve to draw."""

    text: str
    curve: bytes | None


def model_card(
    folder: Path, repo_id: str, *, run: RunDirectory | None = None, samples: Sequence[Sample] = ()
) -> ModelCard:
    """Describe the checkpoint in ``folder``; nothing of the corpus but its name, size and fingerprint is told.

    Args:
        folder: A checkpoint folder.
        repo_id: Where it will be found, ``user/name``.
        run: The run it comes from, which knows the corpus, the curve, the evaluation and the last sample.
        samples: Texts to show instead of the run's last one.
    """
    config = folder_config(folder)
    shape = config.model
    curve = draw_loss_curve(run.metrics()) if run is not None else None
    evaluation = _finite(run.evaluation() or {}) if run is not None else {}
    shown = list(samples) or (_last_sample(run) if run is not None else [])
    corpus = (run.corpus() if run is not None else None) or {}
    prompt = shown[0].prompt if shown else ""
    stock = family(shape) != "fundamentallm"
    body = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        mark=CARD_MARK,
        title=repo_id.rpartition("/")[2],
        summary=_summary(config, corpus),
        architecture=_architecture(shape),
        parameters=f"{_parameters(folder):,}",
        vocabulary=f"{shape.vocab_size:,} tokens, {config.data.tokenizer}",
        context=f"{shape.sequence_length:,}",
        corpus=_corpus(config, corpus),
        training=_training(config, run),
        curve=f"![Training and validation loss over steps]({CURVE_FILE})\n\n" if curve is not None else "",
        evaluation=_evaluation(evaluation),
        samples=_samples(shown),
        transformers=_with_transformers(repo_id, prompt) if stock else str(why_ours_alone(shape)),
        repo_id=repo_id,
        prompt=_python_text(prompt),
        reproduce=_reproduce(config, repo_id, corpus),
        limits=_limits(config, corpus),
    )
    metadata = _metadata(config, repo_id, corpus, evaluation, stock=stock)
    return ModelCard(f"---\n{metadata}\n---\n\n{body}", curve)


def public_config(config: Config) -> Config:
    """The configuration without the paths of the machine it was used on."""
    start = config.training.from_checkpoint
    return config.with_values(
        data={"source": tuple(public_source(source) for source in config.data.source)},
        training={"from_checkpoint": None if start is None else _public_checkpoint(start)},
    )


def public_source(source: str) -> str:
    """What may be told of a source: the name of a built-in or published text, or a file's name without its path."""
    if source in BUILT_IN or source.startswith("hub:"):
        return source
    # This class understands both kinds of slashes.
    return PureWindowsPath(source).name or source


def _public_checkpoint(name: str) -> str:
    return name if parse_repository(name) and not Path(name).exists() else PureWindowsPath(name).name or name


def _metadata(
    config: Config, repo_id: str, corpus: Mapping[str, Any], evaluation: Mapping[str, float], *, stock: bool
) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # heavy: only a push needs it

    name = str(corpus.get("name", "the training text"))
    dataset = next((source for source in config.data.source if source.startswith("hub:")), "")
    dataset_id = dataset.removeprefix("hub:").partition(":")[0] or None
    base = config.training.from_checkpoint
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset_id or re.sub(r"[^a-z0-9]+", "-", public_source(name).lower()).strip("-") or "text",
            dataset_name=f"{public_source(name)}, held-out part",
            metric_type=field,
            metric_name=field.replace("_", " "),
            metric_value=round(evaluation[field], 6),
        )
        for field in ("loss", "perplexity", "bits_per_character", "bits_per_byte", "accuracy")
        if field in evaluation
    ]
    data = ModelCardData(
        library_name="transformers" if stock else "fundamentallm",
        pipeline_tag="text-generation",
        tags=["fundamentallm", config.model.architecture, config.data.tokenizer],
        datasets=[dataset_id] if dataset_id else None,
        base_model=base if base is not None and base == _public_checkpoint(base) and "/" in base else None,
        model_name=repo_id.rpartition("/")[2],
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _summary(config: Config, corpus: Mapping[str, Any]) -> str:
    start = config.training.from_checkpoint
    if not config.data.source:
        return "A language model that was made elsewhere and is published with FundamentaLLM."
    how = "trained from scratch" if start is None else f"trained further from {_code(_public_checkpoint(start))}"
    kind = "bigram table" if config.model.architecture == "bigram" else "transformer"
    return (
        f"A small {kind} language model, {how} on {_code(_corpus_name(config, corpus))} with FundamentaLLM. "
        "It continues text in the manner of that corpus"
        + ("; it does not follow instructions and knows nothing else." if start is None else ".")
    )


def _architecture(shape: ModelConfig) -> str:
    if shape.architecture != "transformer":
        return _code(shape.architecture)
    stock = {"qwen3": "Qwen3", "llama": "Llama", "gpt2": "GPT-2"}.get(family(shape), "FundamentaLLM's own shape")
    heads = f"{shape.num_heads} heads" if shape.kv_heads == shape.num_heads else (
        f"{shape.num_heads} query and {shape.kv_heads} key/value heads"
    )  # fmt: skip
    return (
        f"{stock}: {shape.num_layers} × {shape.d_model} (layers × width), {heads} of {shape.head_width}, feed-forward "
        f"{shape.ffn_width} ({shape.activation}), {shape.norm}, positions: {shape.pos_encoding}"
    )


def _corpus_name(config: Config, corpus: Mapping[str, Any]) -> str:
    if "name" in corpus:
        return public_source(str(corpus["name"]))
    return ", ".join(map(public_source, config.data.source)) or "unknown"


def _corpus(config: Config, corpus: Mapping[str, Any]) -> str:
    parts = [_code(_corpus_name(config, corpus))]
    if {"characters", "bytes"} <= corpus.keys():
        parts.append(f"{corpus['characters']:,} characters, {corpus['bytes']:,} bytes in UTF-8")
    if "sha256" in corpus:
        parts.append(f"SHA-256 {_code(str(corpus['sha256']))}")
    return ", ".join(parts)


def _training(config: Config, run: RunDirectory | None) -> str:
    training = config.training
    if not config.data.source:
        return "unknown"
    rates = f"learning rate {training.learning_rate:g}"
    if training.optimizer == "muon":
        rates = f"learning rate {training.muon_learning_rate:g} (matrices) and {training.learning_rate:g} (the rest)"
    parts = [
        f"{training.optimizer}, {rates}, {training.lr_scheduler} schedule, batches of {training.batch_size} × "
        f"{config.model.sequence_length} tokens, weight decay {training.weight_decay:g}, seed {training.seed}"
    ]
    status = run.status() if run is not None else None
    if status is not None and status.step:
        parts.append(f"{status.step:,} steps in {status.elapsed_seconds:,.0f} s")
    return "; ".join(parts)


def _evaluation(evaluation: Mapping[str, float]) -> str:
    rows = [
        ("loss", "nats per token"),
        ("perplexity", "per token"),
        ("bits_per_character", "comparable between tokenizers"),
        ("bits_per_byte", "comparable with a compressor"),
        ("accuracy", "share of tokens that were its first guess"),
    ]
    lines = [f"| {f.replace('_', ' ')} | {evaluation[f]:.4f} | {what} |" for f, what in rows if f in evaluation]
    if not lines:
        return ""
    table = "\n".join(["| | | |", "|---|---|---|", *lines])
    return f"## How good it is\n\nOn the part of the corpus that was held out, every token scored once:\n\n{table}\n\n"


def _last_sample(run: RunDirectory) -> list[Sample]:
    return [Sample(str(row.get("prompt", "")), str(row.get("text", ""))) for row in run.samples()[-1:]]


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    blocks = [_code_block((sample.prompt + sample.text)[:_SAMPLE_CHARACTERS]) for sample in samples]
    return "## What it writes\n\n" + "\n\n".join(blocks) + "\n\n"


def _with_transformers(repo_id: str, prompt: str) -> str:
    return f"""With stock transformers, no code of ours:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo_id}")
model = AutoModelForCausalLM.from_pretrained("{repo_id}")
inputs = tokenizer({_python_text(prompt)}, return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=200)[0]))
```"""


def _reproduce(config: Config, repo_id: str, corpus: Mapping[str, Any]) -> str:
    if not config.data.source:
        return ""
    sources = " ".join(_shell_word(public_source(source)) for source in config.data.source)
    command = f"hf download {repo_id} config.yaml --local-dir .\nfundamentallm train {sources} --config config.yaml"
    own = [source for source in config.data.source if source not in BUILT_IN and not source.startswith("hub:")]
    note = "\n\nThe text itself is not published; its SHA-256 above tells whether yours is the same." if own else ""
    return f"## Train it again\n\nAll settings are in `config.yaml`.\n\n{_code_block(command, 'sh')}{note}\n\n"


def _limits(config: Config, corpus: Mapping[str, Any]) -> str:
    lines = [
        "- It imitates its training text, errors, bias and all, and may repeat passages of it word for word.",
        f"- It sees at most {config.model.sequence_length:,} tokens at once.",
        "- Nothing it says is meant to be true, and nobody checked it for safety.",
        "- Whoever publishes it has to choose a licence; the rights to the training text may limit the choice.",
    ]
    if config.data.tokenizer == "character":
        lines.insert(1, "- It reads and writes only the characters of its training text; all others are `<UNK>` to it.")
    return "\n".join(lines)


def _parameters(folder: Path) -> int:
    """How many numbers the weights' files hold; a tied output layer is stored, and counted, once."""
    total = 0
    try:
        for path in folder.glob("model*.safetensors"):
            with safe_open(path, framework="pt") as file:
                total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError):
        raise CheckpointError(f"The weights in {str(folder)!r} are damaged or incomplete.") from None
    return total


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value) for key, value in values.items() if isinstance(value, int | float) and math.isfinite(value)
    }


# A text by anybody must not become markup of the page.


def _code(text: str) -> str:
    """A text in one line of a table or a sentence, shown as it is."""
    plain = " ".join(_visible(text).split()).replace("|", "¦") or "?"
    fence = "`" * (1 + _longest_run(plain))
    return f"{fence} {plain} {fence}" if "`" in plain else f"`{plain}`"


def _code_block(text: str, language: str = "text") -> str:
    plain = _visible(text)
    fence = "`" * max(3, 1 + _longest_run(plain))
    return f"{fence}{language}\n{plain}\n{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _python_text(text: str) -> str:
    """A literal on one line, which is as good in Python as it is in JSON; the beginning of a long text."""
    return json.dumps(_visible(text)[:100] or "\n", ensure_ascii=False)


def _visible(text: str) -> str:
    return "".join(c for c in text if c in "\n\t" or c.isprintable())


def _shell_word(text: str) -> str:
    return shlex.quote(" ".join(text.split()))
