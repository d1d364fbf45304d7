"""The one noun: a language model is weights, a tokenizer and a configuration, and here is what one can do with it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict, Unpack, overload

import torch

from fundamentallm.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, save_file
from fundamentallm.config import Config, GenerationConfig, load_config
from fundamentallm.data.corpus import Corpus, open_corpus
from fundamentallm.data.token_store import open_prepared
from fundamentallm.data.tokenizers import BaseTokenizer, stream_decoder
from fundamentallm.devices import resolve_device
from fundamentallm.errors import CheckpointError, ConfigError
from fundamentallm.evaluation.evaluator import Evaluation, evaluate, evaluate_held_out
from fundamentallm.generation import build_sampler, generate
from fundamentallm.hub.archive import save_zip
from fundamentallm.hub.download import find_checkpoint
from fundamentallm.hub.gguf_export import save_gguf
from fundamentallm.hub.model_card import Sample
from fundamentallm.hub.publish import push, run_around
from fundamentallm.hub.space import push_space
from fundamentallm.models import BaseModel
from fundamentallm.runs.run_directory import DEFAULT_RUNS_DIRECTORY, RunDirectory
from fundamentallm.training.callbacks import BaseCallback
from fundamentallm.training.further import further_config, inherited, require_same_shape, starting_point
from fundamentallm.training.session import run_training


class GenerationOptions(TypedDict, total=False):
    """The fields of :class:`GenerationConfig`, as keyword arguments; those not given keep the model's own defaults."""

    strategy: str
    max_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    seed: int | None
    stop_sequences: Sequence[str]


class LanguageModel:
    """A trained model that reads and writes text.

    Args:
        model: The network, on the device it shall run on.
        tokenizer: The one it was trained with.
        config: The configuration it was trained with.
        path: The checkpoint it was loaded from, if any.
    """

    def __init__(self, model: BaseModel, tokenizer: BaseTokenizer, config: Config, path: Path | None = None) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config = config
        self.path = path

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> LanguageModel:
        """Wrap a loaded checkpoint."""
        return cls(checkpoint.model, checkpoint.tokenizer, checkpoint.config, checkpoint.path)

    def __repr__(self) -> str:
        shape = self.config.model
        return (
            f"LanguageModel({shape.architecture}, {self.model.num_parameters():,} parameters, "
            f"{self.tokenizer.name} vocabulary of {self.tokenizer.vocab_size:,}, context {shape.sequence_length})"
        )

    # Writing ---------------------------------------------------------------------------------------------------------

    @overload
    def generate(self, prompt: str = "", **options: Unpack[GenerationOptions]) -> str: ...

    @overload
    def generate(self, prompt: list[str], **options: Unpack[GenerationOptions]) -> list[str]: ...

    def generate(self, prompt: str | list[str] = "", **options: Unpack[GenerationOptions]) -> str | list[str]:
        """What the model writes after the prompt, the prompt not included.

        Args:
            prompt: One text, or several that are continued together as one batch. With a seed, the i-th of several
                uses the seed plus i.
            options: See :class:`GenerationOptions`.

        Raises:
            ConfigError: An option has an impossible value.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        config = self.generation_config(**options)
        texts = [""] * len(prompts)
        for pieces in self.stream_batch(prompts, [config] * len(prompts), _seeds(config.seed, len(prompts))):
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        return texts[0] if isinstance(prompt, str) else texts

    def stream(self, prompt: str = "", **options: Unpack[GenerationOptions]) -> Iterator[str]:
        """Like :meth:`generate`, piece by piece as it is written; closing the iterator stops the model."""
        config = self.generation_config(**options)
        return (piece for (piece,) in self.stream_batch([prompt], [config], _seeds(config.seed, 1)) if piece)

    def compare(
        self, prompt: str, settings: Sequence[GenerationConfig], *, seed: int | None = None
    ) -> Iterator[list[str]]:
        """Continue one prompt under several settings side by side, decoded as one batch from the same draws.

        Yields:
            For each step the new piece of every continuation, in the order of ``settings``.
        """
        seed = _seeds(seed, 1)[0]
        return self.stream_batch([prompt] * len(settings), settings, [seed] * len(settings))

    def stream_batch(
        self, prompts: Sequence[str], settings: Sequence[GenerationConfig], seeds: Sequence[int]
    ) -> Iterator[list[str]]:
        """The general form of writing: each prompt with its own settings and seed, in one batch.

        Yields:
            For each step the new piece of every continuation; "" for one that waits for the rest of a character, or
            for a possible stop sequence, or is over.
        """
        if not prompts:
            return
        samplers = {config: build_sampler(config) for config in settings}  # equal settings share one, and one call
        texts = [_TextStream(self.tokenizer, config) for config in settings]
        tokens = generate(
            self.model,
            [self.prompt_tokens(prompt) for prompt in prompts],
            [samplers[config] for config in settings],
            seeds,
            max_tokens=max(config.max_tokens for config in settings),
            end_token=self.tokenizer.eos_id,
        )
        for new in tokens:
            yield [text.push(token) for text, token in zip(texts, new, strict=True)]
            if all(text.is_over for text in texts):
                break
        rest = [text.finish() for text in texts]
        if any(rest):
            yield rest

    def next_tokens(self, prompt: str = "", *, temperature: float = 1.0) -> list[tuple[int, float]]:
        """Every token with the probability that it comes next after the prompt, the likeliest first."""
        sampler = build_sampler(self.generation_config(strategy="temperature", temperature=temperature))
        tokens = self.prompt_tokens(prompt)[-self.config.model.sequence_length :]
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            logits = self.model(torch.tensor([tokens], device=device))[:, -1]  # (1, V)
            probabilities, order = sampler.probabilities(logits)[0].sort(descending=True, stable=True)
        return list(zip(order.tolist(), probabilities.tolist(), strict=True))

    def prompt_tokens(self, prompt: str) -> list[int]:
        """The prompt as tokens; an empty one is a newline, as if a new line of the training text began.

        Where the vocabulary has a token that begins every text, it comes first and is enough on its own.
        """
        prefix = self.tokenizer.prefix
        tokens = [*prefix, *map(int, self.tokenizer.encode(prompt if prompt or prefix else "\n"))]
        return tokens or [0]

    def unknown_characters(self, text: str) -> list[str]:
        """The characters of ``text`` that the model has never seen and reads as ``<UNK>``."""
        return self.tokenizer.unknown_characters(text)

    def generation_config(self, **options: Unpack[GenerationOptions]) -> GenerationConfig:
        """The model's own generation settings with some replaced; raises ConfigError if one cannot work."""
        return self.config.with_values(generation=dict(options)).generation

    # Measuring -------------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        text: str | None = None,
        *,
        stride: int | None = None,
        progress: Callable[[float], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Evaluation:
        """How well the model predicts a text; without one, the held-out part of its own run.

        Args:
            text: Any text; every token of it is scored exactly once.
            stride: Tokens between two windows, half a context when not given.
            progress: Called with the share already scored, 0 to 1.
            cancelled: Asked now and then; True ends the evaluation with ``EvaluationStopped``.

        Raises:
            CorpusError: The text is empty.
            CheckpointError: There is no text, and the model does not lie in a run directory that has one.
        """
        if text is not None:
            return evaluate(self.model, self.tokenizer, text, stride=stride, progress=progress, cancelled=cancelled)
        run = self.run
        if run is None:
            raise CheckpointError("This model does not lie in a run directory, so give a text to evaluate it on.")
        data = open_prepared(run.path)
        return evaluate_held_out(self.model, data, stride=stride, progress=progress, cancelled=cancelled)

    @property
    def run(self) -> RunDirectory | None:
        """The run directory this model was loaded from, if it lies in one that still has its tokens."""
        if self.path is None:
            return None
        for folder in self.path.resolve().parents:
            if (folder / "tokens" / "val.bin").is_file():
                return RunDirectory.open(folder)
        return None

    # Keeping ---------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Save as a folder that ``transformers`` loads too, or as a .zip of it, or one .pt, .safetensors or .gguf file.

        Raises:
            CheckpointError: It cannot be written, or llama.cpp has no such model or vocabulary.
        """
        path = Path(path)
        if path.suffix == ".gguf":
            save_gguf(path, self.model, self.tokenizer, self.config)
        elif path.suffix == ".zip":
            save_zip(path, self.model, self.tokenizer, self.config)
        elif path.suffix in (".pt", ".safetensors"):
            save_file(path, self.model, self.tokenizer, self.config)
        else:
            save_checkpoint(path, self.model, self.tokenizer, self.config)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        token: str | None = None,
        message: str | None = None,
        endpoint: str | None = None,
        progress: Callable[[str, float], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> str:
        """Publish the model on the Hugging Face Hub, with a model card; see :func:`fundamentallm.hub.publish.push`.

        Returns:
            The repository's address.

        Raises:
            HubError: Whatever went wrong, in one sentence; it can be repeated.
        """
        run = run_around(self.path) if self.path is not None else None
        written = [] if run is not None and run.samples() else [Sample("", self.generate(seed=1))]
        with TemporaryDirectory() as directory:
            folder = Path(directory) / "checkpoint"
            self.save(folder)
            return push(
                folder,
                repo_id,
                private=private,
                token=token,
                message=message,
                endpoint=endpoint,
                progress=progress,
                cancelled=cancelled,
                run=run,
                samples=written,
            )

    def push_space(
        self,
        model_id: str,
        *,
        private: bool = True,
        token: str | None = None,
        progress: Callable[[str, float], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> str:
        """Create a Space of the same name for the pushed model; see :func:`fundamentallm.hub.space.push_space`."""
        shape, prompt = self.config.model, self.config.training.sample_prompt
        return push_space(
            model_id, shape, prompt=prompt, private=private, token=token, progress=progress, cancelled=cancelled
        )


class _TextStream:
    """Turns one sequence's tokens into pieces of text: whole characters only, and nothing past a stop sequence."""

    def __init__(self, tokenizer: BaseTokenizer, config: GenerationConfig) -> None:
        self._decode = stream_decoder(tokenizer)
        self._stops = config.stop_sequences
        self._left = config.max_tokens
        self._held = ""
        """Text that may be the beginning of a stop sequence."""
        self.is_over = False

    def push(self, token: int | None) -> str:
        """The text that has become certain with this token (None: the sequence has ended)."""
        if self.is_over:
            return ""
        if token is None:
            return self.finish()
        self._left -= 1
        self._held += self._decode(token)
        cut = min((at for stop in self._stops if (at := self._held.find(stop)) >= 0), default=None)
        if cut is not None:
            self.is_over = True
            return self._held[:cut]
        if self._left == 0:
            return self.finish()
        waiting = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        piece, self._held = self._held[: len(self._held) - waiting], self._held[len(self._held) - waiting :]
        return piece

    def finish(self) -> str:
        """What was held back and is now known not to be a stop sequence."""
        held = "" if self.is_over else self._held
        self.is_over = True
        return held


def _overlap(text: str, stop: str) -> int:
    """How long an end of ``text`` is a proper beginning of ``stop``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def _seeds(seed: int | None, count: int) -> list[int]:
    first = secrets.randbelow(2**31) if seed is None else seed
    return [first + i for i in range(count)]


def train(
    data: str | Path | Sequence[str | Path] | Corpus | None = None,
    *,
    preset: str | None = None,
    config: Config | None = None,
    run_dir: str | Path | None = None,
    runs_directory: str | Path = DEFAULT_RUNS_DIRECTORY,
    resume: str | Path | None = None,
    from_checkpoint: str | Path | None = None,
    callbacks: Sequence[BaseCallback] = (),
    values: Mapping[str, Mapping[str, object]] | None = None,
    **training: object,
) -> LanguageModel:
    """Train a model, from scratch or further from a checkpoint, or go on with a run that stopped.

    Args:
        data: A file, a folder, several of them, the name of a built-in corpus, or an opened corpus; the
            configuration's ``data.source`` when not given.
        preset: Name of a preset in configs/; ``default`` when neither it nor ``config`` is given.
        config: A whole configuration; excludes ``preset``.
        run_dir: Where the run is written; a new directory.
        runs_directory: Where a new run directory is made when ``run_dir`` is not given.
        resume: A run directory to go on with; excludes ``data``.
        from_checkpoint: Start from the weights and the vocabulary of this checkpoint, or repository on the Hub. It
            brings the shape of the model, and is trained ten times more slowly than it was unless told otherwise.
        callbacks: Receive an event at every step, evaluation, checkpoint and sample.
        values: Settings by section, on top of preset or config: ``{"model": {"num_layers": 2}}``.
        training: Settings of the section ``training``, as in ``train("my.txt", preset="small", max_minutes=1)``.

    Returns:
        The best model of the run.

    Raises:
        FundamentaLLMError: One sentence that says what cannot work, and what to do.
    """
    layers = {section: dict(fields) for section, fields in (values or {}).items()}
    if training:
        layers["training"] = layers.get("training", {}) | training
    if resume is not None:
        run = RunDirectory.open(resume)
        return LanguageModel.from_checkpoint(
            run_training(run.config().with_values(**layers), None, run, callbacks, resume=True)
        )
    if config is not None and preset is not None:
        raise ConfigError("Give a preset or a configuration, not both.")
    if from_checkpoint is not None:
        layers["training"] = layers.get("training", {}) | {"from_checkpoint": str(from_checkpoint)}
    preset = preset if config is not None else preset or "default"
    resolved = config.with_values(**layers) if config is not None else load_config(preset=preset, values=layers)
    initial = None
    if resolved.training.from_checkpoint is not None:
        initial = starting_point(resolved.training.from_checkpoint)
        if config is None:
            resolved = further_config(initial, preset=preset, values=layers)
        else:
            resolved = config.with_values(**inherited(initial)).with_values(**layers)
            require_same_shape(resolved, initial)
    config = resolved
    if isinstance(data, Corpus):
        corpus = data
    else:
        sources = config.data.source if data is None else [data] if isinstance(data, str | Path) else list(data)
        corpus = open_corpus(sources)
        config = config.with_values(data={"source": [str(source) for source in sources]})
    if run_dir is not None:
        run = RunDirectory.create_at(run_dir, config=config)
    else:
        run = RunDirectory.create(runs_directory, name=corpus.name, config=config)
    return LanguageModel.from_checkpoint(run_training(config, corpus, run, callbacks, initial=initial))


def load(
    path: str | Path, device: str = "auto", *, revision: str | None = None, token: str | None = None
) -> LanguageModel:
    """Load a model from a run directory (its best checkpoint), a checkpoint folder, a file, or the Hub.

    Args:
        path: Where it lies: a path, or the name ``user/name`` or ``user/name@revision`` of a repository on the Hub that
            holds a model of ours, or one of the Qwen3, Llama or GPT-2 family.
        device: `cpu`, `cuda`, `mps`, or `auto` for the best one present.
        revision: A branch, tag or commit of the repository.
        token: For a private repository; that of the account signed in on this machine when not given.

    Raises:
        CheckpointError: It is missing, damaged, or of another kind; nothing in it is ever unpickled or run.
        HubError: The repository is missing, or the Hub cannot be reached.
    """
    found = find_checkpoint(path, revision=revision, token=token)
    return LanguageModel.from_checkpoint(load_checkpoint(found, device=resolve_device(device)))
