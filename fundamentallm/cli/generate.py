"""``fundamentallm generate``."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from fundamentallm.cli.commands import debug_option
from fundamentallm.cli.output import load_model, printable, warn, write
from fundamentallm.config import GenerationConfig, field_help
from fundamentallm.errors import GenerationError

if TYPE_CHECKING:
    from fundamentallm.language_model import LanguageModel

_STRATEGIES = ("greedy", "temperature", "top-k", "top-p", "min-p")


def _help(field: str) -> str:
    return field_help("generation", field)


@click.command(
    epilog="Example: fundamentallm generate runs/2026-01-31_120000-tiny-tales --prompt 'Once upon' --top-p 0.9 --seed 1"
)
@click.argument("checkpoint")
@click.option("--prompt", "prompts", multiple=True, help="What the text begins with; give several for a batch.")
@click.option("--max-tokens", type=int, help=_help("max_tokens"))
@click.option("--strategy", type=click.Choice(_STRATEGIES), help=_help("strategy"))
@click.option("--temperature", type=float, help=_help("temperature"))
@click.option("--top-k", type=int, help=_help("top_k"))
@click.option("--top-p", type=float, help=_help("top_p"))
@click.option("--min-p", type=float, help=_help("min_p"))
@click.option("--repetition-penalty", type=float, help=_help("repetition_penalty"))
@click.option("--seed", type=int, help=_help("seed"))
@click.option("--num-samples", type=click.IntRange(min=1), default=1, show_default=True, help="Texts per prompt.")
@click.option("--stop", "stop_sequences", multiple=True, help=_help("stop_sequences") + " Give several if you like.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per text.")
@click.option("--interactive", is_flag=True, help="Write prompt after prompt, and change settings in between.")
@debug_option
def generate(
    *,
    checkpoint: str,
    prompts: tuple[str, ...],
    max_tokens: int | None,
    strategy: str | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
    seed: int | None,
    num_samples: int,
    stop_sequences: tuple[str, ...],
    as_json: bool,
    interactive: bool,
) -> None:
    """Let the model in CHECKPOINT continue a prompt."""
    if interactive and (as_json or num_samples > 1 or prompts):
        raise GenerationError("--interactive asks for its prompts: leave --prompt, --num-samples and --json out.")
    given = {
        "max_tokens": max_tokens,
        "strategy": strategy,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "stop_sequences": stop_sequences or None,
    }
    model = load_model(checkpoint)
    settings = model.config.with_values(
        generation={name: value for name, value in given.items() if value is not None}
    ).generation
    if interactive:
        # Imported here: prompt_toolkit takes a third of a second.
        from fundamentallm.cli.interactive import Interactive

        Interactive(model, settings).run()
        return
    settings = with_seed(settings)
    # Bytes of the command line that are no text in this terminal's encoding become � like any other unseen character.
    readable = [prompt.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for prompt in prompts or ("",)]
    batch = [prompt for prompt in readable for _ in range(num_samples)]
    for prompt in dict.fromkeys(batch):
        warn_about_unknown_characters(model, prompt)
    if len(batch) == 1 and not as_json:
        stream(model, batch[0], settings, keep=lambda piece: None)
        return
    texts = model.generate(batch, **settings.model_dump())
    for index, (prompt, text) in enumerate(zip(batch, texts, strict=True)):
        if as_json:
            # The model gives each text of a batch a seed of its own, counting up from the first.
            its_settings = settings.model_copy(update={"seed": (settings.seed or 0) + index})
            write(_json_line(model, prompt, text, its_settings) + "\n")
        else:
            write(f"--- {index + 1} of {len(batch)} ---\n{printable(prompt + text)}\n")


def stream(model: LanguageModel, prompt: str, settings: GenerationConfig, keep: Callable[[str], None]) -> None:
    """Print the prompt and then what the model writes, as it writes it; every piece is also handed to ``keep``."""
    write(printable(prompt))
    for piece in model.stream(prompt, **settings.model_dump()):
        keep(piece)
        write(printable(piece))
    write("\n")


def with_seed(settings: GenerationConfig) -> GenerationConfig:
    """The settings with a seed, drawn if they have none, so that what was written can be written again."""
    if settings.seed is not None:
        return settings
    return settings.model_copy(update={"seed": secrets.randbelow(1 << 31)})


def warn_about_unknown_characters(model: LanguageModel, prompt: str) -> None:
    """Name the characters of a prompt that the model's vocabulary lacks."""
    unknown = model.tokenizer.unknown_characters(prompt)
    if unknown:
        named = ", ".join(repr(character) for character in unknown[:20])
        more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
        warn(f"The model has never seen {named}{more}: it reads <UNK> instead.")


def _json_line(model: LanguageModel, prompt: str, text: str, settings: GenerationConfig) -> str:
    return json.dumps(
        {
            "prompt": prompt,
            "text": text,
            "tokens": len(model.tokenizer.encode(text)),
            "seed": settings.seed,
            "settings": settings.model_dump(mode="json", exclude={"seed"}),
        },
        ensure_ascii=False,
    )
