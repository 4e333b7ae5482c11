"""Generation of captions with the spans of their phrases."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from numpy.random import Generator

from pipeline.demo.config import DemoDataConfig
from pipeline.demo.scenes import Thing

PLAIN: Mapping[int, tuple[str, ...]] = {
    1: ("{0}", "There is {0}."),
    2: ("{0} and {1}", "{0} next to {1}", "{0} beside {1}", "{0} near {1}", "{0} with {1}"),
    3: ("{0} and {1} near {2}", "{0}, {1} and {2}", "{0} next to {1} and {2}", "{0} with {1} beside {2}"),
    4: ("{0} and {1} next to {2} and {3}", "{0}, {1}, {2} and {3}", "{0} near {1}, {2} beside {3}"),
}
"""Templates of the human-labelled captions, by the number of things they mention."""

CRAWLED: Mapping[int, tuple[str, ...]] = {
    1: (*PLAIN[1], "A photo of {0}.", "{0} on a grey wall"),
    2: (*PLAIN[2], "A picture of {0} and {1}.", "We saw {0} and {1} today", "{0}, {1}", "{0} close to {1}!"),
    3: (*PLAIN[3], "A scene with {0}, {1} and {2}.", "there were {0}, {1} and {2}", "{0}; {1}; {2}"),
    4: (*PLAIN[4], "A collection of {0}, {1}, {2} and {3}.", "{0} next to {1}, with {2} and {3}"),
}
"""Templates of the crawled captions: the plain ones, and some with nouns that are not in the scene.
"""

USELESS = (
    "IMG_{n}.jpg", "DSC_{n}", "BUY NOW | stock photo", "", "Untitled", "Image may contain: {n} items",
    "Free shipping on orders over $50", "screenshot-{n}.png", "click to enlarge", "404",
)  # fmt: skip
"""Captions without a description, as in crawls."""


@dataclass(frozen=True)
class Phrase:
    """Span of a thing's phrase in the caption, without the article. ``thing``: index in the scene."""

    thing: int
    start: int
    end: int


@dataclass(frozen=True)
class Caption:
    """A caption with its phrases, in the order of the text."""

    text: str
    phrases: tuple[Phrase, ...] = ()

    def words(self, phrase: Phrase) -> str:
        """Text of a phrase."""
        return self.text[phrase.start : phrase.end]


def write_caption(
    things: Sequence[Thing],
    mentioned: Sequence[int],
    rng: Generator,
    config: DemoDataConfig,
    *,
    templates: Mapping[int, tuple[str, ...]],
    style: bool,
    nouns: bool = True,
) -> Caption:
    """Generate a caption that mentions things of a scene.

    Things with the same noun are distinguished by colour, or by size if their colours are equal.

    Args:
        mentioned: indices of the mentioned things (1 to 4), in the order of the caption.
        templates: number of things -> templates.
        style: vary articles and capitals; otherwise every phrase has "a" or "an", and the text is
            lower case.
        nouns: otherwise things are described only by their colour, and possibly size ("a red
            thing").
    """
    options = templates[len(mentioned)]
    template = options[rng.integers(len(options))]
    article = "a"
    if style:
        article = ("a", "a", "a", "a", "a", "a", "a", "the", "the", "")[rng.integers(10)]
        if not article and len(mentioned) < 2:
            article = "a"
    text = ""
    phrases: list[Phrase] = []
    for part in re.split(r"(\{\d\})", template):
        if not part.startswith("{"):
            text += part
            continue
        index = mentioned[int(part[1:-1])]
        others = [t for i, t in enumerate(things) if i != index]
        words = _describe(things[index], others, rng, config) if nouns else _attributes(things[index], rng, config)
        if article:
            text += "an " if article == "a" and words[0] in "aeiou" else f"{article} "
        phrases.append(Phrase(index, len(text), len(text) + len(words)))
        text += words
    if style and rng.random() < 0.5:
        text = text[:1].upper() + text[1:]
    if style and text[-1] not in ".!" and rng.random() < 0.3:
        text += "."
    return Caption(text, tuple(phrases))


def useless_caption(rng: Generator) -> Caption:
    """Generate a caption without a description; it may be empty."""
    return Caption(USELESS[rng.integers(len(USELESS))].format(n=int(rng.integers(1000, 10000))))


def _attributes(thing: Thing, rng: Generator, config: DemoDataConfig) -> str:
    return " ".join([thing.size] * (rng.random() < config.size_share) + [thing.colour, "thing"])


def _describe(thing: Thing, others: Sequence[Thing], rng: Generator, config: DemoDataConfig) -> str:
    same_noun = [t for t in others if t.noun == thing.noun]
    with_colour = rng.random() < config.colour_share
    with_size = rng.random() < config.size_share
    if any(t.colour == thing.colour for t in same_noun):
        with_size = True
    elif same_noun:
        with_colour = True
    return " ".join([thing.size] * with_size + [thing.colour] * with_colour + [thing.noun])
