"""Random choice of the things in each set's scenes: nouns, colours and sizes."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.random import Generator

from pipeline.demo.config import DemoDataConfig
from pipeline.demo.scenes import Size, Thing

_SIZES: tuple[Size, ...] = ("small", "large")


def detection_things(nouns: Sequence[str], colours: Sequence[str], rng: Generator) -> list[Thing]:
    """2 to 4 things of any of ``nouns``, possibly repeated."""
    return [_thing(str(noun), colours, rng) for noun in rng.choice(list(nouns), size=_count(rng))]


def grounding_things(
    nouns: Sequence[str], colours: Sequence[str], rng: Generator, config: DemoDataConfig
) -> list[Thing]:
    """2 to 4 things; in ``same_noun_share`` of scenes the first two share a noun.

    They differ in colour, every fifth pair only in size, so that both adjectives are informative.
    """
    n = _count(rng)
    chosen = [str(noun) for noun in rng.choice(list(nouns), size=n, replace=False)]
    if rng.random() >= config.same_noun_share:
        return [_thing(noun, colours, rng) for noun in chosen]
    if rng.random() < 0.2:
        colour = str(rng.choice(list(colours)))
        sizes = _SIZES if rng.random() < 0.5 else _SIZES[::-1]
        pair = [Thing(chosen[0], colour, size) for size in sizes]
    else:
        tints = rng.choice(list(colours), size=2, replace=False)
        pair = [Thing(chosen[0], str(colour), _size(rng)) for colour in tints]
    return pair + [_thing(noun, colours, rng) for noun in chosen[2:]]


def attribute_things(nouns: Sequence[str], colours: Sequence[str], rng: Generator) -> list[Thing]:
    """2 to 4 things of different colours, so that the colour identifies each."""
    n = _count(rng)
    tints = rng.choice(list(colours), size=n, replace=False)
    return [
        Thing(str(noun), str(tint), _size(rng))
        for noun, tint in zip(rng.choice(list(nouns), size=n), tints, strict=True)
    ]


def crawled_things(
    base: Sequence[str], novel: Sequence[str], colours: Sequence[str], rng: Generator, config: DemoDataConfig
) -> list[Thing]:
    """2 to 4 things of different nouns: none, one (mostly) or two of them novel, in any order."""
    n = _count(rng)
    novel_count = int(rng.choice(3, p=(0.12, 0.6, 0.28)))
    if n == 2:
        novel_count = min(novel_count, 1)
    chosen = [str(noun) for noun in rng.choice(list(novel), size=novel_count, replace=False)]
    chosen += [str(noun) for noun in rng.choice(list(base), size=n - novel_count, replace=False)]
    repeat = rng.random() < config.repeat_colour_share
    tints = rng.choice(list(colours), size=n, replace=repeat)
    things = [Thing(noun, str(colour), _size(rng)) for noun, colour in zip(chosen, tints, strict=True)]
    return [things[i] for i in rng.permutation(n)]


def held_out_things(nouns: Sequence[str], colours: Sequence[str], rng: Generator) -> list[Thing]:
    """Four things of four different nouns."""
    return [_thing(str(noun), colours, rng) for noun in rng.choice(list(nouns), size=4, replace=False)]


def absent_phrases(things: Sequence[Thing], nouns: Sequence[str], colours: Sequence[str], rng: Generator) -> list[str]:
    """Two phrases for each thing of a scene that are not in it: its noun in another colour, and another noun."""
    there = {thing.noun for thing in things}
    absent: list[str] = []
    for thing in things:
        worn = {other.colour for other in things if other.noun == thing.noun}
        absent.append(f"{rng.choice([c for c in colours if c not in worn])} {thing.noun}")
        absent.append(f"{rng.choice(list(colours))} {rng.choice([noun for noun in nouns if noun not in there])}")
    return list(dict.fromkeys(absent))


def mentioned_things(things: Sequence[Thing], rng: Generator, config: DemoDataConfig) -> list[int]:
    """Indices of the things that a caption mentions, in its order.

    In ``unmentioned_share`` of scenes with three or four things one is omitted, unless another has
    the same noun, whose phrase would then be ambiguous.
    """
    order = [int(i) for i in rng.permutation(len(things))]
    if len(things) > 2 and rng.random() < config.unmentioned_share:
        nouns = [t.noun for t in things]
        for position in reversed(range(len(order))):
            if nouns.count(nouns[order[position]]) == 1:
                del order[position]
                break
    return order


def _thing(noun: str, colours: Sequence[str], rng: Generator) -> Thing:
    return Thing(noun, colours[int(rng.integers(len(colours)))], _size(rng))


def _size(rng: Generator) -> Size:
    return _SIZES[int(rng.integers(2))]


def _count(rng: Generator) -> int:
    return int(rng.choice((2, 3, 4), p=(0.35, 0.4, 0.25)))
