"""``fundamentallm push`` and ``export``."""

from __future__ import annotations

import click

from fundamentallm.cli.commands import debug_option
from fundamentallm.cli.output import load_model, write


@click.command(epilog="Example: fundamentallm push runs/2026-01-31_120000-tiny-tales my-name/tiny-tales --public")
@click.argument("checkpoint")
@click.argument("repo_id", metavar="REPO_ID")
@click.option("--public", is_flag=True, help="Let everybody see it; only you can when not given.")
@click.option("--message", help="What the commit says.")
@click.option("--space", is_flag=True, help="Create a Space of the same name too, a page in which the model writes.")
@debug_option
def push(checkpoint: str, repo_id: str, public: bool, message: str | None, space: bool) -> None:
    """Publish the model in CHECKPOINT as the repository REPO_ID (user/name) on the Hugging Face Hub, with a model card.

    The token is that of `hf auth login`, or the one in the environment variable HF_TOKEN. A second push to the same
    repository replaces the model in one commit.
    """

    def tell(description: str, _share: float) -> None:
        click.echo(description, err=True)

    model = load_model(checkpoint)
    write(f"{model.push_to_hub(repo_id, private=not public, message=message, progress=tell)}\n")
    if space:
        write(f"{model.push_space(repo_id, private=not public, progress=tell)}\n")


@click.command(epilog="Example: fundamentallm export runs/2026-01-31_120000-tiny-tales tales.gguf")
@click.argument("checkpoint")
@click.argument("path", metavar="PATH")
@debug_option
def export(checkpoint: str, path: str) -> None:
    """Write the model in CHECKPOINT to PATH: a folder, a .zip of it, or one .pt, .safetensors or .gguf file."""
    load_model(checkpoint).save(path)
    write(f"{path}\n")
