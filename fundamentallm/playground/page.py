"""The page: header, tabs, and how the server is launched."""

from __future__ import annotations

import importlib
import os
import threading
from pathlib import Path

import gradio as gr

from fundamentallm.playground import (
    api,
    caretaker,
    compare_tab,
    corpus_tab,
    evaluate_tab,
    header,
    publish_tab,
    theme,
    train_tab,
)
from fundamentallm.playground.settings import PlaygroundContext, PlaygroundSettings


def build_page(settings: PlaygroundSettings) -> gr.Blocks:
    """The whole page for these settings, not yet launched."""
    with gr.Blocks(title="FundamentaLLM", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        # Fixed key and secret, so that a browser keeps its runs when the server restarts. The value is a credential
        # that the client holds, not something the server trusts.
        secret = gr.BrowserState(None, storage_key="fundamentallm-visitor", secret="fundamentallm-visitor")
        parts = header.build(settings, secret)
        with gr.Tabs(elem_id="tabs") as tabs:
            context = PlaygroundContext(settings, parts.run_selector, secret, tabs)
            with gr.Tab("Corpus", id="corpus"):
                corpus = corpus_tab.build(context)
            with gr.Tab("Train", id="train"):
                train_tab.build(page, context, corpus, parts)
            with gr.Tab("Compare", id="compare"):
                compare_tab.build(context)
            with gr.Tab("Evaluate", id="evaluate"):
                evaluate_tab.build(context)
            with gr.Tab("Publish", id="publish") as publish:
                publish_tab.build(context, publish)
        api.build(context)
        header.wire(page, settings, secret, parts)
    return page  # type: ignore[no-any-return, unused-ignore]


def launch(
    host: str | None = None,
    port: int | None = None,
    runs_directory: str | Path | None = None,
    public: bool | None = None,
    *,
    open_browser: bool = False,
) -> None:
    """Serve the playground until interrupted.

    Args:
        host: Address to listen on; this computer only when not given.
        port: Port; the first free one from 7860 when not given.
        runs_directory: Where runs are; ``runs`` when not given.
        public: Whether visitors see only their own runs; when not given, only on a Space.
        open_browser: Whether to open a browser on the page.
    """
    settings = PlaygroundSettings.create(runs_directory, public)
    settings.runs_directory.mkdir(parents=True, exist_ok=True)
    if settings.public:
        # Old uploads are removed, so they lie where nobody else's files do.
        os.environ.setdefault("GRADIO_TEMP_DIR", str(settings.uploads_directory))
    theme.serve_assets()
    page = build_page(settings)
    page.launch(
        server_name=host,
        server_port=port,
        inbrowser=open_browser,
        share=False,
        quiet=True,  # it would advise to share a page that is not made for that
        prevent_thread_lock=True,
        ssr_mode=False,
        show_error=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=["api"],
        max_file_size=settings.limits.upload_bytes,
        theme=theme.build_theme(),
        css_paths=theme.stylesheets(),
        head=theme.HEAD,
    )
    # Gradio looks a thousand times a second for queued work and a hundred times for progress to tell: 3.6 % of a
    # processor for a server at rest, and a training waits whenever one of its threads does.
    page._queue.sleep_when_free = 0.1
    page._queue.progress_update_sleep_when_free = 0.25
    ended = caretaker.start(settings)
    try:
        print(f"The playground is on {page.local_url} (stop it with Ctrl-C).", flush=True)
        # PyTorch takes seconds to load: after the page is there, and before anyone needs it.
        threading.Thread(target=importlib.import_module, args=("fundamentallm.language_model",), daemon=True).start()
        page.block_thread()
    except KeyboardInterrupt:  # before it blocked, which ends at Ctrl-C by itself
        page.close(verbose=False)
    finally:
        ended.set()
