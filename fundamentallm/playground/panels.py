"""Panels that a script of ours draws from a plain value.

The template is constant and the script puts text on the page as ``textContent`` only, so that a corpus or a model that
writes HTML shows HTML.
"""

from __future__ import annotations

import gradio as gr

from fundamentallm.playground.theme import asset


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
