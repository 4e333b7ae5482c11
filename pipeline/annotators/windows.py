"""Queries of captions and class names: texts within the text limit that hold every phrase once."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence

from pipeline.annotators.base import TextQuery
from pipeline.data.records import Span
from pipeline.errors import InputError

Word = tuple[int, int, int]
"""A word's start and end in characters, and its number of tokens. Texts are cut between words only, so tokens stay."""


def caption_queries(
    caption: str, spans: Sequence[Span], words: Sequence[Word], limit: int, specials: int = 2
) -> tuple[list[TextQuery], list[int]]:
    """(queries of a caption, phrases longer than the limit).

    A caption that fits is one query. In a longer one, every phrase belongs to the window that gives
    it most context on its poorer side. Windows are half a limit apart, so that one holds any phrase
    of up to half the limit; a longer phrase gets a window of its own.

    Args:
        words: all of the caption's words in order, with their tokens.
        limit: tokens of one text at most, ``specials`` included.
    """
    total = sum(n for *_, n in words)
    if total + specials <= limit:
        return [TextQuery(caption, tuple(spans), tuple(range(len(spans))), total + specials)], []
    room = limit - specials
    before = [0]
    for *_, n in words:
        before.append(before[-1] + n)
    starts, ends = [w[0] for w in words], [w[1] for w in words]
    windows = _windows(before, room)
    phrases_of: dict[tuple[int, int], list[int]] = {}
    missing = []
    for i, (start, end) in enumerate(spans):
        first, last = bisect_right(ends, start), bisect_left(starts, end)  # the words it touches: [first, last)
        if first >= last or before[last] - before[first] > room:
            missing.append(i)
            continue
        around = [w for w in windows if w[0] <= first and last <= w[1]] or [_around(before, first, last, room)]
        best = max(around, key=lambda w: (_context(before, w, first, last), -w[0]))
        phrases_of.setdefault(best, []).append(i)
    queries = []
    for (first, last), phrases in sorted(phrases_of.items()):
        # a phrase may begin before its first word, at a character that belongs to no token
        start = min([starts[first], *(spans[i][0] for i in phrases)])
        end = max([ends[last - 1], *(spans[i][1] for i in phrases)])
        moved = tuple((spans[i][0] - start, spans[i][1] - start) for i in phrases)
        queries.append(TextQuery(caption[start:end], moved, tuple(phrases), before[last] - before[first] + specials))
    return queries, missing


def _windows(before: Sequence[int], room: int) -> list[tuple[int, int]]:
    """[first, last) words of windows of at most ``room`` tokens, each starting half a window after the one before."""
    words = len(before) - 1
    windows: list[tuple[int, int]] = []
    first = 0
    while True:
        last = bisect_right(before, before[first] + room) - 1
        windows.append((first, max(last, first + 1)))
        if last >= words:
            return windows
        first = max(first + 1, bisect_left(before, before[first] + room // 2))


def _around(before: Sequence[int], first: int, last: int, room: int) -> tuple[int, int]:
    """The window with the words [first, last) in its middle."""
    spare = room - (before[last] - before[first])
    start = bisect_left(before, before[first] - spare // 2)
    return start, bisect_right(before, before[start] + room) - 1


def _context(before: Sequence[int], window: tuple[int, int], first: int, last: int) -> int:
    """Tokens between a phrase and the nearer end of a window at which the caption continues."""
    words = len(before) - 1
    left = before[first] - before[window[0]] if window[0] else before[-1]
    right = before[window[1]] - before[last] if window[1] < words else before[-1]
    return min(left, right)


def class_queries(
    names: Sequence[str], token_count: Callable[[str], int], limit: int, separator: str, specials: int = 2
) -> Iterator[TextQuery]:
    """As few texts "person. traffic light" as hold all class names in order.

    Raises:
        InputError: a single name is longer than the text limit.
    """
    room = limit - specials
    text, used = "", 0
    spans: list[Span] = []
    phrases: list[int] = []
    for i, name in enumerate(names):
        cost = token_count(name + separator)
        if cost > room:
            raise InputError(f"class name {name!r} alone takes {cost} tokens; the text limit is {room}")
        if used + cost > room:
            yield TextQuery(text, tuple(spans), tuple(phrases), used + specials)
            text, spans, phrases, used = "", [], [], 0
        text += separator if text else ""
        spans.append((len(text), len(text) + len(name)))
        phrases.append(i)
        text += name
        used += cost
    if phrases:
        yield TextQuery(text, tuple(spans), tuple(phrases), used + specials)
