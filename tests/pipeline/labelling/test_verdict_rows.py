"""Verdicts applied to label rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.labelling.verdict_rows import revise
from tests.fixtures.verdicts import verdict

A, B, FAR = (0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 30.0, 30.0), (50.0, 50.0, 60.0, 70.0)


def row(box, phrase=0, status="keep", score=0.6):
    return {
        "key": "k", "phrase_row": phrase, **dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
        "score": score, "height": 100, "width": 100, "status": status,
    }  # fmt: skip


def shown(result):
    return sorted(
        (r["phrase_row"], tuple(r[c] for c in ("x1", "y1", "x2", "y2")), r["status"], r["score"], r.get("annotator"))
        for r in result.rows
    )


def phrase_of(v):
    return {"phrase_row": int(v.phrase)} if v.phrase.isdigit() else None


def say(decision, box=None, phrase="0", **values):
    return verdict(decision, box=box, phrase=phrase, **values)


@pytest.mark.parametrize(
    ("verdicts", "expected", "absent", "unsure"),
    [
        ([], [(0, A, "keep", 0.6, None), (0, B, "ignore", 0.6, None)], set(), set()),
        ([say("accept", A)], [(0, A, "keep", None, None), (0, B, "ignore", 0.6, None)], set(), set()),
        ([say("accept", B)], [(0, A, "keep", 0.6, None), (0, B, "keep", None, None)], set(), set()),
        # a rule had dropped it
        ([say("accept", FAR)], [(0, A, "keep", 0.6, None), (0, B, "ignore", 0.6, None), (0, FAR, "keep", None, "ann")],
         set(), set()),
        ([say("reject", A)], [(0, B, "ignore", 0.6, None)], set(), set()),
        ([say("reject", A), say("reject", B)], [], {0}, set()),
        ([say("reject", A, kind="machine"), say("reject", B)], [], {0}, set()),
        ([say("reject", A, kind="machine"), say("reject", B, kind="machine")], [], set(), {0}),
        ([say("reject", A), say("reject", B), say("unsure")], [], set(), {0}),
        ([say("fixed", A, boxes=(FAR,))], [(0, B, "ignore", 0.6, None), (0, FAR, "keep", None, "ann")], set(), set()),
        ([say("unsure", A)], [(0, A, "ignore", 0.6, None), (0, B, "ignore", 0.6, None)], set(), set()),
        ([say("reject")], [], {0}, set()),
        # what is said of the region stands before what is said of the phrase
        ([say("reject"), say("accept", A)], [(0, A, "keep", None, None)], set(), set()),
        ([say("missing", boxes=(FAR,)), say("reject", A), say("reject", B)], [(0, FAR, "keep", None, "ann")],
         set(), set()),
        ([say("missing", phrase="1", boxes=(FAR, A))],
         [(0, A, "keep", 0.6, None), (0, B, "ignore", 0.6, None), (1, A, "keep", None, "ann"),
          (1, FAR, "keep", None, "ann")], set(), set()),
        ([say("unsure")], [(0, A, "ignore", 0.6, None), (0, B, "ignore", 0.6, None)], set(), {0}),
        ([say("accept")], [(0, A, "keep", 0.6, None), (0, B, "ignore", 0.6, None)], set(), set()),
        ([say("reject", phrase="2")], [(0, A, "keep", 0.6, None), (0, B, "ignore", 0.6, None)], {2}, set()),
    ],
)  # fmt: skip
def test_decisions(verdicts, expected, absent, unsure):
    result = revise([row(A), row(B, status="ignore")], verdicts, phrase_of)
    assert (shown(result), result.absent, result.unsure) == (expected, absent, unsure)
    assert not result.unknown
    again = revise([row(A), row(B, status="ignore")], verdicts[::-1], phrase_of)
    assert shown(again) == expected  # their order does not matter


def test_unknown_phrases_change_nothing():
    result = revise([row(A)], [say("reject", A, phrase="x")], phrase_of)
    assert shown(result) == shown(revise([row(A)], [], phrase_of)) and len(result.unknown) == 1


BOXES = st.integers(0, 8).map(lambda i: (10.0 * i, 0.0, 10.0 * i + 9, 9.0))


@given(
    st.lists(st.tuples(BOXES, st.integers(0, 1)), unique=True),
    st.lists(
        st.tuples(st.sampled_from(["accept", "reject", "unsure", "fixed"]), BOXES, st.integers(0, 1)),
        unique_by=lambda v: v[1:],
    ),
)
def test_every_row_is_accounted_for(boxes, decided):
    rows = [row(box, phrase) for box, phrase in boxes]
    verdicts = [
        say(d, box, str(phrase), boxes=(tuple(v + 100 for v in box),) if d == "fixed" else ())
        for d, box, phrase in decided
    ]
    result = revise(rows, verdicts, phrase_of)
    at = {(phrase, box): d for d, box, phrase in decided}
    there = set(boxes)
    untouched = [place for place in boxes if (place[1], place[0]) not in at]
    accepted = [place for place, d in at.items() if d == "accept"]
    fixed = sum(d == "fixed" for d in at.values())
    unsure = [place for place, d in at.items() if d == "unsure" and (place[1], place[0]) in there]
    rejected = [place for place, d in at.items() if d == "reject"]
    assert len(result.rows) == len(untouched) + len(accepted) + fixed + len(unsure)
    assert result.absent == {p for p, _ in rejected} - {r["phrase_row"] for r in result.rows}
    assert result.counts["rejected"] == sum((box, phrase) in there for phrase, box in rejected)
