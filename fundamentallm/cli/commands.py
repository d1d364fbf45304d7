"""The command ``fundamentallm``: finds the subcommand, and turns whatever goes wrong into one sentence.

A subcommand's module is imported when that subcommand is called, and torch when it does its work.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeVar

import click

from fundamentallm import __version__
from fundamentallm.errors import FundamentaLLMError

# Name: (module, one line for the list of commands). The function in the module is called like the subcommand.
_COMMANDS = {
    "train": ("fundamentallm.cli.train", "Train a language model from scratch on a text."),
    "generate": ("fundamentallm.cli.generate", "Let a model write."),
    "evaluate": ("fundamentallm.cli.reports", "Measure how well a model predicts a text."),
    "info": ("fundamentallm.cli.reports", "Show what a checkpoint is."),
    "export": ("fundamentallm.cli.push", "Write a model as one file, or as a folder for transformers."),
    "push": ("fundamentallm.cli.push", "Publish a model on the Hugging Face Hub."),
    "runs": ("fundamentallm.cli.reports", "List the runs, newest first."),
    "playground": ("fundamentallm.cli.reports", "Open the page in which all of this happens."),
}
USER_ERROR = 2
INTERRUPTED = 130  # what shells report for a process ended by Ctrl-C

_Function = TypeVar("_Function", bound=Callable[..., object])


class Commands(click.Group):
    """The group of all subcommands."""

    show_traceback = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every subcommand, in the order of a first acquaintance."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the subcommand called ``cmd_name``."""
        if cmd_name not in _COMMANDS:
            return None
        command = vars(import_module(_COMMANDS[cmd_name][0]))[cmd_name]
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; a reader that closed the pipe (``| head``) has had enough, which is no error."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            # What is left in the buffer would raise once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return None

    def main(self, args: Sequence[str] | None = None, *positional: Any, **options: Any) -> Any:
        """Run the command line and exit with 0, with 2 after one sentence, or with 130 after Ctrl-C."""
        self.show_traceback = False
        options["standalone_mode"] = False
        try:
            sys.exit(super().main(args, *positional, **options) or 0)
        except click.Abort:
            sys.exit(INTERRUPTED)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx is not None else "fundamentallm"
            self._fail(error, f"{error.format_message().rstrip('.')}; `{path} --help` shows what is possible.")
        except click.ClickException as error:
            self._fail(error, error.format_message())
        except FundamentaLLMError as error:
            self._fail(error, str(error))
        except OSError as error:
            if error.strerror is None:
                raise
            place = f"{str(error.filename)!r}: " if error.filename is not None else ""
            self._fail(error, f"{place}{error.strerror}.")

    def _fail(self, error: Exception, sentence: str) -> None:
        if self.show_traceback:
            traceback.print_exception(error)
        else:
            click.secho(" ".join(sentence.split()), fg="red", err=True)
        sys.exit(USER_ERROR)


def debug_option(function: _Function) -> _Function:
    """Give a command ``--debug``."""

    def remember(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        root = ctx.find_root().command
        if value and isinstance(root, Commands):
            root.show_traceback = True

    option = click.option(
        "--debug",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=remember,
        help="Show the traceback of an error.",
    )
    return option(function)


@click.group(
    "fundamentallm",
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start here: fundamentallm train tiny-tales --preset small --minutes 1",
)
@click.version_option(__version__, message="fundamentallm %(version)s")
@debug_option
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Train a language model from scratch on your own text, and watch it learn to write.

    CHECKPOINT, wherever a command asks for one, is a run (its best checkpoint), a checkpoint folder, a .safetensors or
    .pt file, or a repository on the Hugging Face Hub: user/name, or user/name@revision.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the installed command."""
    # A process that ends looks for cycles among all that torch has made, several times; nobody needs that memory any
    # more. Without it every command that loads torch is done 0.35 s earlier.
    atexit.register(gc.freeze)
    for stream in (sys.stdout, sys.stderr):
        # A model may write characters that the terminal's encoding lacks.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    cli.main(args, prog_name="fundamentallm")
