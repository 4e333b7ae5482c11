"""Captions and the character spans in them. Spans come from building the text, never from searching it."""

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
"""Templates of the human-labelled captions, by how many things they name."""

CRAWLED: Mapping[int, tuple[str, ...]] = {
    1: (*PLAIN[1], "A photo of {0}.", "{0} on a grey wall"),
    2: (*PLAIN[2], "A picture of {0} and {1}.", "We saw {0} and {1} today", "{0}, {1}", "{0} close to {1}!"),
    3: (*PLAIN[3], "A scene with {0}, {1} and {2}.", "there were {0}, {1} and {2}", "{0}; {1}; {2}"),
    4: (*PLAIN[4], "A collection of {0}, {1}, {2} and {3}.", "{0} next to {1}, with {2} and {3}"),
}
"""Templates of the crawled captions: the plain ones, and some with words that name no drawn thing."""

USELESS = (
    "IMG_{n}.jpg", "DSC_{n}", "BUY NOW | stock photo", "", "Untitled", "Image may contain: {n} items",
    "Free shipping on orders over $50", "screenshot-{n}.png", "click to enlarge", "404",
)  # fmt: skip
"""Captions that describe nothing, as crawls have them."""


@dataclass(frozen=True)
class Phrase:
    """A thing's place in its caption: ``caption[start:end]`` is its phrase without the article."""

    thing: int
    start: int
    end: int


@dataclass(frozen=True)
class Caption:
    """A caption and where it names what; ``phrases`` are in the order of the text."""

    text: str
    phrases: tuple[Phrase, ...] = ()

    def words(self, phrase: Phrase) -> str:
        """The phrase's text."""
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
    """Name the ``mentioned`` things (1 to 4 indices, in this order) in one of ``templates``.

    Things of one noun are always told apart: by colour, and by size where their colours are the same. With
    ``style`` articles and capitals vary as in found text; else every phrase has "a" or "an", the text is lower case.
    Without ``nouns`` every thing is called by its colour, and maybe size, alone ("a red thing").
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
    """A caption that describes nothing; it may be empty."""
    return Caption(USELESS[rng.integers(len(USELESS))].format(n=int(rng.integers(1000, 10000))))


def _attributes(thing: Thing, rng: Generator, config: DemoDataConfig) -> str:
    return " ".join([thing.size] * (rng.random() < config.size_share) + [thing.colour, "thing"])


def _describe(thing: Thing, others: Sequence[Thing], rng: Generator, config: DemoDataConfig) -> str:
    twins = [t for t in others if t.noun == thing.noun]
    with_colour = rng.random() < config.colour_share
    with_size = rng.random() < config.size_share
    if any(t.colour == thing.colour for t in twins):
        with_size = True
    elif twins:
        with_colour = True
    words = [thing.size] * with_size + [thing.colour] * with_colour + [thing.noun]
    return " ".join(words)
