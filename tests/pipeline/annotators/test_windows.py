"""Questions about captions of any length: every phrase once or missing, every text within the
limit, every slice exact."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.annotators.windows import caption_queries, class_queries
from pipeline.errors import InputError


@st.composite
def asked(draw: st.DrawFn) -> tuple[str, list[tuple[int, int]], list[tuple[int, int, int]], int, int]:
    """A caption of words with any gaps, spans anywhere in it (also between words), the words'
    tokens, limit, specials."""
    caption, words = draw(st.sampled_from(["", " ", "  "])), []
    for _ in range(draw(st.integers(0, 40))):
        text = draw(st.text("abcİß", min_size=1, max_size=5))
        words.append((len(caption), len(caption) + len(text), draw(st.integers(1, 4))))
        caption += text + draw(st.sampled_from([" ", "", "  ", " \u0301"]))
    place = st.integers(0, len(caption))
    spans = [tuple(sorted((draw(place), draw(place)))) for _ in range(draw(st.integers(0, 12)))]
    return caption, spans, words, draw(st.integers(4, 30)), draw(st.integers(2, 3))


@settings(max_examples=300, deadline=None)
@given(asked())
def test_every_phrase_is_asked_once_or_missing(case):
    caption, spans, words, limit, specials = case
    queries, missing = caption_queries(caption, spans, words, limit, specials)
    placed = sorted([p for q in queries for p in q.phrases] + missing)
    assert placed == list(range(len(spans)))
    whole = sum(n for *_, n in words) + specials <= limit
    assert not (whole and missing)
    for query in queries:
        assert len(query.spans) == len(query.phrases)
        for (start, end), phrase in zip(query.spans, query.phrases, strict=True):
            assert 0 <= start <= end <= len(query.text)
            assert query.text[start:end] == caption[slice(*spans[phrase])]


@settings(max_examples=300, deadline=None)
@given(asked())
def test_every_text_is_within_the_limit_and_cut_between_words(case):
    caption, spans, words, limit, specials = case
    queries, missing = caption_queries(caption, spans, words, limit, specials)
    for query in queries:
        places = [i for i in range(len(caption)) if caption.startswith(query.text, i)] or [0]

        def tokens(place: int, text: str = query.text) -> int | None:
            """Of the words in the text, if it begins here; None if that would cut a word."""
            touched = [w for w in words if w[0] < place + len(text) and w[1] > place]
            cut = any(w[0] < place or w[1] > place + len(text) for w in touched)
            return None if cut else sum(n for *_, n in touched)

        assert query.tokens <= limit
        assert query.tokens - specials in [tokens(place) for place in places]
    for phrase in missing:
        start, end = spans[phrase]
        touched = [n for a, b, n in words if a < end and b > start]
        assert not touched or sum(touched) > limit - specials


def test_a_phrase_has_context_on_both_sides():
    words = [(3 * i, 3 * i + 2, 1) for i in range(60)]
    caption = " ".join(f"{i:02d}" for i in range(60))
    spans = [(w[0], w[1]) for w in words]
    queries, missing = caption_queries(caption, spans, words, 22)
    assert missing == [] and len(queries) <= 6
    for query in queries:
        for (start, end), phrase in zip(query.spans, query.phrases, strict=True):
            before = len(query.text[:start].split())
            after = len(query.text[end:].split())
            assert before >= min(phrase, 5) and after >= min(59 - phrase, 4)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("ab ", min_size=1, max_size=12), max_size=20), st.integers(10, 30))
def test_class_lists_are_asked_in_order_in_few_texts(names, limit):
    def count(text: str) -> int:
        return len(text.split()) + text.count(".")

    room = limit - 2
    queries = list(class_queries(names, count, limit, ". "))
    assert [p for q in queries for p in q.phrases] == list(range(len(names)))
    for query in queries:
        assert [query.text[a:b] for a, b in query.spans] == [names[p] for p in query.phrases]
        assert sum(count(names[p] + ". ") for p in query.phrases) <= room
    for left, right in pairwise(queries):  # the next name did not fit any more
        assert sum(count(names[p] + ". ") for p in (*left.phrases, right.phrases[0])) > room


def test_a_name_beyond_the_limit_is_an_error():
    with pytest.raises(InputError, match=r"'a b c d e f g' alone takes 8 tokens; the text limit is 6"):
        list(class_queries(["x", "a b c d e f g"], lambda t: len(t.split()) + t.count("."), 8, ". "))
