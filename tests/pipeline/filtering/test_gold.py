"""One-to-one matching of labels with gold boxes of the same captions."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.filtering.box_matching import match_boxes
from pipeline.filtering.gold import Gold, GoldMatcher, read_gold

FOUR_CATS = np.array([[10.0 * i, 0.0, 10.0 * i + 8, 8.0] for i in range(4)])


def gold_of(*phrases: tuple[str, int, int, np.ndarray]) -> Gold:
    """Gold boxes of (key, start, end, boxes (m, 4)) each."""
    keys = [key for key, _, _, boxes in phrases for _ in boxes]
    starts, ends = ([p[i] for p in phrases for _ in p[3]] for i in (1, 2))
    boxes = np.concatenate([p[3] for p in phrases])
    n = len(keys)
    return Gold(pa.array(keys), pa.array(["x"] * n), np.zeros(n, bool), np.array(starts), np.array(ends), boxes)


def taken(gold: Gold, spans, boxes, scores, kept=None) -> list[int]:
    n = len(spans)
    matcher = GoldMatcher(
        gold, np.zeros(n, np.int64), pa.array(["a"]), np.array([s for s, _ in spans]), np.array([e for _, e in spans]),
        np.array(boxes, np.float32), np.array(scores), 0.5,
    )  # fmt: skip
    return matcher.match(np.ones(n, bool) if kept is None else np.array(kept)).tolist()


def test_a_plural_phrase_has_as_many_correct_labels_as_gold_boxes():
    """ "four cats": four gold rows, four exact labels; precision and recall are 100 %."""
    gold = gold_of(("a", 0, 9, FOUR_CATS), ("b", 0, 9, FOUR_CATS))
    assert taken(gold, [(0, 9)] * 4, FOUR_CATS[::-1], [0.9, 0.8, 0.7, 0.6]) == [3, 2, 1, 0]


def test_a_second_label_of_one_box_is_wrong_until_the_first_is_dropped():
    gold = gold_of(("a", 0, 3, FOUR_CATS[:1]))
    spans, boxes = [(0, 3), (0, 3)], [FOUR_CATS[0] + 0.5, FOUR_CATS[0]]
    assert taken(gold, spans, boxes, [0.9, 0.8]) == [0, -1]
    assert taken(gold, spans, boxes, [0.7, 0.8]) == [-1, 0]  # in order of score
    assert taken(gold, spans, boxes, [0.9, 0.8], [False, True]) == [-1, 0]


def test_boxes_of_another_phrase_of_the_caption_count_for_nothing():
    gold = gold_of(("a", 0, 3, FOUR_CATS[:1]), ("a", 8, 11, FOUR_CATS[1:2]))
    assert taken(gold, [(8, 11), (20, 25)], [FOUR_CATS[0], FOUR_CATS[0]], [0.9, 0.8]) == [-1, -1]


boxes_of_a_grid = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 3), st.integers(1, 3)).map(
        lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
    ),
    min_size=1,
    max_size=6,
)


@given(golds=boxes_of_a_grid, labels=boxes_of_a_grid)
def test_it_is_the_evaluations_matching(golds, labels):
    golds, labels = np.array(golds, float), np.array(labels, float)
    scores = np.linspace(0.9, 0.1, len(labels))
    tp, _, _ = match_boxes(labels, golds, np.array([0.5, 0.75]))
    mine = taken(gold_of(("a", 0, 3, golds)), [(0, 3)] * len(labels), labels, scores)
    assert [row >= 0 for row in mine] == tp[:, 0].tolist()
    assert len({row for row in mine if row >= 0}) == sum(row >= 0 for row in mine)


def test_gold_of_any_order_is_read(tmp_path):
    table = pa.table(
        {"key": ["b", "a", "b"], "phrase": ["Cats", "dog", "Cats"], "novel": [False, True, False], "start": [0, 0, 0],
         "end": [4, 3, 4], "x1": [0.0, 1.0, 5.0], "y1": [0.0] * 3, "x2": [4.0, 5.0, 9.0], "y2": [4.0] * 3}
    )  # fmt: skip
    pq.write_table(table, tmp_path / "0.parquet")
    gold = read_gold(tmp_path / "0.parquet")
    matcher = GoldMatcher(
        gold, np.array([1, 1]), pa.array(["a", "b"]), np.array([0, 0]), np.array([4, 4]),
        np.array([[5.0, 0, 9, 4], [0, 0, 4, 4]]), np.array([0.9, 0.8]), 0.5,
    )  # fmt: skip
    assert matcher.match(np.array([True, True])).tolist() == [2, 0]
    assert matcher.match(np.array([False, False])).tolist() == [-1, -1]


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_is_matched_with_nothing(n):
    gold = gold_of(("b", 0, 3, FOUR_CATS[:1]))
    assert taken(gold, [(0, 3)] * n, np.zeros((n, 4)), [0.5] * n) == [-1] * n
