"""The phrases of captions, by the method that the settings name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.config import ParsePhrasesConfig
from pipeline.phrases.ngrams import ngrams
from pipeline.phrases.nouns import NounPhrases
from pipeline.phrases.parsed import Parsed
from pipeline.phrases.parser import parser

RULES = "2"
"""Raise it whenever the same settings and parser would give other phrases than before; it is part of fingerprints."""


def find_phrases(captions: Iterable[str], config: ParsePhrasesConfig) -> Iterator[Parsed]:
    """The phrases of each caption, in order; a function of that caption and the settings alone."""
    if config.method == "ngrams":
        yield from (ngrams(caption, config) for caption in captions)
        return
    model = parser(config)
    phrases = NounPhrases(config, model)
    for doc in model.docs(captions):
        yield phrases(doc)
