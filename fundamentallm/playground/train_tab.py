"""The Train tab: one button, and what there is to see while a model learns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gradio as gr

from fundamentallm.config import load_config
from fundamentallm.errors import FundamentaLLMError
from fundamentallm.hub_access import on_a_space
from fundamentallm.playground import charts, jobs
from fundamentallm.playground.errors import shown_to_the_user
from fundamentallm.playground.header import HeaderParts, answer_look, refreshed_selector, run_label
from fundamentallm.playground.panels import QUICK, notices, panel
from fundamentallm.playground.settings import BUNDLED_ID, CorpusParts, PlaygroundContext, PlaygroundSettings, Visitor
from fundamentallm.playground.theme import PLOTLY_HEAD, asset
from fundamentallm.playground.train_form import (
    CUSTOM_TIME,
    FIELDS,
    TIMES,
    button_label,
    changed_settings,
    field_values,
    preset_choices,
)
from fundamentallm.runs.run_directory import PENDING_STATES

_MEASURING: dict[str, Any] = {
    "concurrency_limit": 1,
    "concurrency_id": "measure",
    "show_progress": "hidden",
    "api_visibility": "private",
}
# On a phone the curve lies below the button that starts it.
_SHOW_LIVE = """() => {
    const live = document.getElementById("live");
    if (live && live.getBoundingClientRect().top > window.innerHeight * 0.7)
        live.scrollIntoView({behavior: "smooth", block: "start"});
}"""
_EMPTY_HINT = "Press the button: the loss curve, and what the model writes while it learns, appear here."


@dataclass(frozen=True)
class _Setup:
    preset: gr.Radio
    time: gr.Radio
    minutes: gr.Number
    more: gr.Textbox
    fields: list[Any]
    start: gr.Button
    estimate: gr.HTML
    command: gr.Textbox

    @property
    def inputs(self) -> list[Any]:
        return [self.preset, self.time, self.minutes, self.more, *self.fields]


@dataclass(frozen=True)
class _Live:
    view: gr.HTML
    next_row: gr.Row
    keep: gr.HTML
    """What to do so that the model is not lost; never shown where the disk is one's own."""
    resume: gr.Button
    to_compare: gr.Button
    to_evaluate: gr.Button
    to_publish: gr.Button


def build(page: gr.Blocks, context: PlaygroundContext, corpus: CorpusParts, header: HeaderParts) -> None:
    """Lay the tab out and connect it."""
    with gr.Row(elem_id="train-layout", equal_height=False):
        with gr.Column(scale=3, min_width=320, elem_id="train-setup"):
            setup = _build_setup(context)
        with gr.Column(scale=8, min_width=340, elem_id="train-live"):
            live = _build_live(context)
    _wire_setup(page, context, corpus, setup)
    _wire_training(page, context, corpus, header, setup, live)


def _build_setup(context: PlaygroundContext) -> _Setup:
    choices = preset_choices()
    first = choices[0][1]
    preset = gr.Radio(choices, value=first, label="Model", elem_id="preset", elem_classes="fl-cards")
    time = gr.Radio(TIMES, value=1.0, label="Time to learn", elem_id="time", elem_classes="fl-segments")
    minutes = gr.Number(2.0, label="Minutes", visible=False, elem_id="minutes")
    start = gr.Button(button_label("tiny-tales", None, first, 1.0), variant="primary", size="lg", elem_id="start")
    estimate = gr.HTML(
        "{}",
        html_template=asset("estimate.html"),
        js_on_load=asset("estimate.js"),
        apply_default_css=False,
        elem_id="estimate",
    )
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        config = load_config(preset=first)
        fields = [field.component(config) for field in FIELDS]
        more = gr.Textbox(
            label="Any other setting",
            info="One a line.",
            placeholder="model.qk_norm=false",
            lines=2,
            elem_id="more-settings",
        )
    command = gr.Textbox(
        label="The same from a terminal",
        interactive=False,
        lines=2,
        max_lines=8,
        buttons=["copy"],
        elem_id="command",
        elem_classes="fl-code",
    )
    return _Setup(preset, time, minutes, more, fields, start, estimate, command)


def _build_live(context: PlaygroundContext) -> _Live:
    settings = context.settings

    # These are reachable by anyone with any argument (Gradio's /component_server), so they authorise and cap.
    def tail(question: object) -> dict[str, Any]:
        return charts.answer_tail(settings, question) | {"look": answer_look(settings, question)}

    def earlier(question: object) -> dict[str, Any]:
        return charts.answer_earlier(settings, question)

    def baselines(question: object) -> dict[str, Any]:
        return charts.answer_baselines(settings, question)

    with gr.Row(elem_id="next", visible=False) as next_row:
        resume = gr.Button("Resume", variant="primary", size="md", elem_id="resume", visible=False, min_width=140)
        to_compare = gr.Button("See how it writes", size="md", elem_id="to-compare", min_width=140)
        to_evaluate = gr.Button("Measure how good it is", size="md", elem_id="to-evaluate", min_width=140)
        to_publish = gr.Button("Take it along", size="md", elem_id="to-publish", min_width=140)
    keep = panel("notices", notices(keep_sentence(settings)), elem_id="keep", visible=False)
    view = gr.HTML(
        "{}",
        html_template=asset("live.html"),
        js_on_load=asset("chart.js") + asset("follow.js"),
        head=PLOTLY_HEAD,
        server_functions=[tail, earlier, baselines],
        apply_default_css=False,
        elem_id="live",
    )
    return _Live(view, next_row, keep, resume, to_compare, to_evaluate, to_publish)


def _wire_setup(page: gr.Blocks, context: PlaygroundContext, corpus: CorpusParts, setup: _Setup) -> None:
    settings = context.settings

    def describe(
        source: str,
        files: list[str] | None,
        preset: str,
        time: float,
        minutes: float | None,
        more: str,
        *values: object,
    ) -> tuple[str, str]:
        chosen = time or minutes or 0.0
        try:
            overrides = changed_settings(preset, more, values)
            line = jobs.display_command(source, files, preset=preset, minutes=chosen, overrides=overrides)
        except FundamentaLLMError as error:
            line = str(error)
        return button_label(source, files, preset, chosen), line

    def measure(
        source: str,
        text: str,
        files: list[str] | None,
        preset: str,
        time: float,
        minutes: float | None,
        more: str,
        *values: object,
    ) -> str:
        try:
            overrides = changed_settings(preset, more, values)
            figures = jobs.measure(settings, source, text, files, preset, time or minutes or 0.0, overrides)
        except FundamentaLLMError as error:
            figures = {"error": str(error)}
        return json.dumps(figures)

    describe_inputs = [corpus.source, corpus.files, *setup.inputs]
    measure_inputs = [corpus.source, corpus.text, corpus.files, *setup.inputs]
    setup.time.change(lambda time: gr.update(visible=time == CUSTOM_TIME), setup.time, setup.minutes, **QUICK)
    # A new preset fills the fields first: described together with the old fields it would look edited.
    filled = setup.preset.change(field_values, setup.preset, setup.fields, **QUICK)
    described = filled.then(describe, describe_inputs, [setup.start, setup.command], **QUICK)
    described.then(measure, measure_inputs, setup.estimate, **_MEASURING)
    # A box that was just unfolded reports no input yet while it is being connected; leaving it, it does.
    edits = [component.input for component in (*setup.fields, setup.minutes)]
    edits += [setup.more.change, setup.more.blur]
    triggers = [page.load, setup.time.change, corpus.source.change, corpus.files.change, corpus.text.blur, *edits]
    gr.on(triggers, describe, describe_inputs, [setup.start, setup.command], trigger_mode="always_last", **QUICK)
    gr.on(triggers, measure, measure_inputs, setup.estimate, trigger_mode="always_last", **_MEASURING)


def _wire_training(
    page: gr.Blocks,
    context: PlaygroundContext,
    corpus: CorpusParts,
    header: HeaderParts,
    setup: _Setup,
    live: _Live,
) -> None:
    settings, secret, selector = context.settings, context.visitor_secret, context.run_selector

    def target(run_id: str | None, secret_value: str | None, request: gr.Request) -> str:
        if not run_id or run_id == BUNDLED_ID:
            return json.dumps({"run": None, "title": "Watch a model learn", "hint": _EMPTY_HINT})
        with shown_to_the_user():
            run = settings.open_run(run_id, Visitor.of(secret_value, request))
        return json.dumps(
            {"run": run.id, "secret": secret_value, "title": run_label(run, marked=False), "command": run.command}
        )

    def begin(
        request: gr.Request,
        secret_value: str | None,
        source: str,
        text: str,
        files: list[str] | None,
        preset: str,
        time: float,
        minutes: float | None,
        more: str,
        *values: object,
    ) -> Any:
        visitor = Visitor.of(secret_value, request)
        with shown_to_the_user():
            run = jobs.start_training(
                settings,
                visitor,
                source=source,
                text=text,
                files=files,
                preset=preset,
                minutes=time or minutes or 0.0,
                overrides=changed_settings(preset, more, values),
            )
        return refreshed_selector(settings, visitor, run.id)

    def go_on(request: gr.Request, run_id: str | None, secret_value: str | None) -> Any:
        visitor = Visitor.of(secret_value, request)
        with shown_to_the_user():
            run = jobs.resume_training(settings, visitor, run_id)
        return refreshed_selector(settings, visitor, run.id)

    def follow(status: str) -> tuple[Any, ...]:
        shown = json.loads(status)
        state, has_model = shown.get("state", "none"), shown.get("has_model", False)
        idle = state not in PENDING_STATES
        can_resume = state in ("stopped", "failed")
        return (
            gr.update(visible=idle and (has_model or can_resume)),
            gr.update(visible=can_resume),
            gr.update(visible=has_model),
            gr.update(visible=has_model),
            gr.update(visible=has_model),
            gr.update(visible=idle and has_model and settings.public and state != "bundled"),
        )

    # Pressing twice while the first press is on its way starts one training: trigger_mode "once".
    setup.start.click(
        begin,
        [secret, corpus.source, corpus.text, corpus.files, *setup.inputs],
        selector,
        concurrency_limit=4,
        concurrency_id="start",
        show_progress="hidden",
        api_visibility="private",
    ).success(None, None, None, js=_SHOW_LIVE)
    live.resume.click(
        go_on,
        [selector, secret],
        selector,
        concurrency_limit=4,
        concurrency_id="start",
        show_progress="hidden",
        api_visibility="private",
    )
    gr.on([selector.change, page.load], target, [selector, secret], live.view, **QUICK)
    live.view.select(
        follow,
        header.status,
        [live.next_row, live.resume, live.to_compare, live.to_evaluate, live.to_publish, live.keep],
        **QUICK,
    )
    live.to_compare.click(lambda: gr.Tabs(selected="compare"), None, context.tabs, **QUICK)
    live.to_evaluate.click(lambda: gr.Tabs(selected="evaluate"), None, context.tabs, **QUICK)
    live.to_publish.click(lambda: gr.Tabs(selected="publish"), None, context.tabs, **QUICK)


def keep_sentence(settings: PlaygroundSettings) -> str:
    """How long a model is kept on a public page, and how to keep it longer."""
    hours = settings.limits.run_hours
    where = "The disk of this Space is temporary: when it sleeps or restarts, every model on it is gone. "
    age = "" if hours is None else f"Models are kept here for {hours:g} hours at most. "
    return (
        f"{where if on_a_space() else ''}{age}Take yours along: download it or push it to the Hub in the Publish tab."
    )
