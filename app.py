"""The entry of the Space and of `python app.py`: builds the playground and serves it."""

import os

from fundamentallm.playground.page import launch

if os.environ.get("SPACES_ZERO_GPU"):
    import spaces

    # ZeroGPU starts no Space in which no function asks for its GPU. Here none needs one: trainings are processes of
    # their own, to which it lends none, and run on the CPU.
    spaces.GPU(lambda: None)

if __name__ == "__main__":
    port = os.environ.get("PORT") or os.environ.get("GRADIO_SERVER_PORT")
    launch(
        host=os.environ.get("HOST") or os.environ.get("GRADIO_SERVER_NAME"),
        port=int(port) if port else None,
    )
