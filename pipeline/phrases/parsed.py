"""Phrases extracted from one caption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class CaptionPhraseSpans:
    """Phrases of one caption, and the numbers of dropped ones by reason.

    A phrase is (start, end, root): its span ``[start, end)`` in the caption, and its root as in
    records.PHRASES. Phrases are sorted by (start, end), with unique spans. numbers: span -> number
    of things as in records.NUMBERED_PHRASES, of the spans where it is known.
    """

    phrases: list[tuple[int, int, str]] = field(default_factory=list)
    numbers: dict[tuple[int, int], int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, n: int = 1) -> None:
        """Count ``n`` dropped phrases."""
        if n:
            self.dropped[reason] = self.dropped.get(reason, 0) + n

    def add(self, part: CaptionPhraseSpans, in_caption: Callable[[int, int], tuple[int, int]]) -> None:
        """Add the phrases of a part of the caption, where a span of the part has a span in the caption."""
        self.phrases += [(*in_caption(start, end), root) for start, end, root in part.phrases]
        self.numbers |= {in_caption(*span): number for span, number in part.numbers.items()}
        for reason, n in part.dropped.items():
            self.drop(reason, n)
