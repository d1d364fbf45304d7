"""The Evaluate tab: how good the model is, in numbers, and what it must beat."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import gradio as gr

from fundamentallm.errors import FundamentaLLMError
from fundamentallm.playground.corpus_tab import chosen_corpus
from fundamentallm.playground.measuring import (
    Progress,
    followed,
    held_out_baselines,
    measure,
    stored_evaluation,
    subject_of,
    surprise_of,
)
from fundamentallm.playground.panels import QUICK, busy, panel, stoppable
from fundamentallm.playground.settings import SOURCE_UPLOAD, PlaygroundContext, Visitor
from fundamentallm.playground.theme import PLOTLY_HEAD

HELD_OUT, PASTED, UPLOADED = "held-out", "pasted", "uploaded"

_EXPLAINED = (
    (
        "perplexity",
        "Perplexity",
        ".3f",
        "As if it chose among so many equally likely tokens each time. 1 is certainty.",
    ),
    ("loss", "Loss", ".4f", "Mean surprise per token, in nats: what training made smaller."),
    ("accuracy", "Accuracy", ".1%", "How often its first guess was the token that came."),
    ("bits_per_character", "Bits per character", ".3f", "Bits it needs to write one character; compares tokenizers."),
    ("bits_per_byte", "Bits per byte", ".3f", "The same per byte of UTF-8; compares with a compressor."),
)
_SIZES = (
    ("tokens", "Tokens", ",", "Pieces scored, each exactly once."),
    ("characters", "Characters", ",", "Length of the text as one reads it."),
    ("bytes", "Bytes", ",", "Length of the text as a file, in UTF-8."),
    ("unknown_characters", "Unknown characters", ",", "Characters the model never met in training."),
)
# A loss of 6 nats is one chance in 400: darker than that nothing needs to be.
_UTTER_SURPRISE = 6.0
_EMPTY = "Nothing measured yet: choose a text and press Measure."


def build(context: PlaygroundContext) -> None:
    """Lay the tab out and connect it."""
    with gr.Row():
        source, text, file, start, stop = _form()
        with gr.Column(scale=7, min_width=340):
            numbers = panel("evaluate", {"empty": _EMPTY}, elem_id="evaluate-numbers", follows_run=True)
            chart = panel("ladder", elem_id="evaluate-ladder", head=PLOTLY_HEAD)
            surprise = panel("surprise", elem_id="evaluate-surprise")
    settings = context.settings

    def show_stored(run_id: str, secret: str | None, request: gr.Request) -> Iterator[list[object]]:
        visitor = Visitor.of(secret, request)
        try:
            stored = stored_evaluation(settings, run_id, visitor)
            if stored is None:
                yield [{"empty": _EMPTY}, {}, {}]
                return
            about = "Measured when its training ended, on the held-out part of its corpus."
            numbers_shown = view(stored, about)
            yield [numbers_shown, rungs(stored), {}]
        except FundamentaLLMError:
            yield [{"empty": _EMPTY}, {}, {}]
            return
        # Where the run's text is gone, the numbers stay and the comparison is left out.
        with suppress(FundamentaLLMError):
            if not stored.get("baselines"):
                stored["baselines"] = held_out_baselines(settings, run_id, visitor)
                # The numbers once more: a tab that was never opened keeps only the last update of each panel.
                yield [numbers_shown, rungs(stored), {}]

    def run(
        run_id: str, secret: str | None, source: str, text: str | None, file: str | None, request: gr.Request
    ) -> Iterator[list[object]]:
        try:
            chosen = None
            if source == PASTED:
                chosen = text or ""
            elif source == UPLOADED:
                chosen = chosen_corpus(settings, SOURCE_UPLOAD, None, [file] if file else None).read()
            subject = subject_of(settings, run_id, Visitor.of(secret, request), chosen)
            token = secrets.token_hex(4)
            yield [{"progress": 0.0, "doing": "Starting", "run": token}, gr.skip(), {}, *busy()]
            for step in followed(lambda progress, cancelled: measure(subject, progress, cancelled)):
                if isinstance(step, Progress):
                    yield [{"progress": step.share, "doing": step.doing, "run": token}, *[gr.skip()] * 4]
                else:
                    about = "Measured on " + ("the held-out part of its corpus." if chosen is None else "your text.")
                    about = f"{about} {step.get('note', '')}".strip()
                    yield [view(step, about), rungs(step), surprises(surprise_of(subject)), gr.skip(), gr.skip()]
        except FundamentaLLMError as error:
            yield [{"error": str(error)}, {}, {}, gr.skip(), gr.skip()]

    source.change(
        lambda source: (gr.update(visible=source == PASTED), gr.update(visible=source == UPLOADED)),
        source,
        [text, file],
        **QUICK,
    )
    stored = numbers.select(
        show_stored,
        [context.run_selector, context.visitor_secret],
        [numbers, chart, surprise],
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_limit=2,
        concurrency_id="stored evaluation",
        api_visibility="private",
    )
    event = start.click(
        run,
        [context.run_selector, context.visitor_secret, source, text, file],
        [numbers, chart, surprise, start, stop],
        show_progress="hidden",
        trigger_mode="once",
        # What was stored must not come after what is being measured.
        cancels=[stored],
        concurrency_limit=2,
        concurrency_id="evaluating",
        api_visibility="private",
    )
    stoppable([event], [start], stop, numbers, lambda _: {"empty": "Stopped. Press Measure to start again."})


def _form() -> tuple[gr.Radio, gr.Textbox, gr.File, gr.Button, gr.Button]:
    with gr.Column(scale=3, min_width=300):
        source = gr.Radio(
            [
                ("The held-out part of its corpus\nNever trained on, so it cannot be known by heart.", HELD_OUT),
                ("Your text\nHow well does it know another style?", PASTED),
                ("Your file\nText in any encoding, Markdown, PDF.", UPLOADED),
            ],
            value=HELD_OUT,
            label="Measure the model on",
            elem_classes="fl-sources",
            elem_id="evaluate-source",
        )
        text = gr.Textbox(label="Text", lines=10, max_lines=20, visible=False, elem_id="evaluate-text")
        file = gr.File(label="File", visible=False, height=140, elem_id="evaluate-file")
        with gr.Row():
            start = gr.Button("Measure", variant="primary", elem_id="evaluate-start")
            stop = gr.Button("Stop", variant="stop", visible=False, elem_id="evaluate-stop")
    return source, text, file, start, stop


def view(result: dict[str, Any], about: str) -> dict[str, object]:
    """What the page shows of an evaluation: each number with one line on what it means."""

    def tiles(fields: tuple[tuple[str, str, str, str], ...]) -> list[dict[str, object]]:
        return [
            {"label": label, "value": format(result[name], form), "note": note, "strong": name == "perplexity"}
            for name, label, form, note in fields
            if isinstance(result.get(name), int | float)
        ]

    return {"tiles": tiles(_EXPLAINED), "sizes": tiles(_SIZES), "about": about}


def surprises(losses: list[tuple[str, float]]) -> dict[str, object]:
    """The text for the page: each token with a strength from 0 to 1, and its probability for the tooltip."""
    tokens = [
        [piece, round(min(loss / _UTTER_SURPRISE, 1.0), 3), f"probability {math.exp(-loss):.2%}"]
        for piece, loss in losses
    ]
    note = f"The first {len(losses):,} tokens: the stronger the colour, the less the model expected it."
    return {"tokens": tokens, "note": note}


def rungs(result: dict[str, Any]) -> dict[str, object]:
    """The ladder for the chart, from the worst to the best; empty when there is nothing to compare with."""
    others = result.get("baselines") or []
    if not others:
        return {}
    bars = [
        {
            "name": rung["name"],
            "description": rung["description"],
            "bits_per_byte": rung["bits_per_byte"],
            "kind": "compressor" if rung["loss"] is None else "ngram",
        }
        for rung in others
    ]
    about = "what the trained network knows"
    bars.append({"name": "this model", "description": about, "bits_per_byte": result["bits_per_byte"], "kind": "model"})
    return {"rungs": sorted(bars, key=lambda bar: -bar["bits_per_byte"])}
