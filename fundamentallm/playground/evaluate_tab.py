"""The Evaluate tab."""

from __future__ import annotations

import gradio as gr

from fundamentallm.playground.settings import PlaygroundContext


def build(context: PlaygroundContext) -> None:
    """Lay the tab out and connect it."""
    gr.Markdown("Evaluate")
