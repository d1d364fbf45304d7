"""The Corpus tab."""

from __future__ import annotations

import gradio as gr

from fundamentallm.playground.settings import CorpusParts, PlaygroundContext


def build(context: PlaygroundContext) -> CorpusParts:
    """Lay the tab out and connect it."""
    return CorpusParts(gr.Radio(["tiny-tales"], value="tiny-tales"), gr.Textbox(), gr.File(file_count="multiple"))
