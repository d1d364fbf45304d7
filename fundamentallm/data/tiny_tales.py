"""Tiny Tales: a seeded grammar that writes plain children's stories, for models that are small and have little time.

A story is a row of beats: an opening, a day, a problem, somebody who comes by, a solution, a closing. A plot supplies
the beats that belong together, and every beat has several wordings; all are in ``tiny_tales.yaml``. In a wording
``[one|two]`` stands for either, and ``{…}`` for what stays the same through a story: the hero
(``{hero} {kind} {he} {him} {his}``), the helper (``{pal} {friend} {she} {her}``, for boys too; ``{her_object}`` where
a boy would be ``him``), a ``{thing}`` and a ``{spot}``. The alphabet is small and the words are few, but hardly two
stories are alike.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

Beat = tuple[str, ...]

_CHOICE = re.compile(r"\[([^\]]*)\]")
# libyaml reads the words ten times faster, where PyYAML was built with it.
_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Plot:
    """The beats that belong to one kind of trouble, each in several wordings."""

    name: str
    helper_in_need: bool
    things: Beat
    spots: Beat
    friends: Beat
    problem: Beat
    attempt: Beat
    answer: Beat
    solution: Beat
    moral: Beat
    day: Beat | None = None
    evening: Beat | None = None


@dataclass(frozen=True)
class Grammar:
    """Names, the beats that every story has, and the plots."""

    girls: Beat
    boys: Beat
    animals: Beat
    homes: Beat
    opening: Beat
    habit: Beat
    day: Beat
    meeting: Beat
    question: Beat
    offer: Beat
    thanks: Beat
    evening: Beat
    ending: Beat
    plots: tuple[Plot, ...]


def stories(seed: int) -> Iterator[str]:
    """Endlessly many stories, each one paragraph; the same ones for the same seed."""
    draw = random.Random(f"tiny tales {seed}")
    while True:
        yield _story(_grammar(), draw)


def tiny_tales(characters: int = 1_000_000, seed: int = 1) -> str:
    """About ``characters`` characters of stories, separated by blank lines."""
    parts: list[str] = []
    size = 0
    for story in stories(seed):
        parts.append(story)
        size += len(story) + 2
        if size >= characters:
            break
    return "\n\n".join(parts) + "\n"


def _story(words: Grammar, draw: random.Random) -> str:
    plot = draw.choice(words.plots)
    beats: list[Beat] = [words.opening]
    if draw.random() < 0.6:
        beats.append(words.habit)
    beats += [plot.day or words.day, plot.problem]
    if plot.helper_in_need or draw.random() < 0.7:
        beats.append(plot.attempt)
    beats.append(words.meeting)
    if plot.helper_in_need:
        beats += [plot.answer, plot.solution]
    else:
        beats += [words.question, plot.answer]
        if draw.random() < 0.6:
            beats.append(words.offer)
        beats.append(plot.solution)
        if draw.random() < 0.7:
            beats.append(words.thanks)
    evening = plot.evening or words.evening
    closings: tuple[tuple[Beat, ...], ...] = (
        (plot.moral,),
        (evening,),
        (words.ending,),
        (evening, plot.moral),
        (plot.moral, words.ending),
        (evening, words.ending),
    )
    beats += draw.choice(closings)
    template = " ".join(map(draw.choice, beats))
    return _CHOICE.sub(lambda match: draw.choice(match[1].split("|")), template).format_map(_cast(words, plot, draw))


def _cast(words: Grammar, plot: Plot, draw: random.Random) -> dict[str, str]:
    """What the placeholders of one story stand for."""
    hero_is_girl, helper_is_girl = draw.random() < 0.5, draw.random() < 0.5
    hero = draw.choice(words.girls if hero_is_girl else words.boys)
    pal = draw.choice([name for name in (words.girls if helper_is_girl else words.boys) if name != hero])
    friend = draw.choice(plot.friends)
    animal = draw.choice([kind for kind in words.animals if kind != friend])
    he, him, his = ("she", "her", "her") if hero_is_girl else ("he", "him", "his")
    she, her_object, her = ("she", "her", "her") if helper_is_girl else ("he", "him", "his")
    spot = draw.choice(plot.spots)
    return {
        "hero": hero,
        "kind": animal if draw.random() < 0.65 else ("girl" if hero_is_girl else "boy"),
        "he": he,
        "him": him,
        "his": his,
        "He": he.capitalize(),
        "His": his.capitalize(),
        "pal": pal,
        "friend": friend,
        "she": she,
        "her": her,
        "her_object": her_object,
        "She": she.capitalize(),
        "home": draw.choice(words.homes),
        "thing": draw.choice(plot.things),
        "spot": spot,
        "Spot": spot[0].upper() + spot[1:],
    }


@cache
def _grammar() -> Grammar:
    text = resources.files("fundamentallm.data").joinpath("tiny_tales.yaml").read_text(encoding="utf-8")
    tree = yaml.load(text, _YamlLoader)
    plots = tuple(Plot(**_split(plot)) for plot in tree.pop("plots"))
    return Grammar(plots=plots, **_split(tree))


def _split(beats: dict[str, Any]) -> dict[str, Any]:
    """Blocks of lines become tuples of wordings; a name and a yes or no stay as they are."""
    return {key: tuple(value.splitlines()) if "\n" in str(value) else value for key, value in beats.items()}
