"""The entry of the Space and of `python app.py`: builds the playground and serves it."""

import os

from fundamentallm.playground.page import launch

if __name__ == "__main__":
    port = os.environ.get("PORT") or os.environ.get("GRADIO_SERVER_PORT")
    launch(
        host=os.environ.get("HOST") or os.environ.get("GRADIO_SERVER_NAME"),
        port=int(port) if port else None,
    )
