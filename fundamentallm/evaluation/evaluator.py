"""How well a model predicts a text: loss, perplexity, bits per character and per byte, accuracy.

Shapes: B windows in a batch, T tokens in a window (the context), S scored tokens at a window's end, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fundamentallm.data.token_store import tokens_at
from fundamentallm.devices import autocast, resolve_precision
from fundamentallm.errors import ConfigError, CorpusError, FundamentaLLMError

if TYPE_CHECKING:
    from fundamentallm.data.token_store import PreparedData
    from fundamentallm.data.tokenizers import BaseTokenizer
    from fundamentallm.models import BaseModel

Tokens = npt.NDArray[np.integer[Any]]

# A batch holds at most so many tokens, and its logits so many numbers (256 MB in float32): enough to keep a processor
# busy, little enough to fit beside a training and, on a CPU, to answer a stop within a second or two.
_TOKENS_PER_BATCH = {"cpu": 4096}
_TOKENS_PER_BATCH_ELSEWHERE = 16_384
_LOGITS_PER_BATCH = 1 << 26

_IGNORED = -100  # cross_entropy's mark for a position that does not count


class EvaluationStopped(FundamentaLLMError):
    """The caller asked for the evaluation to stop before it had read the whole text."""


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of a text. Sums run over every token of the text, each scored exactly once."""

    loss: float
    """Mean negative log-likelihood, nats per token."""
    perplexity: float
    """exp(loss): among how many equally likely tokens the model hesitates."""
    bits_per_character: float
    """Bits the model needs to write the text down, over its characters; comparable between tokenizers."""
    bits_per_byte: float
    """The same over the bytes of the text in UTF-8; comparable with a compressor."""
    accuracy: float
    """Share of tokens that were the model's first guess, 0 to 1."""
    tokens: int
    """Tokens scored: all of the text."""
    characters: int
    """Characters (Unicode code points) of the text."""
    bytes: int
    """Bytes of the text in UTF-8."""
    unknown_characters: int
    """Places where the vocabulary lacks the character, so that `<UNK>` was predicted in its stead."""

    def as_dict(self) -> dict[str, float | int]:
        """The fields by name, as JSON shows them."""
        return asdict(self)


def evaluate(
    model: BaseModel,
    tokenizer: BaseTokenizer,
    text: str | None = None,
    *,
    tokens: Tokens | None = None,
    characters: int | None = None,
    bytes: int | None = None,
    previous_token: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
    precision: str = "fp32",
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Evaluation:
    r"""Score every token of a text exactly once.

    Windows of ``sequence_length`` tokens slide over the text by ``stride``; each scores the tokens that the windows
    before it did not. With the default stride, half a window, every token is predicted from at least half a context
    of tokens before it, except where the text has just begun. With ``stride == sequence_length`` the windows do not
    overlap and the result is the plain windowed loss.

    The first token has nothing before it, and no model of ours has seen a begin-of-text token, so it is predicted from
    ``previous_token``: the last training token when the text is the held-out part of a corpus. When there is none, it
    is predicted from the token that begins every text, where a vocabulary from elsewhere has one, or from a newline,
    since a text starts as a line does; a vocabulary without a newline charges it log(V), the price of guessing.

    Args:
        model: Any model; it is left in the mode (training or not) it came in.
        tokenizer: The model's own.
        text: What to score. Or give ``tokens`` with ``characters`` and ``bytes``, the sizes of the text they encode.
        tokens: Token ids, (N,).
        characters: Characters of the text behind ``tokens``.
        bytes: UTF-8 bytes of the text behind ``tokens``.
        previous_token: The token before the first one.
        stride: Tokens between two windows, 1 to ``sequence_length``; half of it when not given.
        batch_size: Windows per forward pass; chosen by memory when not given.
        precision: As in ``training.precision``. The default gives the same figure on every machine, and the one that
            others compute: bfloat16 may be off by a thousandth.
        progress: Called with the share of the text already scored, 0 to 1.
        cancelled: Asked before every batch; True ends the evaluation.

    Raises:
        CorpusError: The text is empty.
        ConfigError: The stride is out of range.
        EvaluationStopped: ``cancelled`` returned True.

    Source: Hugging Face, "Perplexity of fixed-length models" (sliding window); bits per byte as in Gao et al. 2020,
    "The Pile", section 3.1.
    """
    if text is not None:
        tokens, characters, bytes = tokenizer.encode(text), len(text), len(text.encode("utf-8", "surrogatepass"))
    assert tokens is not None and characters is not None and bytes is not None, "give a text, or tokens with sizes"
    if len(tokens) == 0 or characters == 0:
        raise CorpusError("The text is empty, so there is nothing to evaluate: give at least one character.")
    window = model.config.sequence_length
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= window:
        raise ConfigError(f"stride is {stride}, which cannot work: use 1 to {window}, the model's sequence_length.")

    previous_token = _before(tokenizer, previous_token)
    loss_sum, correct, scored = (0.0, 0, 0) if previous_token is not None else (math.log(tokenizer.vocab_size), 0, 1)
    unknown = 0 if tokenizer.unk_id is None else int(np.count_nonzero(tokens == tokenizer.unk_id))
    source = _Predictions(tokens, previous_token)
    with _inference(model, precision) as run:
        for batch in _sliding_windows(source, window, stride, batch_size or _batch_size(model, window)):
            if cancelled is not None and cancelled():
                raise EvaluationStopped("The evaluation was stopped before it had read the whole text.")
            losses, hits = run(batch.inputs, batch.targets)
            loss_sum += float(losses.sum())
            correct += hits
            scored += batch.scored
            if progress is not None:
                progress(scored / len(tokens))
    assert scored == len(tokens)

    loss = loss_sum / len(tokens)
    bits = loss_sum / math.log(2)
    return Evaluation(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),  # exp overflows a float beyond 709
        bits_per_character=bits / characters,
        bits_per_byte=bits / bytes,
        accuracy=correct / len(tokens),
        tokens=len(tokens),
        characters=characters,
        bytes=bytes,
        unknown_characters=unknown,
    )


def evaluate_held_out(
    model: BaseModel,
    data: PreparedData,
    *,
    stride: int | None = None,
    precision: str = "fp32",
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Evaluation:
    """Score the held-out part of a prepared corpus, whole; its first token is predicted from the last training token.

    Arguments and errors are those of :func:`evaluate`.
    """
    return evaluate(
        model,
        data.tokenizer,
        tokens=data.validation.tokens,
        characters=data.validation_characters,
        bytes=data.validation_bytes,
        previous_token=int(data.train.tokens[-1]),
        stride=stride,
        precision=precision,
        progress=progress,
        cancelled=cancelled,
    )


def token_losses(
    model: BaseModel,
    tokenizer: BaseTokenizer,
    tokens: Tokens,
    *,
    previous_token: int | None = None,
    precision: str = "fp32",
) -> npt.NDArray[np.float64]:
    """How surprised the model is by each token: the terms whose mean :func:`evaluate` gives as the loss.

    Args:
        model: Any model; it is left in the mode it came in.
        tokenizer: The model's own.
        tokens: Token ids of a text, (N,).
        previous_token: As in :func:`evaluate`.
        precision: As in :func:`evaluate`.

    Returns:
        Negative log-likelihoods in nats, (N,).
    """
    window = model.config.sequence_length
    previous_token = _before(tokenizer, previous_token)
    losses = [] if previous_token is not None or not len(tokens) else [np.array([math.log(tokenizer.vocab_size)])]
    source = _Predictions(tokens, previous_token)
    with _inference(model, precision) as run:
        for batch in _sliding_windows(source, window, max(1, window // 2), _batch_size(model, window)):
            values = run(batch.inputs, batch.targets)[0].cpu().numpy()
            losses.append(values[batch.targets.flatten() != _IGNORED])
    return np.concatenate(losses) if losses else np.zeros(0)


def mean_loss(
    model: BaseModel,
    tokens: Tokens,
    sequence_length: int,
    *,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    precision: str = "auto",
) -> float:
    """The plain windowed loss, for use while a model learns: fast, and the same windows every time.

    Args:
        model: Maps tokens (B, T) to logits (B, T, V); left in the mode it came in.
        tokens: Held-out token ids, (N,) with N of at least 2.
        sequence_length: T, the length of a window.
        max_tokens: About how many tokens to score, in whole windows spread evenly; all of them when not given.
        batch_size: Windows per forward pass; chosen by memory when not given.
        precision: As in ``training.precision``.

    Returns:
        Mean negative log-likelihood, nats per token.

    Raises:
        CorpusError: There are fewer than two tokens, so none can be predicted from another.
    """
    if len(tokens) < 2:
        raise CorpusError("The held-out part has fewer than two tokens: use a longer text or a smaller train_split.")
    source = _Predictions(tokens, None)
    window = min(sequence_length, source.count)
    starts = np.arange(0, source.count, window)
    if max_tokens is not None and max_tokens < source.count:
        starts = np.linspace(0, source.count - window, max(1, max_tokens // window)).astype(np.int64)
    loss_sum, scored = 0.0, 0
    batch_size = batch_size or _batch_size(model, window)
    with _inference(model, precision) as run:
        for first in range(0, len(starts), batch_size):
            batch = source.batch(starts[first : first + batch_size], window, window)
            loss_sum += float(run(batch.inputs, batch.targets)[0].sum())
            scored += batch.scored
    return loss_sum / scored


class _Batch(NamedTuple):
    inputs: npt.NDArray[np.int64]  # (B, T)
    targets: npt.NDArray[np.int64]  # (B, S): what follows each of the last S inputs

    @property
    def scored(self) -> int:
        return int(np.count_nonzero(self.targets != _IGNORED))


class _Predictions:
    """The pairs (token, next token) of a text, numbered from 0; a token before the text leads the first."""

    def __init__(self, tokens: Tokens, previous_token: int | None) -> None:
        self._tokens = tokens
        self._previous = previous_token
        self._lead = 0 if previous_token is None else 1
        self.count = len(tokens) + self._lead - 1

    def batch(self, starts: npt.NDArray[np.int64], window: int, scored: int) -> _Batch:
        """Windows of ``window`` inputs; the last ``scored`` of each have targets. Beyond the end nothing counts."""
        positions = starts[:, None] + np.arange(window + 1)  # (B, T + 1)
        values = tokens_at(self._tokens, np.clip(positions - self._lead, 0, len(self._tokens) - 1))
        if self._previous is not None:
            values[positions == 0] = self._previous
        targets = values[:, -scored:].copy()
        targets[positions[:, -scored:] > self.count] = _IGNORED
        # The causal model never looks from a scored position at what stands in the padding after it.
        return _Batch(np.ascontiguousarray(values[:, :-1]), targets)


def _sliding_windows(source: _Predictions, window: int, stride: int, batch_size: int) -> Iterator[_Batch]:
    if source.count == 0:
        return
    if source.count <= window:
        yield source.batch(np.zeros(1, np.int64), source.count, source.count)
        return
    yield source.batch(np.zeros(1, np.int64), window, window)
    # A window at s scores predictions s + window - stride to s + window - 1; the last one reaches the end.
    starts = np.arange(stride, source.count - window + stride, stride)
    for first in range(0, len(starts), batch_size):
        yield source.batch(starts[first : first + batch_size], window, stride)


def _batch_size(model: BaseModel, window: int) -> int:
    device, vocab_size = next(model.parameters()).device.type, model.config.vocab_size
    assert vocab_size is not None
    tokens = min(_TOKENS_PER_BATCH.get(device, _TOKENS_PER_BATCH_ELSEWHERE), _LOGITS_PER_BATCH // vocab_size)
    return max(1, tokens // window)


def _before(tokenizer: BaseTokenizer, previous_token: int | None) -> int | None:
    """What the first token of a text is predicted from."""
    if previous_token is not None:
        return previous_token
    return tokenizer.prefix[-1] if tokenizer.prefix else _newline(tokenizer)


def _newline(tokenizer: BaseTokenizer) -> int | None:
    ids = tokenizer.encode("\n")
    return int(ids[0]) if len(ids) == 1 and ids[0] != tokenizer.unk_id else None


@contextmanager
def _inference(
    model: nn.Module, precision: str
) -> Iterator[Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], tuple[Tensor, int]]]:
    """Within it, ``run(inputs, targets)`` gives the loss of every target in nats and the number of right first guesses.

    The losses are (B * S,) in float64, 0 where a target does not count.
    """
    device = next(model.parameters()).device
    arithmetic = resolve_precision(precision, device)

    def run(inputs: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> tuple[Tensor, int]:
        with autocast(device, arithmetic):
            logits: Tensor = model(torch.from_numpy(inputs).to(device))  # (B, T, V)
        wanted = torch.from_numpy(targets).to(device).flatten()  # (B * S,)
        scored = logits[:, -targets.shape[1] :].flatten(0, 1).float()  # (B * S, V)
        losses = F.cross_entropy(scored, wanted, ignore_index=_IGNORED, reduction="none")
        return losses.double(), int((scored.argmax(-1) == wanted).sum())

    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield run
    finally:
        model.train(was_training)
