"""A shard's table: rows by sample, phrase and falling score; every sample and phrase counted once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.annotators.base import RegionPredictions, TextQuery
from pipeline.annotators.batches import Item
from pipeline.config import PseudoLabelConfig
from pipeline.data.caption_phrases import CaptionPhrases
from pipeline.data.images import ImageError
from pipeline.data.records import NUMBERED_REGIONS, REGIONS
from pipeline.labelling.region_table import ShardResult, image_rows


def annotations(phrase: list[int], score: list[float]) -> RegionPredictions:
    n, scores = len(phrase), np.asarray(score, np.float32)
    boxes = np.stack([np.arange(n), np.arange(n), np.arange(n) + 5, np.arange(n) + 9], 1).astype(np.float32)
    none = np.full(n, np.nan, np.float32)
    return RegionPredictions(np.asarray(phrase, np.int64), boxes.reshape(n, 4), scores, scores, scores, scores, none)


rows = st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0.1, 0.2, 0.5, 0.9])), max_size=40)


@given(rows, st.integers(1, 5))
def test_each_phrase_keeps_its_best_in_falling_score(found, most):
    columns, phrase = image_rows(annotations([p for p, _ in found], [s for _, s in found]), most)
    for p in range(5):
        want = sorted((s for q, s in found if q == p), reverse=True)[:most]
        mine = phrase == p
        np.testing.assert_allclose(columns["score"][mine], np.asarray(want, np.float32))
        assert columns["rank"][mine].tolist() == list(range(len(want)))
    assert (np.diff(phrase) >= 0).all()


def query(of_image: CaptionPhrases, phrases: tuple[int, ...]) -> TextQuery:
    return TextQuery(of_image.caption, tuple(of_image.spans[p] for p in phrases), phrases, 10)


def test_windows_of_a_caption_come_together_and_losses_are_counted():
    caption = "a dog and a cat and a bird"
    whole = CaptionPhrases(caption, (0, 1, 2), ((2, 5), (12, 15), (22, 26)), ("dog", "cat", "bird"))
    lost = CaptionPhrases(caption, (3,), ((2, 5),), ("dog",))
    gone = CaptionPhrases(caption, (4, 5), ((2, 5), (12, 15)), ("dog", "cat"))
    long = CaptionPhrases(caption, (6,), ((2, 5),), ("dog",))
    shard = ShardResult({"k0": whole, "k1": lost, "k2": gone, "k3": long})
    shard.keys, shard.sizes = {0: "k0", 1: "k1", 3: "k3"}, {0: (50, 60), 1: (5, 5), 3: (5, 5)}
    shard.beyond_limit = {0: 1, 1: 0, 3: 1}
    first, second = query(whole, (0,)), query(whole, (1,))
    shard.add([Item(0, "k0", b"", (50, 60), (50, 60), second)], [annotations([1, 1], [0.3, 0.8])])
    shard.add([Item(0, "k0", b"", (50, 60), (50, 60), first)], [annotations([], [])])
    shard.lose(1, ImageError("broken_image", "no end"))
    table, tallies, notes = shard.finish(PseudoLabelConfig())
    assert table.schema == REGIONS and table["phrase"].to_pylist() == ["cat", "cat"]
    assert table["phrase_row"].to_pylist() == [1, 1] and table["rank"].to_pylist() == [0, 1]
    assert table["start"].to_pylist() == [12, 12] and table["width"].to_pylist() == [60, 60]
    assert tallies["samples"].dropped == {"broken_image": 1, "not_in_shard": 1, "phrase_beyond_text_limit": 1}
    assert tallies["samples"].kept == 1
    phrases = tallies["phrases"]
    assert phrases.kept == 1 and phrases.seen == 3 + 1 + 2 + 1
    assert phrases.dropped == {"image_lost": 3, "no_region": 1, "phrase_beyond_text_limit": 2}
    assert notes == ["k1: broken_image: no end"]


def test_numbers_go_with_their_phrases():
    caption = "two dogs and cats"
    phrases = CaptionPhrases(caption, (0, 1), ((0, 8), (13, 17)), ("dog", "cat"), (2, 0))
    unknown = CaptionPhrases(caption, (2,), ((0, 8),), ("dog",), (None,))
    shard = ShardResult({"k0": phrases, "k1": unknown})
    shard.keys, shard.sizes, shard.beyond_limit = {0: "k0", 1: "k1"}, {0: (50, 60), 1: (50, 60)}, {0: 0, 1: 0}
    shard.add(
        [Item(0, "k0", b"", (50, 60), (50, 60), query(phrases, (0, 1)))], [annotations([1, 0, 1], [0.3, 0.8, 0.4])]
    )
    shard.add([Item(1, "k1", b"", (50, 60), (50, 60), query(unknown, (0,)))], [annotations([0], [0.3])])
    table, _, _ = shard.finish(PseudoLabelConfig())
    assert table.schema == NUMBERED_REGIONS and table["number"].to_pylist() == [2, 0, 0, None]
