"""Word n-grams as phrases, without a parser (OWL-ST, Minderer et al. 2023, appendix A.2)."""

from __future__ import annotations

import re

from pipeline.config import ParsePhrasesConfig
from pipeline.phrases.captions import find_boilerplate
from pipeline.phrases.cleaning import Segment, clean, lower
from pipeline.phrases.lexicons import OWL_ST, STOP_WORDS
from pipeline.phrases.parsed import CaptionPhraseSpans

_CHUNK = re.compile(r"\S+")


Word = tuple[int, int, str]
"""A word's span in the caption and its text in lower case."""


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
                starts, ends, texts = zip(*words[i : i + n], strict=True)
                stop_words = [text in STOP_WORDS for text in texts]
                if all(stop_words) if config.ngram_stop_words == "whole" else stop_words[0] or stop_words[-1]:
                    parsed.drop("stop_words")
                elif not any(c.isalpha() for text in texts for c in text):
                    parsed.drop("not_a_word")
                else:
                    phrases.append((starts[0], ends[-1], " ".join(texts)))
    parsed.drop("too_many_ngrams", max(0, len(phrases) - config.max_ngrams))
    parsed.phrases = sorted(phrases[: config.max_ngrams])
    return parsed


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
        text = lower(caption[start:end])
        excluded = start == end or text in generic or any(part.overlaps(start, end) for part in boilerplate)
        if excluded or start > chunk.start():
            clauses.append([])
        if not excluded:
            clauses[-1].append((*segment.in_caption(start, end), text))
        if end < chunk.end():
            clauses.append([])
    return [clause for clause in clauses if clause]
