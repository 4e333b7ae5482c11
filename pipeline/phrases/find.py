"""Extraction of phrases by the configured method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import tee

from pipeline.config import ParsePhrasesConfig
from pipeline.data.crawl import PLACEHOLDERS
from pipeline.phrases.captions import skip_reason
from pipeline.phrases.cleaning import Segment, clean
from pipeline.phrases.language import other_language
from pipeline.phrases.ngrams import ngrams
from pipeline.phrases.nouns import NounPhrases
from pipeline.phrases.parsed import CaptionPhraseSpans
from pipeline.phrases.parser import parser


def find_phrases(captions: Iterable[str], config: ParsePhrasesConfig) -> Iterator[CaptionPhraseSpans]:
    """Phrases of each caption, in order; they depend only on the caption and the settings."""
    if config.method == "ngrams":
        yield from (ngrams(caption, config) for caption in captions)
        return
    model = parser(config)
    phrases = NounPhrases(config, model)
    first, second = tee((caption, _segments(caption, config)) for caption in captions)
    docs = model.docs(segment.text for _, segments in first for segment in segments)
    for _, segments in second:
        found = [(segment, phrases(next(docs))) for segment in segments]
        yield found[0][1] if config.rules == 2 else _joined(found)


def _segments(caption: str, config: ParsePhrasesConfig) -> tuple[Segment, ...]:
    return (Segment(caption, 0),) if config.rules == 2 else clean(caption).segments


def _joined(found: Iterable[tuple[Segment, CaptionPhraseSpans]]) -> CaptionPhraseSpans:
    """The phrases of a caption's segments, with spans in the caption."""
    joined = CaptionPhraseSpans()
    for segment, part in found:
        for start, end, root in part.phrases:
            span = segment.in_caption(start, end)
            joined.phrases.append((*span, root))
            joined.numbers[span] = part.numbers[start, end]
        for reason, n in part.dropped.items():
            joined.drop(reason, n)
    return joined


def caption_skip_reason(caption: str, config: ParsePhrasesConfig) -> str | None:
    """Reason to leave a whole caption out, or None.

    ``empty_caption``; ``placeholder``: "nan" and the like; ``only_marks``: emoji, hashtags and the
    like; ``not_english``, with another ``language`` ``not_in_language``; with ``drop_boilerplate``
    those of :func:`pipeline.phrases.captions.skip_reason`.
    """
    if config.rules == 2:
        reason = skip_reason(caption) if config.drop_boilerplate else None
        return reason or ("empty_caption" if not caption.strip() else None)
    cleaned = clean(caption)
    if not caption.strip():
        return "empty_caption"
    if caption.strip().lower() in PLACEHOLDERS or cleaned.text.lower() in PLACEHOLDERS:
        return "placeholder"
    if not cleaned.segments:
        return "only_marks"
    if config.drop_boilerplate and (reason := skip_reason(cleaned.text)):
        return reason
    if config.language and other_language(" ".join(s.text for s in cleaned.segments), config.language):
        return "not_english" if config.language == "en" else "not_in_language"
    return None
