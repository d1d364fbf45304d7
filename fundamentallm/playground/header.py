"""The header, always in sight: which run, how it is doing, how long it still takes, and Stop."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from fundamentallm.playground.settings import PlaygroundSettings


@dataclass(frozen=True)
class HeaderParts:
    """The header's components."""

    run_selector: gr.Dropdown
    state: gr.HTML
    stop: gr.Button


def build(settings: PlaygroundSettings, visitor_secret: gr.BrowserState) -> HeaderParts:
    """Lay the header out."""
    with gr.Row(elem_id="header"):
        selector = gr.Dropdown(choices=[], label="Run")
        state = gr.HTML()
        stop = gr.Button("Stop")
    return HeaderParts(selector, state, stop)


def wire(settings: PlaygroundSettings, visitor_secret: gr.BrowserState, parts: HeaderParts) -> None:
    """Connect the header's events."""
