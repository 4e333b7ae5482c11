"""Phrases that are nearly in an image: an attribute exchanged, or another noun with the same attribute.

Attributes are words of sets that exclude each other: what is red is not green.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.data.records import GroundingRecord, Region

EXCLUSIVE: tuple[tuple[frozenset[str], ...], ...] = tuple(
    tuple(frozenset(words.split()) for words in group.split(","))
    for group in (
        "black, white, red, green, blue, yellow, brown, grey gray, pink, purple violet, orange, silver, golden",
        "small little tiny, large big huge",
        "wooden, metal, plastic, glass, stone, leather, paper",
        "young, old",
        "round circular, square rectangular, triangular",
        "open, closed",
        "full, empty",
    )
)
"""Sets of attributes; the words of a group mean the same, and no thing has the attributes of two groups of a set."""
_GROUP = {word: (n, m) for n, groups in enumerate(EXCLUSIVE) for m, group in enumerate(groups) for word in group}
_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*")
ARTICLES = frozenset({"a", "an", "the"})


def hard_negatives(
    record: GroundingRecord, other_nouns: Iterable[str], limit: int, rng: np.random.Generator
) -> list[str]:
    """Up to ``limit`` phrases that the record's caption does not admit, in random order.

    An attribute is exchanged only if every mention of the noun in the caption is a region's phrase
    that states an attribute of this set, and none of them the new one; so a mention without it
    ("an umbrella"), or one whose box is uncertain, prevents it. A noun that occurs in the caption
    is no other noun.

    Args:
        record: with a caption. other_nouns: of other images.
    """
    caption = _WORD.findall((record.caption or "").lower())
    mentions = Counter(map(_singular, caption))
    phrases = list(dict.fromkeys(_words(region) for region in record.regions if not region.ignore))
    found = [*_exchanged(phrases, mentions, rng)]
    nouns = (noun for noun in other_nouns if not {_singular(w) for w in _WORD.findall(noun.lower())} & mentions.keys())
    for (words, _), noun in zip([phrases[i] for i in rng.permutation(len(phrases))], nouns, strict=False):
        found.append(" ".join([*(word for word in words[:-1] if word in _GROUP), noun]))
    chosen = [found[i] for i in rng.permutation(len(found))]
    return list(dict.fromkeys(chosen))[:limit]


def _words(region: Region) -> tuple[tuple[str, ...], str]:
    """(words of a region's phrase without its article, its noun in the singular)."""
    words = tuple(_WORD.findall(region.phrase.lower()))
    words = words[1:] if len(words) > 1 and words[0] in ARTICLES else words
    root = _WORD.findall((region.root or "").lower()) or list(words)
    return words, _singular(root[-1]) if root else ""


def _exchanged(
    phrases: Sequence[tuple[tuple[str, ...], str]], mentions: Counter[str], rng: np.random.Generator
) -> Iterable[str]:
    for words, noun in phrases:
        for place, word in enumerate(words[:-1]):
            if word not in _GROUP:
                continue
            groups, own = EXCLUSIVE[_GROUP[word][0]], _GROUP[word][0]
            stated = [{_GROUP[w][1] for w in other if w in _GROUP and _GROUP[w][0] == own}
                      for other, of in phrases if of == noun]  # fmt: skip
            if not all(stated) or len(stated) != mentions[noun]:
                continue
            left = [n for n in range(len(groups)) if n not in set.union(*stated)]
            if left:
                options = sorted(groups[left[int(rng.integers(len(left)))]])
                yield " ".join([*words[:place], options[int(rng.integers(len(options)))], *words[place + 1 :]])


def _singular(word: str) -> str:
    """A rough singular, so that "boxes" and "box" are one noun."""
    for end, replacement in (("ies", "y"), ("ses", "s"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"), ("s", "")):
        if word.endswith(end) and len(word) > len(end) + 1 and not word.endswith("ss"):
            return word[: -len(end)] + replacement
    return word
