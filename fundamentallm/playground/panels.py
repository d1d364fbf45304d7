"""Panels that a script of ours draws from a plain value.

The template is constant and the script puts text on the page as ``textContent`` only, so that a corpus or a model that
writes HTML shows HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from fundamentallm.playground.theme import asset

QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""How an event is wired that answers at once: it takes no place in the queue, and is nobody's endpoint."""


def panel(
    kind: str, value: dict[str, object] | None = None, *, elem_id: str, head: str | None = None, visible: bool = True
) -> gr.HTML:
    """A panel drawn by ``assets/<kind>.js`` inside ``<div class="fl-<kind>">``."""
    return gr.HTML(
        value or {},
        html_template=f'<div class="fl-{kind}"></div>',
        js_on_load=asset("panel.js") + asset(f"{kind}.js"),
        elem_id=elem_id,
        elem_classes="fl-panel",
        apply_default_css=False,
        head=head,
        visible=visible,
    )


def stopped(value: object) -> dict[str, object]:
    """The value of a panel whose run was stopped: the panel then ignores what that run had still sent."""
    run = value.get("run") if isinstance(value, dict) else None
    return {"run": run, "stopped": True}


def notices(*texts: str, kind: str = "warning") -> dict[str, object]:
    """The value of a panel of notices; ``kind`` is warning or error."""
    return {"items": [{"kind": kind, "text": text} for text in texts]}


def busy() -> list[object]:
    """Updates of a button that starts something and of its Stop, when that has begun."""
    return [gr.update(interactive=False), gr.update(visible=True)]


def idle() -> list[object]:
    """The same when nothing is under way."""
    return [gr.update(interactive=True), gr.update(visible=False)]


def idle_after(events: Sequence[Any], buttons: Sequence[gr.Button]) -> None:
    """Make a button and its Stop ``idle`` when one of these events has ended, however it did.

    Not as the last step of the event itself: a button that can be pressed before its event has ended is not heard.
    """
    for event in events:
        event.then(idle, None, list(buttons), **QUICK)
