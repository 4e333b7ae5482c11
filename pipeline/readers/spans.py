"""Spans of captions, and their text."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pipeline.data.records import Span
from pipeline.readers.base import lose


def spans_of(value: Any, length: int, lost: Counter[str]) -> tuple[Span, ...] | None:
    """``tokens_positive`` as spans of a caption of ``length``; None, and counted, if invalid."""
    if not isinstance(value, list) or not value:
        lose(lost, "no_span", f"`tokens_positive` {value!r}")
        return None
    spans = []
    for pair in value:
        integers = isinstance(pair, list | tuple) and len(pair) == 2 and all(type(v) is int for v in pair)
        if not integers or not 0 <= pair[0] < pair[1] <= length:
            lose(lost, "span_outside_caption", f"`tokens_positive` {value} of {length} characters")
            return None
        spans.append((pair[0], pair[1]))
    return tuple(spans)


def stated_uncertain(value: Any, length: int, lost: Counter[str]) -> tuple[Span, ...]:
    """``uncertain`` spans as export-labels writes them; () if absent or invalid."""
    return (spans_of(value, length, lost) or ()) if value else ()


def phrase_of(caption: str, spans: tuple[Span, ...]) -> str:
    """Text of the spans, joined by spaces."""
    return " ".join(caption[start:end] for start, end in spans)
