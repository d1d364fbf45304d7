"""Generation is an iterator over tokens. It knows models and samplers, and nothing of text.

Prefill reads the whole prompt at once and fills the cache; decoding then feeds back one token per sequence and step.
Several prompts, and several samplers on one prompt, go through the model as one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from fundamentallm.generation.samplers import BaseSampler, inverse_cdf
from fundamentallm.models import BaseModel, KVCache
from fundamentallm.models.base import Decoder


def generate(
    model: BaseModel,
    prompts: Sequence[Sequence[int]],
    samplers: Sequence[BaseSampler],
    seeds: Sequence[int],
    *,
    max_tokens: int,
    end_token: int | None = None,
) -> Iterator[list[int | None]]:
    """Continue every prompt, one token per step, until all have ended or the consumer closes the iterator.

    Past the model's context the cache rolls: each new token sees the last ``sequence_length`` ones. Where absolute
    positions are added to the tokens it cannot, and the window starts anew from its second half, re-read at once.

    Args:
        model: Any model, in evaluation mode.
        prompts: B sequences of at least one token each.
        samplers: One for each prompt.
        seeds: One for each prompt. Equal seeds give equal draws, whatever else is in the batch.
        max_tokens: Number of tokens to write.
        end_token: A sequence that draws it is over; the token itself is not yielded.

    Yields:
        For each step the B new tokens, None for sequences that are over.
    """
    device = next(model.parameters()).device
    cache = model.new_cache(len(prompts))
    draws = _draws(seeds, max_tokens).to(device)
    needs_history = any(sampler.needs_history for sampler in samplers)
    windows = [list(prompt) for prompt in prompts]
    tokens, cache.padding = _left_padded(windows, cache.capacity, model.rolls, device)  # (B, t) all the model may see
    decode: Decoder | None = None  # made for the second token: it may have to copy the weights
    chosen: Tensor | None = None  # None while the cache has not seen all of ``tokens``
    running = [True] * len(prompts)
    for step in range(max_tokens):
        if cache.length == cache.capacity and not model.rolls:
            cache.reset()
            tokens, cache.padding = _left_padded(windows, cache.capacity, model.rolls, device)
            chosen = None
        if chosen is None:
            logits = _prefill(model, tokens, cache)
        else:
            decode = decode or model.decoder()
            logits = decode(chosen, cache)
        chosen = _choose(samplers, logits, draws[:, step], tokens if needs_history else None)
        if needs_history:
            tokens = torch.cat((tokens, chosen[:, None]), dim=1)[:, -cache.capacity :]
        new = chosen.tolist()
        for window, token in zip(windows, new, strict=True):
            window.append(token)
        running = [alive and token != end_token for alive, token in zip(running, new, strict=True)]
        if not any(running):
            return
        yield [token if alive else None for alive, token in zip(running, new, strict=True)]


# The decorator stands on the steps rather than on the iterator: inside a generator it would leak to the consumer.
@torch.inference_mode()
def _prefill(model: BaseModel, tokens: Tensor, cache: KVCache) -> Tensor:
    """Read all (B, T) tokens into the cache at once; return the logits (B, V) of the token after them."""
    alike = len(tokens) > 1 and bool((tokens == tokens[0]).all())
    reading = model.new_cache(1) if alike else cache  # several samplers on one prompt: it is read once
    logits: Tensor = model(tokens[:1] if alike else tokens, reading)[:, -1]
    if alike:
        cache.take_over(reading)
    return logits.expand(len(tokens), -1)


@torch.inference_mode()
def _choose(samplers: Sequence[BaseSampler], logits: Tensor, draw: Tensor, history: Tensor | None) -> Tensor:
    """The next token of every sequence, (B,); neighbours that share a sampler are sampled together."""
    groups = [(sampler, len(list(group))) for sampler, group in groupby(samplers)]
    if len(groups) == 1:
        return samplers[0].sample(logits, draw, history)
    probabilities = []
    start = 0
    for sampler, count in groups:
        rows = slice(start, start := start + count)
        probabilities.append(sampler.probabilities(logits[rows], None if history is None else history[rows]))
    return inverse_cdf(torch.cat(probabilities), draw)  # one search for all: what a step costs is its operations


def _left_padded(
    windows: list[list[int]], context: int, rolls: bool, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Cut every window that outgrew the context, and put them into one (B, T) tensor.

    Each sequence is cut by its own length, so what it is in a batch with does not change what it sees.

    Returns:
        The tokens, and how many of each row are padding on its left (None if no row has any). Padding repeats the
        row's own first token, so that a history never holds a foreign one.
    """
    kept = context if rolls else max(1, context // 2)
    for window in windows:
        if len(window) > context:
            del window[:-kept]
    longest = max(len(window) for window in windows)
    padding = [longest - len(window) for window in windows]
    rows = [window[:1] * pad + window for window, pad in zip(windows, padding, strict=True)]
    tokens = torch.tensor(rows, dtype=torch.int64, device=device)
    return tokens, torch.tensor(padding, device=device) if any(padding) else None


def _draws(seeds: Sequence[int], count: int) -> Tensor:
    """(B, count) uniform draws; a row depends on its seed alone."""
    by_seed = {
        seed: torch.rand(count, generator=torch.Generator().manual_seed(seed), device="cpu") for seed in set(seeds)
    }
    return torch.stack([by_seed[seed] for seed in seeds])
