"""How an error that a user can repair is shown on the page: its one sentence, and no traceback in the log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from fundamentallm.errors import FundamentaLLMError


@contextmanager
def shown_to_the_user() -> Iterator[None]:
    """Within it, an error of ours reaches the browser or the API caller as ``gr.Error``."""
    try:
        yield
    except FundamentaLLMError as error:
        raise gr.Error(str(error), print_exception=False) from None
