"""The texts a model writes while it learns."""

from __future__ import annotations

import time

from fundamentallm.config import GenerationConfig
from fundamentallm.data.tokenizers import BaseTokenizer
from fundamentallm.generation import build_sampler, generate
from fundamentallm.models import BaseModel

# A glance at what the model can do, not a text: it must not slow down learning.
_MAX_TOKENS = 200
_MAX_SECONDS = 2.0


def continue_prompt(
    model: BaseModel, tokenizer: BaseTokenizer, prompt: str, config: GenerationConfig, *, seed: int
) -> str:
    """What the model writes after ``prompt``, the same draws every time; ends after two seconds at the latest.

    An empty prompt stands for the beginning of a line.
    """
    ids = [*tokenizer.prefix, *map(int, tokenizer.encode(prompt or "\n"))]
    if not prompt and tokenizer.unk_id in ids:  # a text of a single line has no newline
        ids = [tokenizer.bos_id or 0]
    was_training = model.training
    model.eval()
    written: list[int] = []
    deadline = time.monotonic() + _MAX_SECONDS
    steps = generate(
        model,
        [ids],
        [build_sampler(config)],
        [seed],
        max_tokens=min(config.max_tokens, _MAX_TOKENS),
        end_token=tokenizer.eos_id,
    )
    try:
        for (token,) in steps:
            assert token is not None
            written.append(token)
            if time.monotonic() > deadline:
                break
    finally:
        model.train(was_training)
    return tokenizer.decode(written)
