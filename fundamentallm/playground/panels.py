"""Panels that a script of ours draws from a plain value.

The template is constant and the script puts text on the page as ``textContent`` only, so that a corpus or a model that
writes HTML shows HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from fundamentallm.playground.theme import asset

QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""How an event is wired that answers at once: it takes no place in the queue, and is nobody's endpoint."""


def panel(
    kind: str,
    value: dict[str, object] | None = None,
    *,
    elem_id: str,
    head: str | None = None,
    visible: bool = True,
    follows_run: bool = False,
) -> gr.HTML:
    """A panel drawn by ``assets/<kind>.js`` inside ``<div class="fl-<kind>">``.

    When it ``follows_run``, its select event says, once the panel is in sight, that another run was chosen or that the
    chosen one has got a model or another state.
    """
    return gr.HTML(
        value or {},
        html_template=f'<div class="fl-{kind}"></div>',
        js_on_load=asset("panel.js") + asset(f"{kind}.js") + (asset("follow.js") if follows_run else ""),
        elem_id=elem_id,
        elem_classes="fl-panel",
        apply_default_css=False,
        head=head,
        visible=visible,
    )


def notices(*texts: str, kind: str = "warning") -> dict[str, object]:
    """The value of a panel of notices; ``kind`` is warning or error."""
    return {"items": [{"kind": kind, "text": text} for text in texts]}


def busy(starts: int = 1) -> list[object]:
    """Updates of the ``starts`` buttons that start something and of its Stop, when that has begun."""
    return [*[gr.update(interactive=False)] * starts, gr.update(visible=True)]


def stoppable(
    events: Sequence[Any],
    starts: Sequence[gr.Button],
    stop: gr.Button,
    shown: gr.HTML,
    ending: Callable[[dict[str, object]], dict[str, object]],
) -> None:
    """Let ``stop`` end these events, and the buttons be as before when one has ended, however it did.

    Neither the event's last step nor Stop's answer does that, which may both come before the event has ended for the
    browser: a button that is pressed until then is not heard.

    ``ending`` tells what ``shown``, the panel the events write to, says after Stop, given its value until then.
    """

    def after_stop(value: dict[str, object] | None) -> dict[str, object]:
        # The panel ignores what its stopped run had still sent.
        run = value.get("run") if value else None
        return {**ending(value or {}), "run": run, "stopped": True}

    for event in events:
        event.then(
            lambda: [*[gr.update(interactive=True)] * len(starts), gr.update(visible=False)],
            None,
            [*starts, stop],
            **QUICK,
        )
    stop.click(after_stop, shown, shown, cancels=list(events), **QUICK)
