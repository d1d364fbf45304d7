"""``fundamentallm generate --interactive``: prompt after prompt, with settings changed in between.

At a terminal prompt_toolkit edits the line and remembers earlier ones; from a pipe the lines are read as they come.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fundamentallm.cli.generate import stream, warn_about_unknown_characters, with_seed
from fundamentallm.cli.output import output_console, printable, table, warn, write, write_table
from fundamentallm.config import GenerationConfig, field_help
from fundamentallm.errors import ConfigError, FundamentaLLMError, GenerationError
from fundamentallm.language_model import LanguageModel

_STRATEGIES = ("greedy", "temperature", "top-k", "top-p")
_SETTING = re.compile(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""")  # a word, in which quotes may hold blanks
_HELP = (
    ("text", "what the model shall continue (// for a text that begins with /)"),
    ("/set temperature=0.7", "change a setting, or several; none takes one back"),
    ("/settings", "show the settings"),
    ("/compare text", "continue the text, or the last one, greedily and with three samplers side by side"),
    ("/history", "show what was written"),
    ("/save FILE", "save what was written as a new text file"),
    ("/quit", "leave; Ctrl-D does too, and Ctrl-C stops the writing"),
)


@dataclass
class Interactive:
    """One conversation with a model."""

    model: LanguageModel
    settings: GenerationConfig
    history: list[tuple[str, str]] = field(default_factory=list)
    """Prompts and what the model wrote after them."""

    def run(self) -> None:
        """Read and answer lines until the end."""
        if sys.stdin.isatty():
            write(f"{self.model!r}\nType the beginning of a text, or /help.\n")
        for line in _lines():
            try:
                if not self._answer(line):
                    return
            except KeyboardInterrupt:
                write("\n")
                warn("Stopped.")
            except FundamentaLLMError as error:
                warn(str(error))
            except OSError as error:
                if isinstance(error, BrokenPipeError):
                    raise
                warn(f"{error.filename}: {error.strerror}.")

    def _answer(self, line: str) -> bool:
        """Do what the line says; False ends the conversation."""
        if not line.strip():
            return True
        if not line.startswith("/") or line.startswith("//"):
            self._write_after(line.removeprefix("/") if line.startswith("//") else line)
            return True
        name, _, argument = line.strip().partition(" ")
        if name in ("/quit", "/exit"):
            return False
        actions: dict[str, Callable[[str], None]] = {
            "/help": self._show_help,
            "/set": self._set,
            "/settings": self._show_settings,
            "/compare": self._compare,
            "/history": self._show_history,
            "/save": self._save,
        }
        if name not in actions:
            raise GenerationError(f"There is no command {name}: /help lists them.")
        actions[name](argument.strip())
        return True

    def _write_after(self, prompt: str) -> None:
        warn_about_unknown_characters(self.model, prompt)
        written: list[str] = []
        try:
            stream(self.model, prompt, with_seed(self.settings), written.append)
        finally:  # what was written before Ctrl-C is history too
            self.history.append((prompt, "".join(written)))

    def _show_help(self, _: str) -> None:
        write_table(table("", ["", ""], list(_HELP), header=False))

    def _set(self, argument: str) -> None:
        changes = {}
        for part in _SETTING.findall(argument):
            name, separator, value = part.partition("=")
            if not separator or name not in GenerationConfig.model_fields:
                known = ", ".join(GenerationConfig.model_fields)
                raise ConfigError(f"{part!r} sets nothing: write name=value, as in temperature=0.7, of {known}.")
            changes[name] = _parsed(name, value)
        if not changes:
            raise ConfigError("Say what to set, as in /set temperature=0.7 top_k=20.")
        config = self.model.config.with_values(generation=self.settings.model_dump() | changes)
        self.settings = config.generation

    def _show_settings(self, _: str) -> None:
        rows = [
            (name, "none" if value in (None, ()) else str(value), field_help("generation", name))
            for name, value in self.settings.model_dump().items()
        ]
        write_table(table("", ["Setting", "Value", ""], rows))

    def _compare(self, argument: str) -> None:
        if not argument and not self.history:
            raise GenerationError("Say which text to continue, as in /compare Once upon a time.")
        prompt = argument or self.history[-1][0]
        warn_about_unknown_characters(self.model, prompt)
        settings = with_seed(self.settings)
        columns = [settings.model_copy(update={"strategy": strategy}) for strategy in _STRATEGIES]
        texts = [""] * len(columns)
        steps = self.model.compare(prompt, columns, seed=settings.seed)
        with Live(_side_by_side(texts), console=output_console(), refresh_per_second=10) as live:
            for pieces in steps:
                texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
                live.update(_side_by_side(texts))
        for strategy, text in zip(_STRATEGIES, texts, strict=True):
            self.history.append((prompt, f"{text}\n[{strategy}]"))

    def _show_history(self, _: str) -> None:
        write(printable(self._transcript()) or "Nothing has been written yet.\n")

    def _save(self, argument: str) -> None:
        if not argument:
            raise GenerationError("Say where to save, as in /save story.txt.")
        try:
            with Path(argument).expanduser().open("x", encoding="utf-8", errors="replace") as file:
                file.write(self._transcript())
        except FileExistsError:
            raise GenerationError(f"{argument!r} exists already: choose another name.") from None
        write(f"Saved in {argument}.\n")

    def _transcript(self) -> str:
        return "\n".join(f"{prompt}{text}\n" for prompt, text in self.history)


def _lines() -> Iterator[str]:
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    # Imported here: it takes a third of a second, which a pipe need not wait for.
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter

    commands = sorted({usage.split()[0] for usage, _ in _HELP if usage.startswith("/")})
    completer = WordCompleter(commands, sentence=True)
    session: PromptSession[str] = PromptSession(completer=completer, complete_while_typing=False)
    while True:
        try:
            yield session.prompt("› ")
        except KeyboardInterrupt:
            continue  # the line is dropped, as in every shell
        except EOFError:
            return


def _parsed(name: str, value: str) -> object:
    if value.lower() in ("none", "off"):
        return GenerationConfig.model_fields[name].default
    if name == "strategy":
        return value
    try:
        parsed: object = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return (str(parsed),) if name == "stop_sequences" and not isinstance(parsed, list) else parsed


def _side_by_side(texts: list[str]) -> Table:
    grid = Table(expand=True)
    for strategy in _STRATEGIES:
        grid.add_column(strategy, ratio=1, overflow="fold")
    grid.add_row(*(Text(printable(text, always=True)) for text in texts))
    return grid
