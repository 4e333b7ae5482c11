"""Extraction of phrases by the configured method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.config import ParsePhrasesConfig
from pipeline.phrases.ngrams import ngrams
from pipeline.phrases.nouns import NounPhrases
from pipeline.phrases.parsed import CaptionPhraseSpans
from pipeline.phrases.parser import parser

RULES = "2"
"""Version, part of fingerprints; raise it when the same settings and parser give other phrases."""


def find_phrases(captions: Iterable[str], config: ParsePhrasesConfig) -> Iterator[CaptionPhraseSpans]:
    """Phrases of each caption, in order; they depend only on the caption and the settings."""
    if config.method == "ngrams":
        yield from (ngrams(caption, config) for caption in captions)
        return
    model = parser(config)
    phrases = NounPhrases(config, model)
    for doc in model.docs(captions):
        yield phrases(doc)
