"""How the page looks: a theme of our own on system fonts, and the style sheets and scripts in assets/.

Paper and ink: warm neutrals, one petrol accent for what acts and what trains, one rust for what is held out. Nothing is
fetched from elsewhere, so the page looks the same offline.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import plotly
from gradio.routes import templates
from jinja2 import ChoiceLoader, DictLoader

ASSETS = Path(__file__).parent / "assets"
PLOTLY_JS = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
PLOTLY_HEAD = f'<script src="gradio_api/file={PLOTLY_JS.as_posix()}"></script>'
"""For the ``head`` of a ``gr.HTML`` whose script draws with Plotly; loaded once however many components ask."""
FRAME_CSS = """
.gradio-container { overflow: visible !important; }
.gradio-container > .main.fillable { max-width: 1640px !important; padding: 0 20px 32px !important; }
html { scroll-padding-top: 84px; }
@media (max-width: 760px) {
  .gradio-container > .main.fillable { padding: 0 14px 24px !important; }
  html { scroll-padding-top: 108px; }
}
"""
HEAD = (
    f"<style>{FRAME_CSS}</style>"
    '<meta name="color-scheme" content="light dark">'
    '<link rel="icon" href="data:image/svg+xml,'
    "%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E%3Crect width='32' height='32' rx='8' "
    "fill='%230f6b66'/%3E%3Cpath d='M6 9c3 11 8 14 20 14' fill='none' stroke='white' stroke-width='3.5' "
    "stroke-linecap='round'/%3E%3C/svg%3E\">"
    f"<script>{(ASSETS / 'page.js').read_text(encoding='utf-8')}</script>"
)

_PETROL = gr.themes.Color(
    name="petrol",
    c50="#eef7f6",
    c100="#d5ebe9",
    c200="#aad7d3",
    c300="#77bcb7",
    c400="#469c97",
    c500="#23807b",
    c600="#0f6b66",
    c700="#0d5652",
    c800="#0e4643",
    c900="#0f3a38",
    c950="#052423",
)
_PAPER = gr.themes.Color(
    name="paper",
    c50="#faf8f4",
    c100="#f3f0e9",
    c200="#e6e1d6",
    c300="#d2cbbc",
    c400="#a79f8e",
    c500="#7a7365",
    c600="#5c564b",
    c700="#443f37",
    c800="#2a2722",
    c900="#1d1b18",
    c950="#141310",
)
_SANS = (
    "-apple-system",
    "BlinkMacSystemFont",
    "Segoe UI",
    "Roboto",
    "Helvetica Neue",
    "Noto Sans",
    "Liberation Sans",
    "Arial",
    "sans-serif",
)
_MONO = ("ui-monospace", "SF Mono", "Cascadia Code", "Menlo", "Consolas", "Liberation Mono", "monospace")


def serve_assets() -> None:
    """Let the server hand out plotly.min.js, and nothing else; put frames.js in front of Gradio's own scripts."""
    gr.set_static_paths([PLOTLY_JS])
    pages = templates.env
    if pages.loader is not None and not isinstance(pages.loader, ChoiceLoader):
        name = "frontend/index.html"
        source, *_ = pages.loader.get_source(pages, name)
        changed = source.replace("<head>", f"<head><script>{asset('frames.js')}</script>", 1)
        pages.loader = ChoiceLoader([DictLoader({name: changed}), pages.loader])


def stylesheets() -> list[Path]:
    """Every style sheet in assets/, the page's own first."""
    return sorted(ASSETS.glob("*.css"), key=lambda path: (path.name != "page.css", path.name))


def asset(name: str) -> str:
    """The text of a file in assets/, for ``html_template`` and ``js_on_load``."""
    return (ASSETS / name).read_text(encoding="utf-8")


def build_theme() -> gr.themes.Base:
    """The theme, light and dark."""
    theme = gr.themes.Base(
        primary_hue=_PETROL,
        secondary_hue=_PETROL,
        neutral_hue=_PAPER,
        text_size=gr.themes.sizes.text_md,
        spacing_size=gr.themes.sizes.spacing_md,
        radius_size=gr.themes.sizes.radius_md,
        font=_SANS,
        font_mono=_MONO,
    )
    return theme.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="#ece7dc",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        background_fill_primary="#fffefb",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="*neutral_800",
        border_color_primary="*neutral_200",
        border_color_primary_dark="#38342d",
        border_color_accent="*primary_600",
        border_color_accent_dark="*primary_400",
        color_accent="*primary_600",
        color_accent_soft="*primary_50",
        color_accent_soft_dark="#12302e",
        link_text_color="*primary_600",
        link_text_color_dark="*primary_300",
        block_background_fill="#fffefb",
        block_background_fill_dark="*neutral_900",
        block_border_color="*neutral_200",
        block_border_color_dark="#38342d",
        block_border_width="1px",
        block_radius="10px",
        container_radius="10px",
        block_shadow="none",
        block_shadow_dark="none",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_400",
        block_label_text_weight="600",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_400",
        block_title_text_size="*text_sm",
        block_title_text_weight="600",
        panel_background_fill="transparent",
        panel_background_fill_dark="transparent",
        input_background_fill="#fffefb",
        input_background_fill_dark="*neutral_950",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="#4a453c",
        input_border_color_focus="*primary_500",
        input_border_color_focus_dark="*primary_400",
        input_radius="8px",
        input_shadow="none",
        input_shadow_focus="0 0 0 3px rgba(35, 128, 123, 0.18)",
        input_shadow_focus_dark="0 0 0 3px rgba(70, 156, 151, 0.25)",
        checkbox_label_background_fill="#fffefb",
        checkbox_label_background_fill_dark="*neutral_900",
        checkbox_label_background_fill_hover="*neutral_100",
        checkbox_label_background_fill_hover_dark="*neutral_800",
        checkbox_label_background_fill_selected="*primary_50",
        checkbox_label_background_fill_selected_dark="#12302e",
        checkbox_label_border_color="*neutral_200",
        checkbox_label_border_color_dark="#38342d",
        checkbox_label_border_color_selected="*primary_500",
        checkbox_label_border_color_selected_dark="*primary_400",
        checkbox_label_border_width="1px",
        checkbox_label_shadow="none",
        checkbox_background_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*primary_500",
        checkbox_border_color_selected="*primary_600",
        checkbox_border_color_selected_dark="*primary_500",
        button_border_width="1px",
        button_large_radius="8px",
        button_medium_radius="8px",
        button_small_radius="7px",
        button_large_text_weight="600",
        button_medium_text_weight="600",
        button_small_text_weight="500",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_500",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_400",
        button_primary_border_color="transparent",
        button_primary_border_color_dark="transparent",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_secondary_background_fill="#fffefb",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="#4a453c",
        button_secondary_text_color="*neutral_800",
        button_secondary_text_color_dark="#ece7dc",
        button_cancel_background_fill="#fffefb",
        button_cancel_background_fill_dark="*neutral_900",
        button_cancel_background_fill_hover="#fbeae4",
        button_cancel_background_fill_hover_dark="#3a1f16",
        button_cancel_border_color="#d9a18e",
        button_cancel_border_color_dark="#7a3d2a",
        button_cancel_text_color="#a23b1e",
        button_cancel_text_color_dark="#f0a58b",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
        stat_background_fill="*primary_200",
        stat_background_fill_dark="*primary_800",
        table_border_color="*neutral_200",
        table_border_color_dark="#38342d",
        table_even_background_fill="transparent",
        table_even_background_fill_dark="transparent",
        table_odd_background_fill="*neutral_50",
        table_odd_background_fill_dark="*neutral_950",
        code_background_fill="*neutral_100",
        code_background_fill_dark="*neutral_950",
        layout_gap="16px",
        form_gap_width="0px",
        section_header_text_weight="600",
    )
