"""How the page looks: a theme of our own on system fonts, and the style sheets and scripts in assets/."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import plotly

ASSETS = Path(__file__).parent / "assets"
PLOTLY_JS = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
HEAD = ""


def serve_assets() -> None:
    """Let the server hand out plotly.min.js, and nothing else."""
    gr.set_static_paths([PLOTLY_JS])


def stylesheets() -> list[Path]:
    """Every style sheet in assets/."""
    return sorted(ASSETS.glob("*.css"))


def asset(name: str) -> str:
    """The text of a file in assets/, for ``js_on_load`` and the like."""
    return (ASSETS / name).read_text(encoding="utf-8")


def build_theme() -> gr.themes.Base:
    """The theme."""
    return gr.themes.Base()
