"""What was found in one caption."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Parsed:
    """Phrases of one caption and how many went for which reason.

    A phrase is (start, end, root): characters ``[start, end)`` of the caption, and its root as in records.PHRASES.
    Phrases are sorted by (start, end), and no two have the same span.
    """

    phrases: list[tuple[int, int, str]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, n: int = 1) -> None:
        """Count ``n`` phrases that went."""
        if n:
            self.dropped[reason] = self.dropped.get(reason, 0) + n
