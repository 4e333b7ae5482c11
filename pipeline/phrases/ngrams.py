"""Runs of words as queries, without a parser (OWL-ST, Minderer et al. 2023, appendix A.2)."""

from __future__ import annotations

import re
from typing import NamedTuple

from pipeline.config import ParsePhrasesConfig
from pipeline.phrases.captions import parts
from pipeline.phrases.lexicons import OWL_ST, STOP_WORDS
from pipeline.phrases.parsed import Parsed

_CHUNK = re.compile(r"\S+")


class Word(NamedTuple):
    """A word's place and its lower-case text."""

    start: int
    end: int
    text: str


def ngrams(caption: str, config: ParsePhrasesConfig) -> Parsed:
    """All n-grams of up to ``max_ngram`` words within a clause; their root is their text in lower case.

    OWL-ST takes generic words out and lets n-grams run on across the gap, and across marks. Ours are spans of the caption, so
    they end there. Of more than ``max_ngrams`` the shorter ones stay.
    """
    parsed, clauses = Parsed(), _clauses(caption, config)
    found: list[tuple[int, int, str]] = []
    for n in range(1, min(config.max_ngram, max(map(len, clauses), default=0)) + 1):
        for words in clauses:
            for i in range(len(words) - n + 1):
                gram = words[i : i + n]
                if _stopped(gram, whole=config.ngram_stop_words == "whole"):
                    parsed.drop("stop_words")
                elif not any(c.isalpha() for word in gram for c in word.text):
                    parsed.drop("not_a_word")
                else:
                    found.append((gram[0].start, gram[-1].end, " ".join(word.text for word in gram)))
    parsed.drop("too_many_ngrams", len(found) - config.max_ngrams if len(found) > config.max_ngrams else 0)
    parsed.phrases = sorted(found[: config.max_ngrams])
    return parsed


def _stopped(gram: list[Word], *, whole: bool) -> bool:
    if whole:
        return all(word.text in STOP_WORDS for word in gram)
    return gram[0].text in STOP_WORDS or gram[-1].text in STOP_WORDS


def _clauses(caption: str, config: ParsePhrasesConfig) -> list[list[Word]]:
    """Words between marks, generic words and useless parts; a word's own marks ("T-shirt", "dog's") stay in it."""
    useless = parts(caption) if config.drop_boilerplate else []
    generic = OWL_ST if config.drop_nonvisual and "owl_st" in config.nonvisual else frozenset()
    clauses: list[list[Word]] = [[]]
    for chunk in _CHUNK.finditer(caption):
        start, end = chunk.span()
        while start < end and not caption[start].isalnum():
            start += 1
        while end > start and not caption[end - 1].isalnum():
            end -= 1
        text = caption[start:end].lower()
        gone = start == end or text in generic or any(p.start < end and start < p.end for p in useless)
        if gone or start > chunk.start():
            clauses.append([])
        if not gone:
            clauses[-1].append(Word(start, end, text))
        if end < chunk.end():
            clauses.append([])
    return [clause for clause in clauses if clause]
