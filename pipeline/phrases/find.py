"""Extraction of phrases by the configured method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import tee

from pipeline.config import ParsePhrasesConfig
from pipeline.data.crawl import is_placeholder
from pipeline.phrases.captions import skip_reason
from pipeline.phrases.cleaning import Segment, clean
from pipeline.phrases.language import other_language, other_script
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
    for caption, segments in second:
        joined = CaptionPhraseSpans()
        for segment in segments:
            span = segment.in_caption(0, len(segment.text)) if segment.text else (0, 0)
            joined.add(phrases(next(docs), whole=caption[slice(*span)] == caption.strip()), segment.in_caption)
        yield joined


def _segments(caption: str, config: ParsePhrasesConfig) -> tuple[Segment, ...]:
    """The parts of a caption to parse, without those in a script of another language."""
    if config.rules == 2:
        return (Segment(caption, 0),)
    segments, language = clean(caption).segments, config.language
    if not language or len(segments) == 1:
        return segments
    return tuple(s for s in segments if not (other_script(s.text) and other_language(s.text, language)))


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
    if is_placeholder(caption) or is_placeholder(cleaned.text):
        return "placeholder"
    reason = skip_reason(cleaned.text) if config.drop_boilerplate else None
    if not cleaned.segments:
        return reason if reason in ("address", "file_name") else "only_marks"
    if reason:
        return reason
    text = " ".join(s.text for s in cleaned.segments)
    if "capitals" in cleaned.kinds and not cleaned.text.isupper():
        text = cleaned.text  # capitals tell names: "El Paso"
    if config.language and other_language(text, config.language):
        return "not_english" if config.language == "en" else "not_in_language"
    return None
