"""Word n-grams as phrases, without a parser (OWL-ST, Minderer et al. 2023, appendix A.2)."""

from __future__ import annotations

import re
from typing import NamedTuple

from pipeline.config import ParsePhrasesConfig
from pipeline.phrases.captions import find_boilerplate
from pipeline.phrases.cleaning import Segment, clean
from pipeline.phrases.lexicons import OWL_ST, STOP_WORDS
from pipeline.phrases.parsed import CaptionPhraseSpans

_CHUNK = re.compile(r"\S+")


class Word(NamedTuple):
    """A word's span and its text in lower case."""

    start: int
    end: int
    text: str


def ngrams(caption: str, config: ParsePhrasesConfig) -> CaptionPhraseSpans:
    """All n-grams of up to ``max_ngram`` words in a clause; their root is their text in lower case.

    OWL-ST removes generic words and punctuation, and forms n-grams across the gaps. Here n-grams
    are spans of the caption, so they end at these. If there are more than ``max_ngrams``, the
    shorter ones are kept.
    """
    segments = (Segment(caption, 0),) if config.rules == 2 else clean(caption).segments
    parsed, clauses = CaptionPhraseSpans(), [clause for s in segments for clause in _clauses(s, config)]
    phrases: list[tuple[int, int, str]] = []
    for n in range(1, min(config.max_ngram, max(map(len, clauses), default=0)) + 1):
        for words in clauses:
            for i in range(len(words) - n + 1):
                gram = words[i : i + n]
                if _has_stop_words(gram, only=config.ngram_stop_words == "whole"):
                    parsed.drop("stop_words")
                elif not any(c.isalpha() for word in gram for c in word.text):
                    parsed.drop("not_a_word")
                else:
                    phrases.append((gram[0].start, gram[-1].end, " ".join(word.text for word in gram)))
    parsed.drop("too_many_ngrams", max(0, len(phrases) - config.max_ngrams))
    parsed.phrases = sorted(phrases[: config.max_ngrams])
    return parsed


def _has_stop_words(gram: list[Word], *, only: bool) -> bool:
    """Whether an n-gram starts or ends with a stop word or, with ``only``, has only stop words."""
    if only:
        return all(word.text in STOP_WORDS for word in gram)
    return gram[0].text in STOP_WORDS or gram[-1].text in STOP_WORDS


def _clauses(segment: Segment, config: ParsePhrasesConfig) -> list[list[Word]]:
    """Split a segment of a caption at punctuation, generic words and boilerplate, but not inside "T-shirt"."""
    caption = segment.text
    boilerplate = find_boilerplate(caption) if config.drop_boilerplate else []
    generic = OWL_ST if config.drop_nonvisual and "owl_st" in config.nonvisual else frozenset()
    clauses: list[list[Word]] = [[]]
    for chunk in _CHUNK.finditer(caption):
        start, end = chunk.span()
        while start < end and not caption[start].isalnum():
            start += 1
        while end > start and not caption[end - 1].isalnum():
            end -= 1
        text = caption[start:end].lower()
        excluded = start == end or text in generic or any(part.overlaps(start, end) for part in boilerplate)
        if excluded or start > chunk.start():
            clauses.append([])
        if not excluded:
            clauses[-1].append(Word(*segment.in_caption(start, end), text))
        if end < chunk.end():
            clauses.append([])
    return [clause for clause in clauses if clause]
