"""The Train tab: one button, and what there is to see while a model learns."""

from __future__ import annotations

import gradio as gr

from fundamentallm.playground.header import HeaderParts
from fundamentallm.playground.settings import CorpusParts, PlaygroundContext


def build(context: PlaygroundContext, corpus: CorpusParts, header: HeaderParts) -> None:
    """Lay the tab out and connect it."""
    gr.Markdown("Train")
