"""The named endpoints that gradio_client can call."""

from __future__ import annotations

from fundamentallm.playground.settings import PlaygroundContext


def build(context: PlaygroundContext) -> None:
    """Register the endpoints; called inside the Blocks, after all tabs."""
