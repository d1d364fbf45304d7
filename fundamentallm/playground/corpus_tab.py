"""The Corpus tab: which text, and what is in it."""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

from fundamentallm.config import DataConfig, load_config
from fundamentallm.data.corpus import Corpus, open_corpus, text_corpus
from fundamentallm.data.examples import BUILT_IN
from fundamentallm.data.hub_dataset import PREFIX
from fundamentallm.data.statistics import CorpusStatistics, describe
from fundamentallm.data.tokenizers import BPETokenizer, CharacterTokenizer
from fundamentallm.errors import CorpusError, FundamentaLLMError
from fundamentallm.playground.hub_texts import HUB_TEXTS, dataset_source
from fundamentallm.playground.measuring import Progress, followed
from fundamentallm.playground.panels import QUICK, busy, notices, panel, stoppable
from fundamentallm.playground.settings import (
    SOURCE_HUB,
    SOURCE_PASTE,
    SOURCE_UPLOAD,
    CorpusParts,
    PlaygroundContext,
    PlaygroundSettings,
)

FIRST_SOURCE = "tiny-tales"

# The token view learns its vocabulary from this many characters and shows the first of them: enough to look real,
# little enough to answer while one is still looking.
_VOCABULARY_CHARACTERS = 1_000_000
_SHOWN_CHARACTERS = 900
_SHOWN_ALPHABET = 240
_COLOURS = 5
_INVISIBLE = {" ": "·", "\n": "↵", "\t": "⇥"}


def chosen_corpus(
    settings: PlaygroundSettings, source: object, text: str | None, files: Sequence[str] | None
) -> Corpus:
    """The corpus that the three components of the tab, or the three arguments of an endpoint, mean.

    Raises:
        CorpusError: Nothing was given, it cannot be read, or it is larger than this page takes.
    """
    cap = settings.limits.corpus_bytes
    if source == SOURCE_PASTE:
        if not text or not text.strip():
            raise CorpusError("There is no text yet: paste one.")
        settings.check_corpus_size(len(text.encode("utf-8", "surrogatepass")))
        return text_corpus(text)
    if source == SOURCE_UPLOAD:
        if not files:
            raise CorpusError("There is no file yet: choose one or more.")
        with files_by_name(files):
            return open_corpus(list(files), max_bytes=cap)
    if isinstance(source, str) and source.startswith(PREFIX):
        return HUB_TEXTS.get(settings, source)
    # Never a path: only names that are on the list.
    if not isinstance(source, str) or source not in BUILT_IN:
        raise CorpusError(f"There is no built-in text {source!r}: choose one of {', '.join(BUILT_IN)}.")
    return open_corpus([source], max_bytes=cap)


def build(context: PlaygroundContext) -> CorpusParts:
    """Lay the tab out and connect it."""
    choices = [(f"{example.title}\n{example.description}", name) for name, example in BUILT_IN.items()]
    choices += [
        ("Your files\nText, Markdown, CSV, PDF, ZIP: one or several.", SOURCE_UPLOAD),
        ("Your text\nPaste anything you like.", SOURCE_PASTE),
        ("Hub dataset\nA text dataset on the Hugging Face Hub.", SOURCE_HUB),
    ]
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            choice = gr.Radio(
                choices,
                value=FIRST_SOURCE,
                label="What should the model learn from?",
                elem_classes="fl-sources",
                elem_id="corpus-source",
            )
            files = gr.File(file_count="multiple", label="Files", visible=False, height=160, elem_id="corpus-files")
            text = gr.Textbox(
                label="Text",
                lines=12,
                max_lines=24,
                visible=False,
                placeholder="Paste a text here.",
                elem_id="corpus-text",
            )
            hub = _build_hub()
            # What is really meant, for this tab and the next: a choice, or a dataset that was fetched.
            source = gr.Textbox(FIRST_SOURCE, visible="hidden", elem_id="corpus-chosen")
        with gr.Column(scale=7, min_width=340):
            warnings = panel("notices", elem_id="corpus-notices")
            report = panel("corpus", elem_id="corpus-report")
            with gr.Group(elem_classes="fl-token-view"):
                tokenizer = gr.Radio(
                    [("Characters", "character"), ("Byte pairs (BPE)", "bpe")],
                    value="character",
                    label="As the model sees it: tokens",
                    info="Every coloured piece is one token, one number for the model.",
                )
                tokens = panel("tokens", elem_id="corpus-tokens")

    settings = context.settings

    def show(source: str, text: str | None, files: list[str] | None, tokenizer: str) -> list[object]:
        try:
            with files_by_name(files):
                corpus = chosen_corpus(settings, source, text, files)
                statistics = examined(corpus)
                coloured = token_view(corpus, tokenizer)
        except FundamentaLLMError as error:
            missing = {SOURCE_UPLOAD: not files, SOURCE_PASTE: not (text or "").strip(), PREFIX: True}
            kind = "warning" if missing.get(source) else "error"
            return [notices(str(error), kind=kind), gr.skip(), gr.skip()]
        return [notices(*statistics.warnings), report_of(statistics), coloured]

    def show_tokens(source: str, text: str | None, files: list[str] | None, tokenizer: str) -> object:
        try:
            return token_view(chosen_corpus(settings, source, text, files), tokenizer)
        except FundamentaLLMError:
            return gr.skip()

    def choose(choice: str, name: str) -> list[object]:
        shown: list[object] = [gr.update(visible=choice == kind) for kind in (SOURCE_UPLOAD, SOURCE_PASTE, SOURCE_HUB)]
        meant = choice
        if choice == SOURCE_HUB:
            meant = dataset_source(name) if HUB_TEXTS.has(settings, dataset_source(name)) else PREFIX
        return [*shown, meant]

    choice.change(choose, [choice, hub.name], [files, text, hub.column, source], **QUICK)
    _wire_hub(settings, hub, source)
    inputs = [source, text, files, tokenizer]
    blocks = gr.context.Context.root_block
    assert blocks is not None, "build is called inside gr.Blocks"
    gr.on(
        [blocks.load, source.change, text.change, files.change],
        show,
        inputs,
        [warnings, report, tokens],
        trigger_mode="always_last",
        show_progress="minimal",
        show_progress_on=[report],
        concurrency_limit=4,
        concurrency_id="corpus",
        api_visibility="private",
    )
    tokenizer.change(
        show_tokens,
        inputs,
        tokens,
        trigger_mode="always_last",
        show_progress="minimal",
        concurrency_limit=4,
        concurrency_id="corpus",
        api_visibility="private",
    )
    return CorpusParts(source, text, files)


def _fetched(
    settings: PlaygroundSettings, source: str, report: Callable[[float, str], None], cancelled: Callable[[], bool]
) -> dict[str, Any]:
    HUB_TEXTS.fetch(settings, source, report, cancelled)
    return {}


@dataclass(frozen=True)
class _Hub:
    column: gr.Column
    name: gr.Textbox
    fetch: gr.Button
    stop: gr.Button
    progress: gr.HTML


def _build_hub() -> _Hub:
    with gr.Column(visible=False, elem_id="corpus-hub") as column:
        name = gr.Textbox(
            label="Dataset",
            info="user/dataset; where there are several, with :split and :column behind it.",
            placeholder="user/dataset:train:text",
            max_lines=1,
            elem_id="corpus-hub-name",
        )
        with gr.Row():
            fetch = gr.Button("Fetch", variant="primary", elem_id="corpus-hub-fetch")
            stop = gr.Button("Stop", variant="stop", visible=False, elem_id="corpus-hub-stop")
        progress = panel("evaluate", elem_id="corpus-hub-progress")
    return _Hub(column, name, fetch, stop, progress)


def _wire_hub(settings: PlaygroundSettings, hub: _Hub, source: gr.Textbox) -> None:
    def get(name: str) -> Iterator[list[object]]:
        wanted, token = dataset_source(name), secrets.token_hex(4)
        yield [{"progress": 0.0, "doing": "Asking the Hub", "run": token}, PREFIX, *busy()]
        try:
            for step in followed(lambda report, cancelled: _fetched(settings, wanted, report, cancelled)):
                if isinstance(step, Progress):
                    yield [{"progress": step.share, "doing": step.doing, "run": token}, *[gr.skip()] * 3]
            yield [{}, wanted, gr.skip(), gr.skip()]
        except FundamentaLLMError as error:
            yield [{"error": str(error)}, PREFIX, gr.skip(), gr.skip()]

    # Until it is fetched, a name that is being written means nothing.
    hub.name.input(lambda: PREFIX, None, source, **QUICK)
    gets: list[Any] = [
        trigger(
            get,
            hub.name,
            [hub.progress, source, hub.fetch, hub.stop],
            show_progress="hidden",
            trigger_mode="once",
            concurrency_limit=2,
            concurrency_id="fetching",
            api_visibility="private",
        )
        for trigger in (hub.fetch.click, hub.name.submit)
    ]
    stoppable(gets, [hub.fetch], hub.stop, hub.progress, lambda _: {"empty": "Stopped."})


@contextmanager
def files_by_name(files: Sequence[str] | None) -> Iterator[None]:
    """Within it, errors call an uploaded file by its name; where the server keeps it is nobody's business."""
    try:
        yield
    except CorpusError as error:
        sentence = str(error)
        for file in files or ():
            sentence = sentence.replace(str(file), Path(file).name)
        raise CorpusError(sentence) from None


def examined(corpus: Corpus) -> CorpusStatistics:
    """What is in a corpus, judged by what the first preset needs, the one that the Train tab starts with."""
    return describe(corpus, DataConfig(), _first_context())


@cache
def _first_context() -> int:
    return load_config(preset="small", environment=False).model.sequence_length


def report_of(statistics: CorpusStatistics) -> dict[str, object]:
    """What the report shows of a corpus; every value is text or a number, put on the page as text."""
    shares = [(character, count) for character, count in statistics.alphabet[:_SHOWN_ALPHABET]]
    most = shares[0][1] if shares else 1
    hidden = len(statistics.alphabet) - len(shares)
    return {
        "tiles": [
            {
                "label": "Characters",
                "value": f"{statistics.characters:,}",
                "note": "" if statistics.complete else "of a longer text: its beginning",
            },
            {"label": "Words", "value": f"{statistics.words:,}"},
            {"label": "Lines", "value": f"{statistics.lines:,}"},
            {"label": "Size", "value": _size(statistics.bytes)},
            {"label": "Alphabet", "value": f"{len(statistics.alphabet):,}", "note": "different characters"},
            {
                "label": "To learn from",
                "value": f"{statistics.train_characters:,}",
                "note": f"{statistics.validation_characters:,} held out as a test",
            },
        ],
        "preview": statistics.preview,
        "alphabet": [
            {
                "shown": visible_character(character),
                "visible": character not in _INVISIBLE,
                "name": character_name(character),
                "count": f"{count:,}",
                "bar": count / most,
            }
            for character, count in shares
        ],
        "alphabet_note": f"and {hidden:,} rarer ones" if hidden > 0 else "",
    }


def token_view(corpus: Corpus, kind: str) -> dict[str, object]:
    """The beginning of a corpus as tokens, each with a colour and its number, and a sentence that counts them."""
    text = corpus.read(_VOCABULARY_CHARACTERS)
    cls = BPETokenizer if kind == "bpe" else CharacterTokenizer
    tokenizer = cls.train([text], DataConfig(tokenizer="bpe" if kind == "bpe" else "character"))
    shown = text[:_SHOWN_CHARACTERS]
    ids = [int(token) for token in tokenizer.encode(shown)]
    tokens = []
    colour = -1
    for token in ids:
        # The same token has the same colour, unless its neighbour already has it.
        colour = token % _COLOURS if token % _COLOURS != colour else (token + 1) % _COLOURS
        tokens.append([tokenizer.token_text(token), colour, token])
    ratio = len(shown) / max(1, len(ids))
    note = (
        f"The first {len(shown):,} characters are {len(ids):,} tokens, {ratio:.1f} characters each, "
        f"out of a vocabulary of {tokenizer.vocab_size:,}."
    )
    return {"tokens": tokens, "note": note}


def visible_character(character: str) -> str:
    """A character as something one can see: · for a space, U+200B for what has no shape."""
    if character in _INVISIBLE:
        return _INVISIBLE[character]
    return character if character.isprintable() and not character.isspace() else f"U+{ord(character):04X}"


def character_name(character: str) -> str:
    """The Unicode name of a character, for the tooltip."""
    return f"{unicodedata.name(character, 'control character').lower()}, U+{ord(character):04X}"


def _size(count: int) -> str:
    for unit, divisor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= divisor:
            return f"{count / divisor:.1f} {unit}"
    return f"{count} bytes"
