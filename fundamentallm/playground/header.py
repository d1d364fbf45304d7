"""The header, always in sight: which run, how it is doing, how long it still takes, and Stop."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import gradio as gr

from fundamentallm.errors import FundamentaLLMError
from fundamentallm.playground import jobs
from fundamentallm.playground.errors import shown_to_the_user
from fundamentallm.playground.panels import QUICK
from fundamentallm.playground.settings import BUNDLED_ID, PlaygroundSettings, Visitor, bundled_checkpoint
from fundamentallm.playground.theme import asset
from fundamentallm.runs.run_directory import RunDirectory

_LABELS = {
    "waiting": "Waiting",
    "starting": "Getting ready",
    "running": "Learning",
    "stopping": "Stopping",
    "finished": "Finished",
    "stopped": "Stopped",
    "failed": "Failed",
}
NO_RUN = ""
_LISTED = 100
"""Runs offered in the selector, newest first."""


@dataclass(frozen=True)
class HeaderParts:
    """The header's components."""

    run_selector: gr.Dropdown
    status: gr.HTML
    """Value: JSON for assets/header.js."""
    stop: gr.Button


def build(settings: PlaygroundSettings, visitor_secret: gr.BrowserState) -> HeaderParts:
    """Lay the header out."""

    # Reachable by anyone with any argument (Gradio's /component_server): it authorises.
    def look(question: object) -> dict[str, Any]:
        return answer_look(settings, question)

    with gr.Row(elem_id="header"):
        gr.HTML(
            asset("brand.html"),
            elem_id="header-brand",
            apply_default_css=False,
            js_on_load=None,
        )
        selector = gr.Dropdown(
            choices=[],
            label="Run",
            show_label=False,
            container=False,
            filterable=False,
            elem_id="run-selector",
            min_width=0,
        )
        status = gr.HTML(
            "{}",
            html_template=asset("header.html"),
            js_on_load=asset("header.js"),
            server_functions=[look],
            elem_id="header-status",
            apply_default_css=False,
        )
        stop = gr.Button("Stop", variant="stop", size="md", interactive=False, elem_id="stop", min_width=0)
    return HeaderParts(selector, status, stop)


def wire(page: gr.Blocks, settings: PlaygroundSettings, visitor_secret: gr.BrowserState, parts: HeaderParts) -> None:
    """Connect the header's events."""

    def look_again(run_id: str | None, secret: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Updates of selector, status view and Stop button for a chosen run, or the first one if it is not listed."""
        visitor = Visitor.of(secret, request)
        runs = listed_runs(settings, visitor)
        choices = selector_choices(runs)
        known = [value for _, value in choices]
        update: dict[str, Any] = {"choices": choices}
        if run_id not in known:
            run_id = update["value"] = first_choice(runs)
        with shown_to_the_user():
            view = state_view(settings, run_id, visitor)
        can_stop = view["state"] in ("waiting", "starting", "running")
        label = "Cancel" if view["state"] == "waiting" else "Stop"
        view |= {"listed": _fingerprint(choices), "secret": secret}  # the view asks with the visitor's secret
        return gr.update(**update), json.dumps(view), gr.update(interactive=can_stop, value=label)

    def open_page(secret: str | None, request: gr.Request) -> tuple[Any, ...]:
        secret = secret if isinstance(secret, str) and len(secret) >= 16 else secrets.token_urlsafe(24)
        return secret, *look_again(None, secret, request)

    def stop(run_id: str | None, secret: str | None, request: gr.Request) -> tuple[Any, ...]:
        with shown_to_the_user():
            jobs.stop_training(settings, Visitor.of(secret, request), run_id)
        return look_again(run_id, secret, request)

    chosen, shown = [parts.run_selector, visitor_secret], [parts.run_selector, parts.status, parts.stop]
    page.load(open_page, visitor_secret, [visitor_secret, *shown], **QUICK)
    # One event, asked again at its end when it was asked for meanwhile: the last answer is about the last choice.
    gr.on(
        [parts.status.apply, parts.run_selector.change],
        look_again,
        chosen,
        shown,
        trigger_mode="always_last",
        **QUICK,
    )
    parts.stop.click(stop, chosen, shown, **QUICK)


def answer_look(settings: PlaygroundSettings, question: object) -> dict[str, Any]:
    """How a run is doing, for assets/header.js, which asks all the time: an event of Gradio's costs the page far more.

    Args:
        settings: Decides whether the asker may see the run.
        question: ``{"run", "secret"}`` from the browser, not to be trusted.
    """
    asked = question if isinstance(question, dict) else {}
    visitor = Visitor.of(asked.get("secret"))
    run_id = asked.get("run")
    view: dict[str, Any] = {"listed": _fingerprint(selector_choices(listed_runs(settings, visitor)))}
    try:
        return view | state_view(settings, run_id if isinstance(run_id, str) else None, visitor)
    except FundamentaLLMError:  # it is gone: the list says so
        return view


def listed_runs(settings: PlaygroundSettings, visitor: Visitor) -> list[RunDirectory]:
    """The runs that the selector offers, newest first."""
    return settings.visible_runs(visitor)[:_LISTED]


def selector_choices(runs: Sequence[RunDirectory]) -> list[list[str]]:
    """Label and value of every run, and of the bundled model."""
    choices = [[run_label(run), run.id] for run in runs]
    if bundled_checkpoint() is not None:
        choices.append(["Tiny model (bundled)", BUNDLED_ID])
    return choices or [["No run yet", NO_RUN]]


def refreshed_selector(settings: PlaygroundSettings, visitor: Visitor, run_id: str) -> Any:
    """An update of the selector that chooses a run which it may not list yet."""
    return gr.update(choices=selector_choices(listed_runs(settings, visitor)), value=run_id)


def first_choice(runs: Sequence[RunDirectory]) -> str:
    """What a freshly opened page shows: a training under way or waiting, else the newest run or the bundled model."""
    states = {run.id: run.status() for run in runs}
    active = next((run_id for run_id, status in states.items() if status.is_active), None)
    active = active or next((run_id for run_id, status in states.items() if status.state == "waiting"), None)
    fallback = BUNDLED_ID if bundled_checkpoint() is not None else NO_RUN
    return active or (runs[0].id if runs else fallback)


def run_label(run: RunDirectory, *, marked: bool = True) -> str:
    """A run's name for people: what it learned from, and when; marked when it waits, is at work, or failed."""
    match = re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)_(\d\d)(\d\d)\d\d-(.+)", run.id)
    marks = {"waiting": "○ ", "starting": "● ", "running": "● ", "stopping": "● ", "failed": "✕ "}
    mark = marks.get(run.status().state, "") if marked else ""
    if match is None:
        return mark + run.id
    year, month, day, hour, minute = (int(match[i]) for i in range(1, 6))
    when = datetime(year, month, day, hour, minute)
    return f"{mark}{match[6]} · {when:%d %b, %H:%M}"


def _fingerprint(choices: list[list[str]]) -> str:
    """Changes when what the selector offers does."""
    return hashlib.sha256(json.dumps(choices).encode()).hexdigest()[:16]


def state_view(settings: PlaygroundSettings, run_id: str | None, visitor: Visitor) -> dict[str, Any]:
    """What assets/header.js shows of a chosen run.

    Raises:
        FundamentaLLMError: The visitor has no such run.
    """
    view: dict[str, Any] = {"run": run_id or NO_RUN}
    if not run_id:
        return view | {"state": "none", "label": "No run yet", "note": "", "has_model": False}
    if run_id == BUNDLED_ID:
        return view | {"state": "bundled", "label": "Ready", "note": "Try it in Compare", "has_model": True}
    run = settings.open_run(run_id, visitor)
    status = run.status()
    best = status.best_val_loss
    view |= {
        "has_model": run.has_checkpoint,
        "state": status.state,
        "label": "Measuring" if status.state == "running" and status.progress >= 1 else _LABELS[status.state],
        "progress": 1.0 if status.state == "finished" else status.progress,
        "remaining_seconds": status.remaining_seconds,
        "message": status.message,
        "note": f"best loss {best:.3f}" if best is not None and not status.is_active else "",
    }
    place = jobs.place_of(settings, run, status.state)
    if place is not None:
        view |= {"note": place.phrase, "message": place.sentence}
    return view
