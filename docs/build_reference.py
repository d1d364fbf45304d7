"""Write the two references that are made from the code: configuration.md and api-reference.md.

    python docs/build_reference.py

A setting is documented under its field in ``fundamentallm/config.py``, everything else in its docstring; this puts them
on a page. A test fails when the pages are older than the code.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

import fundamentallm
from fundamentallm import config

DOCS = Path(__file__).parent
_HOW_MADE = "<!-- Made by `python docs/build_reference.py`: change the code, not this page. -->"

CONFIGURATION = """# Configuration

{how_made}

Every setting belongs to one of four sections: [data](#data), [model](#model), [training](#training) and
[generation](#generation). Later ones of these win:

1. the defaults on this page,
2. a preset (`--preset small`) or a YAML file (`--config my.yaml`),
3. environment variables: `FUNDAMENTALLM_TRAINING__SEED=1`,
4. the command line: `--set training.seed=1`, or an option such as `--seed 1`; in Python, arguments.

A YAML file holds only what differs from the defaults:

```yaml
model:
  num_layers: 2
training:
  max_minutes: 2
```

`max_steps`, `max_epochs` and `max_minutes` are three ways to end a training. One that is given at a later place
replaces those given earlier, so `--preset small --minutes 2` trains for two minutes, whatever the preset says. Given
together, the first to be reached ends the training.

The same in Python:

```python
import fundamentallm as fl

config = fl.load_config(preset="small", overrides=["model.dropout=0.1"], values={{"training": {{"max_minutes": 2}}}})
print(config.to_yaml())
```

A setting that does not exist, or a value that cannot work, is refused before anything starts, in one sentence that says
what would. The resolved configuration is saved in the run as `config.yaml`.

Four more environment variables are not settings of a model: `FUNDAMENTALLM_RUNS_DIR` is where the playground keeps its
runs, `FUNDAMENTALLM_CACHE` where a downloaded text is kept, and `HOST` and `PORT` are the address of `python app.py`.

## Presets

The settings in which the presets differ from each other or from the defaults. The files are in `configs/`.

{presets}
"""

SECTION = """
## {name}

{summary}

| Setting | Values | Default | |
|---|---|---|---|
{rows}
"""

API = """# Python reference

{how_made}

```python
import fundamentallm as fl
```

[The package](#the-package) ·
{contents}

What is in `fl` is enough to train, load, write, measure and keep a model. The other sections are what it is made of.
"""

# Heading of a section, and what is in it, as module:name. The first section is the whole of fundamentallm.__all__.
SECTIONS: dict[str, list[str]] = {
    "The package": [f"fundamentallm:{name}" for name in ("train", "load", "LanguageModel", "Config", "load_config")]
    + ["fundamentallm:GenerationConfig", "fundamentallm:FundamentaLLMError"],
    "Generation options": ["fundamentallm.language_model:GenerationOptions"],
    "Texts": [
        "fundamentallm.data.corpus:open_corpus",
        "fundamentallm.data.corpus:text_corpus",
        "fundamentallm.data.corpus:Corpus",
        "fundamentallm.data.statistics:describe",
        "fundamentallm.data.statistics:CorpusStatistics",
    ],
    "Measuring": [
        "fundamentallm.evaluation:Evaluation",
        "fundamentallm.evaluation:ladder",
        "fundamentallm.evaluation:Baseline",
        "fundamentallm.evaluation:copied_spans",
        "fundamentallm.evaluation:Span",
    ],
    "Callbacks and their events": [
        f"fundamentallm.training.callbacks:{name}"
        for name in (
            "BaseCallback",
            "Working",
            "TrainingStarted",
            "StepLogged",
            "Evaluated",
            "Sampled",
            "CheckpointSaved",
            "TrainingEnded",
        )
    ]
    + ["fundamentallm.runs:Metrics"],
    "Runs": ["fundamentallm.runs:RunDirectory", "fundamentallm.runs:RunStatus", "fundamentallm.runs:list_runs"],
    "Samplers": [
        f"fundamentallm.generation.samplers:{name}"
        for name in (
            "BaseSampler",
            "GreedySampler",
            "TemperatureSampler",
            "TopKSampler",
            "TopPSampler",
            "MinPSampler",
            "build_sampler",
            "inverse_cdf",
        )
    ]
    + ["fundamentallm.generation:generate"],
    "Tokenizers": [
        "fundamentallm.data.tokenizers:BaseTokenizer",
        "fundamentallm.data.tokenizers:CharacterTokenizer",
        "fundamentallm.data.tokenizers:BPETokenizer",
    ],
    "Models": [
        "fundamentallm.models:BaseModel",
        "fundamentallm.models:KVCache",
        "fundamentallm.models:build_model",
    ],
    "Plugins": ["fundamentallm.registry:Registry"],
    "Errors": [
        f"fundamentallm.errors:{name}"
        for name in (
            "ConfigError",
            "CorpusError",
            "CheckpointError",
            "RunError",
            "TrainingError",
            "GenerationError",
            "HubError",
        )
    ],
}
_ELSEWHERE = {"Config", "GenerationConfig"}  # their fields are configuration.md


def configuration_page() -> str:
    """docs/configuration.md."""
    page = CONFIGURATION.format(how_made=_HOW_MADE, presets=_presets())
    for name in config.Config.model_fields:
        section = _section(name)
        rows = [_setting(f"{name}.{key}", key, field, section) for key, field in section.model_fields.items()]
        page += SECTION.format(name=name, summary=inspect.getdoc(section), rows="\n".join(rows))
    return page


def api_page() -> str:
    """docs/api-reference.md."""
    links = [f"[{heading}](#{_anchor(heading)})" for heading in list(SECTIONS)[1:]]
    page = API.format(how_made=_HOW_MADE, contents=" ·\n".join(links))
    for heading, names in SECTIONS.items():
        page += f"\n## {heading}\n"
        page += "".join(_entry(*name.split(":")) for name in names)
    return page


def _section(name: str) -> type[BaseModel]:
    section = config.Config.model_fields[name].annotation
    assert isinstance(section, type) and issubclass(section, BaseModel)
    return section


def _setting(path: str, key: str, field: FieldInfo, section: type[BaseModel]) -> str:
    default = _value(field.get_default(call_default_factory=True))
    meaning = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"| `{key}` | {_values(field)} | {default} | {meaning} |"


def _values(field: FieldInfo) -> str:
    """What a setting may be, in words."""
    annotation = field.annotation
    optional = type(None) in get_args(annotation)
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)] if optional else [annotation]
    if get_origin(kinds[0]) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kinds[0]))
    names: dict[Any, str] = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`"}
    words = names.get(kinds[0], "list of texts")
    signs = {"ge": "≥ ", "gt": "> ", "le": "≤ ", "lt": "< "}
    limits = [
        f"{sign}{getattr(limit, name):,}".removesuffix(".0")
        for limit in field.metadata
        for name, sign in signs.items()
        if hasattr(limit, name)
    ]
    return ", ".join([words, *limits]) + (", or none" if optional else "")


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value) or "none"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`" if value != "" else "empty"


def _presets() -> str:
    names: list[str] = [name for name in ("small", "default", "large") if name in config.presets()]
    names += [name for name in config.presets() if name not in names]
    configs = {name: config.load_config(preset=name, environment=False).model_dump() for name in names}
    plain = config.Config().model_dump()
    lines = [f"| Setting | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for section, fields in plain.items():
        for field, value in fields.items():
            values = [configs[name][section][field] for name in names]
            if any(other != value for other in values):
                lines.append(f"| `{section}.{field}` | {' | '.join(map(_value, values))} |")
    return "\n".join(lines)


def _anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9-]", "", heading.lower().replace(" ", "-"))


def _entry(module: str, name: str) -> str:
    """One class or function, with the public methods, properties and fields of a class."""
    thing = vars(import_module(module)).get(name) or getattr(import_module(module), name)
    if not inspect.isclass(thing):
        return _function(thing, module, name, level=3)
    text = f"\n### {name}\n\n`{module}.{name}`\n\n{_markdown(inspect.getdoc(thing) or '')}"
    if name in _ELSEWHERE:
        text += "\nIts fields are in [configuration.md](configuration.md).\n"
    else:
        text += _fields(thing)
    for key, member in _public_members(thing):
        if isinstance(member, property):
            text += f"\n#### {name}.{key}\n\n{_markdown(inspect.getdoc(member) or '')}"
        else:
            text += _function(member, module, f"{name}.{key}", level=4)
    return text


def _public_members(cls: type) -> Iterator[tuple[str, Any]]:
    inherited = {key for base in cls.__mro__[1:] for key in vars(base)}
    for key, member in vars(cls).items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        shown = isinstance(function, property) or inspect.isfunction(function)
        # What overrides is documented where it is introduced.
        if shown and inspect.getdoc(function) and not key.startswith("_") and key not in inherited:
            yield key, function


def _function(function: Any, module: str, name: str, level: int) -> str:
    heading = f"\n{'#' * level} {name}\n"
    where = f"\n`{module}.{name}`\n" if level == 3 else ""
    short = name.rsplit(".", 1)[-1]
    text = _markdown(inspect.getdoc(function) or "")
    return f"{heading}{where}\n```text\n{_signature(function, short)}\n```\n\n{text}"


def _signature(function: Any, name: str) -> str:
    signature = inspect.signature(function)
    shown: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not any(text.startswith("*") for text in shown):
            shown.append("*")
        shown.append(_parameter(parameter))
    end = ")" if signature.return_annotation is signature.empty else f") -> {signature.return_annotation}"
    line = f"{name}({', '.join(shown)}{end}"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {parameter},\n" for parameter in shown) + end


def _parameter(parameter: inspect.Parameter) -> str:
    """As in the source, where annotations are kept as they were written."""
    text = parameter.name
    if parameter.kind is parameter.VAR_KEYWORD:
        text = f"**{text}"
    if parameter.annotation is not parameter.empty:
        text += f": {parameter.annotation}"
    if parameter.default is parameter.empty:
        return text
    default = parameter.default
    shown = f"Path({str(default)!r})" if isinstance(default, Path) else repr(default)
    return f"{text} = {shown}"


def _fields(cls: type) -> str:
    """The annotated fields of a class with the sentences under them, unless its docstring lists them."""
    if "Attributes:" in (inspect.getdoc(cls) or ""):
        return ""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    lines = []
    for node, following in zip(body.body, [*body.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        meaning = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            meaning = ": " + _plain(str(following.value.value))
        annotation = ast.unparse(node.annotation)
        if node.target.id.startswith("_") or ("ClassVar" in annotation and not meaning):
            continue
        lines.append(f"- `{node.target.id}: {annotation}`{meaning}")
    return "\n" + "\n".join(lines) + "\n" if lines else ""


def _plain(text: str) -> str:
    """Sphinx roles and double backticks as Markdown, on one line."""
    return " ".join(_without_roles(text).split())


def _without_roles(text: str) -> str:
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")


_HEADINGS = ("Args", "Attributes", "Returns", "Yields", "Raises")


def _markdown(docstring: str) -> str:
    """A Google-style docstring as Markdown."""
    out: list[str] = []
    for block in re.split(r"\n\s*\n", _without_roles(docstring)):
        heading, _, rest = block.partition("\n")
        if heading.rstrip(":") not in _HEADINGS or not heading.endswith(":"):
            out.append(block)
            continue
        body = textwrap.dedent(rest)
        if heading in ("Returns:", "Yields:"):
            out.append(f"{heading} {' '.join(body.split())}")
            continue
        items = re.split(r"\n(?=\S)", body)
        shown = []
        for item in items:
            name, _, meaning = item.partition(":")
            shown.append(f"- `{name}`: {' '.join(meaning.split())}")
        out.append(heading + "\n\n" + "\n".join(shown))
    return "\n\n".join(out) + "\n"


PAGES = {"configuration.md": configuration_page, "api-reference.md": api_page}

if __name__ == "__main__":
    assert {name.split(":")[1] for name in SECTIONS["The package"]} == set(fundamentallm.__all__)
    for file_name, page in PAGES.items():
        (DOCS / file_name).write_text(page(), encoding="utf-8")
