"""A shard of several stores merged: by hand, against a plain loop, and what is refused."""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import MergeConfig
from pipeline.data.records import REGIONS
from pipeline.errors import InputError
from pipeline.labelling.merging import merge_stores
from tests.fixtures.regions import random_rows, region, table_of, write
from tests.pipeline.filtering.test_fusion import slow

NEAR = (0, 0, 10, 9)
FAR = (50, 50, 90, 90)


def stores(folder, *rows, config=MergeConfig(), **more):
    folder.mkdir(parents=True, exist_ok=True)
    paths = [
        write(folder / f"{i}.parquet", table_of(of_store), {"teacher": f"glip@{i}", "config": '{"floor": 0.05}'})
        for i, of_store in enumerate(rows)
    ]
    return merge_stores(paths, config)


def test_matched_boxes_become_their_mean_weighted_by_score(tmp_path):
    a, b = [region(score=0.9), region(score=0.4, box=FAR, rank=1)], [region(score=0.3, box=NEAR)]
    table, tally, numbers, about = stores(tmp_path, a, b)
    first, second = table.to_pylist()
    assert [first[n] for n in ("x1", "y1", "x2")] == [0, 0, 10] and first["y2"] == pytest.approx(9.75)
    assert first["score"] == pytest.approx(0.6) and second["score"] == pytest.approx(0.2)  # found by one of two
    assert [r["agreed"] for r in (first, second)] == [2, 1] and [r["rank"] for r in (first, second)] == [0, 1]
    assert [first[n] for n in ("score_0", "score_1")] == [np.float32(0.9), np.float32(0.3)]
    assert (second["score_1"], first["token_mean"]) == (None, np.float32(0.9))
    assert (tally.seen, tally.kept, tally.dropped) == (3, 2, {"fused": 1})
    assert numbers == {"agreed_1": 1, "agreed_2": 1}
    assert about["teacher"] == "glip@0+glip@1" and json.loads(about["config"])["floor"] == 0.05
    assert [t["teacher"] for t in json.loads(about["teachers"])] == ["glip@0", "glip@1"]


def test_weights_move_boxes_and_scores(tmp_path):
    config = MergeConfig(weights=(3, 1))
    table, *_ = stores(tmp_path, [region(score=0.5)], [region(score=0.5, box=NEAR)], config=config)
    (row,) = table.to_pylist()
    assert row["y2"] == pytest.approx(9.75) and row["score"] == pytest.approx((1.5 + 0.5) / 2 * 2 / 4)


def test_agree_keeps_the_best_as_it_is_and_only_what_enough_teachers_found(tmp_path):
    a = [region(score=0.9), region(score=0.4, box=FAR, rank=1)]
    b = [region(score=0.95, box=NEAR), region(score=0.3, rank=1)]
    table, tally, *_ = stores(tmp_path, a, b, config=MergeConfig(method="agree"))
    (row,) = table.to_pylist()
    assert (row["y2"], row["score"], row["agreed"]) == (9, np.float32(0.95), 2)
    assert tally.dropped == {"fused": 2, "too_few_teachers": 1}
    table, *_ = stores(tmp_path, a, b, config=MergeConfig(method="agree", agree=1))
    assert [r["score"] for r in table.to_pylist()] == [np.float32(0.95), np.float32(0.4)]


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(1, 3)),
    st.sampled_from([MergeConfig(), MergeConfig(iou=0.3, agree=2), MergeConfig(method="agree", agree=1)]),
)
def test_every_phrase_is_merged_as_by_the_loop(tmp_path_factory, drawn, config):
    *seeds, images = drawn
    rows = [_same_phrases(seed, images) for seed in seeds]
    table, tally, *_ = stores(tmp_path_factory.mktemp("stores"), *rows, config=config)
    groups = defaultdict(list)
    for i, of_store in enumerate(rows):
        for row in of_store:
            if row["x2"] > row["x1"] and row["y2"] > row["y1"] and row["score"] == row["score"]:
                groups[row["key"], row["phrase_row"]].append((i, row))
    found = defaultdict(list)
    for row in table.to_pylist():
        found[row["key"], row["phrase_row"]].append(row)
    assert list(found) == sorted(found)
    for name, members in groups.items():
        boxes = np.array([[r[c] for c in ("x1", "y1", "x2", "y2")] for _, r in members], np.float32)
        score = np.array([r["score"] for _, r in members], np.float32)
        expected = []
        for cluster, fused in zip(*slow(boxes, score, config.iou, config.method == "wbf"), strict=True):
            who = {members[j][0] for j in cluster}
            if len(who) < config.least:
                continue
            value = float(score[cluster].mean(dtype=float)) * min(2, len(cluster)) / 2
            value = float(score[cluster[0]]) if config.method == "agree" else min(value, 1)
            expected.append((value, len(who), *fused))
        mine = [(r["score"], r["agreed"], r["x1"], r["y1"], r["x2"], r["y2"]) for r in found[name]]
        np.testing.assert_allclose(sorted(mine), sorted(expected), rtol=1e-5)
        assert [r["rank"] for r in found[name]] == list(range(len(mine)))
        assert [r["score"] for r in found[name]] == sorted((r["score"] for r in found[name]), reverse=True)
    assert tally.seen == sum(map(len, rows)) and tally.kept == len(table)


def _same_phrases(seed, images):
    """Random regions of phrases that do not depend on the seed."""
    rows = [r for r in random_rows(seed, images) if r["start"] == 0]
    return [r | {"phrase": "dog", "end": 3, "phrase_row": int(r["key"])} for r in rows]


def test_images_and_phrases_of_one_store_alone_stay_in_their_places(tmp_path):
    a = [region(key=k, phrase_row=i) for i, k in [(0, "a"), (2, "c"), (4, "e")]]
    b = [region(key=k, phrase_row=i) for i, k in [(1, "b"), (2, "c"), (3, "d")]]
    table, *_ = stores(tmp_path, a, b)
    assert table["key"].to_pylist() == ["a", "b", "c", "d", "e"]
    assert table["agreed"].to_pylist() == [1, 1, 2, 1, 1]
    assert table.schema.field("score_0").type == pa.float32()
    empty, tally, *_ = stores(tmp_path, [], [])
    assert (len(empty), tally.seen, empty.schema.names) == (0, 0, table.schema.names)


def test_further_columns_are_those_of_the_best_member(tmp_path):
    a = table_of([region(score=0.3)]).append_column("name", pa.array(["dog"]))
    b = table_of([region(score=0.9)]).append_column("number", pa.array([3], pa.int32()))
    paths = [write(tmp_path / "a.parquet", a), write(tmp_path / "b.parquet", b)]
    (row,) = merge_stores(paths, MergeConfig())[0].to_pylist()
    assert (row["name"], row["number"], row["centerness"]) == (None, 3, 0.5)
    b = b.drop_columns("number").append_column("name", pa.array([3], pa.int32()))
    with pytest.raises(InputError, match="different types"):
        merge_stores([paths[0], write(tmp_path / "b.parquet", b)], MergeConfig())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"phrase": "cat"},
            "phrase 0 of a: found phrase 'dog' in .*0.parquet and 'cat' in .*1.parquet; want stores of",
        ),
        ({"start": 1}, "found start 0 in .* and 1 in"),
        ({"height": 99}, "found height 100 in .* and 99 in"),
        ({"key": "b"}, "phrase 0: found key 'a' in .* and 'b' in"),
    ],
)
def test_stores_of_other_phrases_are_refused(tmp_path, other, words):
    with pytest.raises(InputError, match=words):
        stores(tmp_path, [region()], [region() | other])


def test_phrases_may_be_numbered_by_image(tmp_path):
    a = [region(), region(key="b"), region(key="c")]
    table, *_ = stores(tmp_path, a, [region(), region(key="c")])
    assert table["agreed"].to_pylist() == [2, 1, 2]


def test_labels_and_merged_regions_are_refused(tmp_path):
    merged = write(tmp_path / "m.parquet", stores(tmp_path, [region()], [region()])[0])
    plain = write(tmp_path / "p.parquet", table_of([region()]))
    with pytest.raises(InputError, match=r"m.parquet: found the column agreed; want regions of one teacher"):
        merge_stores([plain, merged], MergeConfig())
    with pytest.raises(InputError, match="has no column rank"):
        merge_stores([plain, write(tmp_path / "x.parquet", table_of([region()]).drop_columns("rank"))], MergeConfig())


def test_the_required_columns_stay_required(tmp_path):
    schema = stores(tmp_path, [region()], [region()])[0].schema
    assert [schema.field(n) for n in REGIONS.names] == list(REGIONS)
    assert not schema.field("agreed").nullable and schema.field("score_1").nullable
