"""Flickr30k Entities' recall, by hand in both protocols, and what a caption's phrases are."""

from __future__ import annotations

from pipeline.data.records import GroundingRecord, Region
from pipeline.evaluation.metrics import NEVER, queries_of
from pipeline.evaluation.protocols import named_phrases
from tests.pipeline.evaluation.test_matching import image
from tests.pipeline.evaluation.test_metrics import recall_at_k

A, B = (0, 0, 10, 10), (30, 0, 40, 10)
AROUND = (0, 0, 40, 10)  # of A and B
FAR = (0, 50, 5, 55)


def test_any_box_and_merged_boxes_by_hand():
    gold = [(A, 0, False), (B, 0, False), (B, 1, False)]
    found = [(A, 0, 0.9), (AROUND, 0, 0.8), (FAR, 1, 0.7), (AROUND, 1, 0.6), (FAR, 1, 0.5), ((29, 0, 40, 10), 1, 0.4)]
    queries = queries_of([image(gold, found), image([], []), image([(A, 2, False)], [(FAR, 2, 0.9)])])
    # phrase 0: A fits at once by any box; merged it wants AROUND, which is second. Phrase 1: its one box is found by
    # the fourth.
    assert queries.image.tolist() == [0, 0, 2] and queries.label.tolist() == [0, 1, 2]
    assert queries.boxes.tolist() == [2, 1, 1]
    assert queries.first.tolist() == [0, 3, NEVER]
    assert queries.first_merged.tolist() == [1, 3, NEVER]


def test_recall_is_over_phrases_of_all_captions():
    results = [
        image([(A, 0, False), (B, 1, False)], [(A, 0, 0.9), (FAR, 1, 0.8), (B, 1, 0.7)]),
        image([(A, 0, False)], []),
    ]
    assert recall_at_k(results, (1, 5)) == {"recall_at_1": 100 / 3, "recall_at_5": 200 / 3, "queries": 3}


def record(*regions):
    return GroundingRecord(
        key="k",
        dataset="g",
        kind="grounding",
        image_size=(100, 100),
        caption="two dogs and a dog by a tree",
        regions=regions,
    )


def phrases_of(*regions, protocol="flickr"):
    return [(n.phrase, n.boxes.tolist()) for n in named_phrases(record(*regions), protocol)]


def test_regions_of_one_span_are_one_phrase_and_crowds_are_none():
    assert phrases_of(
        Region(box=A, phrase="two dogs", tokens_positive=((0, 8),)),
        Region(box=B, phrase="a dog", tokens_positive=((13, 18),)),
        Region(box=B, phrase="two dogs", tokens_positive=((0, 8),)),
        Region(box=B, phrase="a tree", tokens_positive=((22, 28),), ignore=True),
    ) == [("two dogs", [[*A], [*B]]), ("a dog", [[*B]])]


def test_every_marked_span_is_a_phrase_with_all_boxes_of_its_entity():
    # an entity of two boxes named twice, and a box of two entities
    twice = ((0, 8), (13, 18))
    assert phrases_of(
        Region(box=A, phrase="two dogs a dog", tokens_positive=twice),
        Region(box=FAR, phrase="two dogs a dog a tree", tokens_positive=(*twice, (22, 28))),
        Region(box=B, phrase="a tree", tokens_positive=((22, 28),)),
    ) == [("two dogs", [[*A], [*FAR]]), ("a dog", [[*A], [*FAR]]), ("a tree", [[*FAR], [*B]])]


def test_spans_that_touch_are_pieces_of_one_phrase():
    pieces = ((7, 8), (4, 6), (6, 7), (4, 6), (13, 18))
    assert [n for n, _ in phrases_of(Region(box=A, phrase="dogs", tokens_positive=pieces))] == ["dogs", "a dog"]


def test_a_sentence_of_flickr30k_asks_for_each_of_its_marks(tmp_path):
    from pipeline.readers.flickr30k import labelled, parse_sentence
    from pipeline.readers.index import Entry

    sentence = "[/EN#1/people A man] sees [/EN#1/people himself] and [/EN#2/animals two dogs] by [/EN#3/scene a lake] ."
    caption, marks = parse_sentence(sentence)
    boxes = [(["1"], A), (["2"], B), (["2"], FAR)]
    item = labelled(Entry("1_0", ("1.jpg", (100, 100), caption, marks, boxes), []), {})
    fields = {"key": "k", "dataset": "g", "kind": "grounding", "image_size": (100, 100), "caption": item.caption}
    got = named_phrases(GroundingRecord(regions=item.regions, **fields), "flickr")
    assert [(n.phrase, n.boxes.tolist()) for n in got] == [
        ("A man", [[*A]]),
        ("himself", [[*A]]),
        ("two dogs", [[*B], [*FAR]]),
    ]


def test_a_referring_expression_is_asked_for_whole():
    got = named_phrases(record(Region(box=A, phrase="a dog", tokens_positive=((13, 18),))), "refcoco")
    assert [(n.span, n.phrase) for n in got] == [((0, 28), "two dogs and a dog by a tree")]
