"""The Compare tab: one prompt, one seed, four ways to choose the next token, written side by side."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from fundamentallm.config import Config, GenerationConfig
from fundamentallm.errors import FundamentaLLMError, GenerationError
from fundamentallm.playground.measuring import copies_of
from fundamentallm.playground.model_cache import MODELS
from fundamentallm.playground.panels import QUICK, busy, notices, panel, stoppable
from fundamentallm.playground.settings import PlaygroundContext, PlaygroundSettings, Visitor

if TYPE_CHECKING:
    from fundamentallm.language_model import LanguageModel

STRATEGIES = ("greedy", "temperature", "top-k", "top-p")
LONGEST_PROMPT = 20_000

_TITLES = {"greedy": "Greedy", "temperature": "Temperature", "top-k": "Top-k", "top-p": "Top-p"}
# Redrawing more often than this costs the browser more than the eye gains.
_SECONDS_BETWEEN_UPDATES = 1 / 15
_FIRST_PROMPT = "Once upon a time"
_SHOWN_TOKENS = 10


def column_settings(
    settings: PlaygroundSettings, max_tokens: int, temperature: float, top_k: int, top_p: float, seed: int | None
) -> list[GenerationConfig]:
    """The four columns' settings, in the order of ``STRATEGIES``; the first is greedy.

    Raises:
        ConfigError: A value is out of range.
        GenerationError: More tokens than this page writes at once.
    """
    cap = settings.limits.generated_tokens
    if cap is not None and max_tokens is not None and max_tokens > cap:
        raise GenerationError(f"This page writes at most {cap:,} tokens at once: ask for fewer.")
    columns = []
    for strategy in STRATEGIES:
        values: dict[str, object] = {"strategy": strategy, "max_tokens": max_tokens, "seed": seed}
        if strategy != "greedy":
            values["temperature"] = temperature
        if strategy == "top-k":
            values["top_k"] = top_k
        if strategy == "top-p":
            values["top_p"] = top_p
        columns.append(Config().with_values(generation=values).generation)
    return columns


def checked_prompt(prompt: str | None) -> str:
    """The prompt, refused when it is absurdly long."""
    if prompt and len(prompt) > LONGEST_PROMPT:
        raise GenerationError(f"The prompt has {len(prompt):,} characters: use at most {LONGEST_PROMPT:,}.")
    return prompt or ""


def unknown_note(model: LanguageModel, prompt: str) -> str:
    """A sentence about the characters of the prompt that the model has never seen; empty when it knows them all."""
    unknown = model.tokenizer.unknown_characters(prompt)
    if not unknown:
        return ""
    named = ", ".join(f"“{character}”" for character in unknown[:8])
    more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
    return f"This model has never seen {named}{more}: it reads {'it' if len(unknown) == 1 else 'them'} as unknown."


def build(context: PlaygroundContext) -> None:
    """Lay the tab out and connect it."""
    prompt, temperature, top_k, top_p, length, seed = _form(context.settings.limits.generated_tokens or 2_000)
    with gr.Row(elem_classes="fl-actions"):
        write = gr.Button("Write side by side", variant="primary", scale=2, elem_id="compare-write")
        again = gr.Button("Another seed", scale=1, elem_id="compare-again")
        stop = gr.Button("Stop", variant="stop", visible=False, scale=1, elem_id="compare-stop")
    warnings = panel("notices", elem_id="compare-notices")
    columns = panel("compare", _waiting(), elem_id="compare-columns")
    with gr.Accordion("The next token after this prompt", open=True):
        next_token = panel("next", elem_id="compare-next", follows_run=True)
    settings = context.settings

    def stream(
        run_id: str,
        secret: str | None,
        prompt: str,
        length: int,
        temperature: float,
        top_k: int,
        top_p: float,
        seed: int | None,
        request: gr.Request,
    ) -> Iterator[list[object]]:
        try:
            visitor = Visitor.of(secret, request)
            model = MODELS.load(settings.model_path(run_id, visitor))
            prompt = checked_prompt(prompt)
            wanted = column_settings(settings, length, temperature, top_k, top_p, seed)
            note = unknown_note(model, prompt)
            # Repeated with every update: of two that arrive at once, the page draws the later one only.
            noted = notices(note) if note else notices()
            comparison = Comparison(prompt, wanted, run_id)
            yield [comparison.view("running"), noted, *busy()]
            last = time.monotonic()
            for pieces in model.compare(prompt, wanted, seed=seed):
                comparison.add(pieces)
                if time.monotonic() - last >= _SECONDS_BETWEEN_UPDATES:
                    yield [comparison.view("running"), noted, gr.skip(), gr.skip()]
                    last = time.monotonic()
            yield [comparison.view("done"), noted, gr.skip(), gr.skip()]
            comparison.copies = copies_of(settings, run_id, visitor, comparison.texts)
            yield [comparison.view("done"), noted, gr.skip(), gr.skip()]
        except FundamentaLLMError as error:
            yield [gr.skip(), notices(str(error), kind="error"), gr.skip(), gr.skip()]

    def next_tokens(
        run_id: str,
        secret: str | None,
        prompt: str,
        temperature: float,
        top_k: int,
        top_p: float,
        request: gr.Request,
    ) -> dict[str, object]:
        try:
            model = MODELS.load(settings.model_path(run_id, Visitor.of(secret, request)))
            return next_token_view(model, checked_prompt(prompt), temperature, int(top_k), top_p)
        except FundamentaLLMError as error:
            return {"note": str(error)}

    knobs = [temperature, top_k, top_p]
    inputs = [context.run_selector, context.visitor_secret, prompt, length, *knobs, seed]
    outputs = [columns, warnings, write, stop]
    reseed = again.click(
        None, None, seed, js="() => Math.floor(Math.random() * 1000000)", queue=False, api_visibility="private"
    )
    streams: list[Any] = [
        trigger(
            stream,
            inputs,
            outputs,
            show_progress="hidden",
            trigger_mode="once",
            concurrency_limit=4,
            concurrency_id="writing",
            api_visibility="private",
        )
        for trigger in (write.click, prompt.submit, reseed.then)
    ]
    stoppable(streams, [write], stop, columns, lambda view: {**view, "state": "stopped"})
    # What another model wrote shall not stand under this one's name.
    context.run_selector.change(
        _without_another_models,
        [context.run_selector, columns],
        [columns, warnings],
        **QUICK,
    )
    gr.on(
        [next_token.select, prompt.change, *(knob.change for knob in knobs)],
        next_tokens,
        [context.run_selector, context.visitor_secret, prompt, *knobs],
        next_token,
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_limit=4,
        concurrency_id="next token",
        api_visibility="private",
    )


def _form(cap: int) -> tuple[gr.Textbox, gr.Slider, gr.Slider, gr.Slider, gr.Slider, gr.Number]:
    prompt = gr.Textbox(
        _FIRST_PROMPT,
        label="Prompt",
        info="The model goes on from here; it may be empty.",
        lines=2,
        max_lines=8,
        elem_id="compare-prompt",
    )
    with gr.Row(elem_classes="fl-knobs"):
        temperature = gr.Slider(0.1, 2.0, 0.8, step=0.05, label="Temperature", min_width=200)
        top_k = gr.Slider(1, 100, 5, step=1, label="Top-k: k", min_width=200)
        top_p = gr.Slider(0.05, 1.0, 0.9, step=0.05, label="Top-p: p", min_width=200)
        length = gr.Slider(10, cap, min(200, cap), step=10, label="Length in tokens", min_width=200)
        seed = gr.Number(1, label="Seed", precision=0, minimum=0, min_width=120)
    return prompt, temperature, top_k, top_p, length, seed


class Comparison:
    """What has been written so far in each column, and where each leaves the greedy one."""

    def __init__(self, prompt: str, settings: Sequence[GenerationConfig], model: str) -> None:
        self.prompt = prompt
        self.model = model
        self.settings = settings
        self.texts = ["" for _ in settings]
        self.copies: Sequence[dict[str, object]] | None = None
        """What of each text was copied from the training text, once it is known."""
        self._run = secrets.token_hex(4)
        self._tokens = [0 for _ in settings]
        self._started = time.monotonic()
        self._finished = [self._started for _ in settings]

    def add(self, pieces: Sequence[str]) -> None:
        """One more step: the new piece of each column, empty where a column has ended."""
        now = time.monotonic()
        for index, piece in enumerate(pieces):
            if piece:
                self.texts[index] += piece
                self._tokens[index] += 1
                self._finished[index] = now

    def view(self, state: str) -> dict[str, object]:
        """What the page shows; ``state`` is running, done or stopped."""
        columns = []
        for index, setting in enumerate(self.settings):
            column: dict[str, object] = {
                "name": _TITLES[setting.strategy],
                "how": _how(setting),
                "text": self.texts[index],
                "speed": self._speed(index),
            }
            if index > 0:
                cut = first_difference(self.texts[0], self.texts[index])
                column["parts_at"] = cut
                if cut is not None:
                    column["parting"] = f"Leaves greedy at character {cut + 1:,}"
                elif state == "done":
                    column["parting"] = "The same as greedy"
            if self.copies is not None:
                column["copied"] = self.copies[index]
            columns.append(column)
        return {"prompt": self.prompt, "columns": columns, "state": state, "run": self._run, "model": self.model}

    def _speed(self, index: int) -> str:
        seconds = self._finished[index] - self._started
        if seconds < 0.05:
            return ""
        return f"{self._tokens[index]:,} tokens, {self._tokens[index] / seconds:,.0f}/s"


def first_difference(one: str, other: str) -> int | None:
    """Index of the first character at which two texts differ; None as long as one only continues the other."""
    return next((index for index, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)


def next_token_view(
    model: LanguageModel, prompt: str, temperature: float, top_k: int, top_p: float
) -> dict[str, object]:
    """The likeliest next tokens, and which of them each column may draw."""
    ranked = model.next_tokens(prompt, temperature=temperature)
    tokens, before = [], 0.0
    for rank, (token, probability) in enumerate(ranked[:_SHOWN_TOKENS]):
        kept = [["greedy", rank == 0], [f"top {top_k}", rank < top_k], [f"p {top_p:g}", before < top_p]]
        tokens.append(
            {
                "shown": model.tokenizer.token_text(token),
                "probability": probability,
                "percent": f"{probability:.1%}",
                "kept": kept,
            }
        )
        before += probability
    rest = max(0.0, 1.0 - before)
    others = max(0, len(ranked) - _SHOWN_TOKENS)
    note = f"Probabilities at temperature {temperature:g}; the other {others:,} tokens share {rest:.1%}."
    return {"tokens": tokens, "note": note}


def _how(setting: GenerationConfig) -> str:
    return {
        "greedy": "always the likeliest token",
        "temperature": f"any token, temperature {setting.temperature:g}",
        "top-k": f"one of the {setting.top_k} likeliest, temperature {setting.temperature:g}",
        "top-p": f"the likeliest {setting.top_p or 1.0:.0%}, temperature {setting.temperature:g}",
    }[setting.strategy]


def _waiting() -> dict[str, object]:
    explained = {
        "greedy": "Always takes the likeliest token. Safe, and soon repeats itself.",
        "temperature": "Draws any token; the temperature flattens or sharpens the odds.",
        "top-k": "Draws from the k likeliest tokens only, so that no absurd one slips in.",
        "top-p": "Draws from as many tokens as it takes to reach p: few when it is sure, many when not.",
    }
    columns = [{"name": _TITLES[name], "how": explained[name], "text": ""} for name in STRATEGIES]
    return {"prompt": "", "columns": columns, "state": "empty"}


def _without_another_models(run_id: str, view: dict[str, object] | None) -> list[object]:
    """Empty columns, unless what they show was written by the chosen model: a page that opens says so late."""
    if (view or {}).get("model") in (None, run_id):
        return [gr.skip(), gr.skip()]
    return [_waiting(), notices()]
