"""Every rule by hand, all of them together against a plain loop, and shards of every odd shape."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import FilterConfig
from pipeline.data.records import REGIONS
from pipeline.errors import InputError
from pipeline.filtering.rules import REASONS, apply_rules, open_regions, preset_of
from tests.fixtures.regions import random_rows, region, table_of, write


def reasons(tmp_path, rows, config, **more):
    """Of every row its reason."""
    shard = open_regions(write(tmp_path / "00000.parquet", table_of(rows, **more)), config)
    verdict = apply_rules(shard, config)
    assert sum(verdict.counts().values()) == len(rows)
    out = np.full(len(rows), "below_threshold", object)
    mask = np.ones(len(rows), bool) if shard._mask is None else shard._mask.to_numpy(zero_copy_only=False)
    out[mask] = [REASONS[i] for i in verdict.reason]
    return out.tolist()


FAR = (50, 50, 90, 90)
CASES = {
    "glip": ({}, [region(score=0.5), region(score=0.51), region(score=float("nan"))],
             ["below_threshold", "keep", "below_threshold"]),
    "equal": ({"include_equal": True}, [region(score=0.5), region(score=0.49)], ["keep", "below_threshold"]),
    "area": ({}, [region(box=(5, 5, 5, 9)), region(box=(9, 5, 5, 9)), region()], ["no_area", "no_area", "keep"]),
    "best": ({"best_per_phrase": 1},
             [region(score=0.8), region(score=0.9), region(score=0.9), region(score=0.7, phrase_row=1)],
             ["not_best_of_phrase", "keep", "not_best_of_phrase", "keep"]),
    "side": ({"min_box_side": 4}, [region(box=(0, 0, 3, 50)), region(box=(0, 0, 4, 50))], ["too_small", "keep"]),
    "small": ({"min_area_share": 0.01}, [region(box=(0, 0, 9, 10)), region()], ["too_small", "keep"]),
    "large": ({"max_area_share": 0.5}, [region(box=(0, 0, 51, 100)), region(box=(0, 0, 50, 100))],
              ["too_large", "keep"]),
    "aspect": ({"max_aspect": 4.0},
               [region(box=(0, 0, 41, 10)), region(box=(0, 0, 10, 41)), region(box=(0, 0, 40, 10))],
               ["aspect", "aspect", "keep"]),
    # two mentions of one text (in any case) in an image; the same in another image; another text
    "same text": ({"same_text_iou": 0.5},
                  [region(score=0.8), region(phrase="DOG", phrase_row=1), region(key="b"),
                   region(phrase="cat", phrase_row=2)],
                  ["same_text_overlap", "keep", "keep", "keep"]),
    "cross phrase": ({"cross_phrase_iou": 0.5},
                     [region(score=0.8), region(phrase="cat", phrase_row=1), region(key="b"),
                      region(box=FAR, phrase_row=2), region(score=0.7, phrase_row=1)],
                     ["cross_phrase_overlap", "keep", "keep", "keep", "cross_phrase_overlap"]),
    "identical": ({"near_identical_iou": 0.9},
                  [region(score=0.8), region(phrase="cat", phrase_row=1), region(score=0.7, phrase="cat", phrase_row=1),
                   region(score=0.6, box=(0, 0, 10, 8))],
                  ["near_identical", "keep", "keep", "keep"]),
    "image": ({"threshold": 0.1, "image_threshold": 0.3},
              [region(score=0.2), region(score=0.31), region(score=0.3, key="b")],
              ["keep", "keep", "image_below_threshold"]),
    "cap": ({"max_per_phrase_text": 2},
            [region(score=0.7), region(score=0.8, key="b", phrase="Dog"), region(key="c"),
             region(key="c", phrase="cat")],
            ["phrase_cap", "keep", "keep", "keep"]),
    "regions": ({"min_regions": 2}, [region(), region(box=FAR), region(key="b"), region(key="b", score=0.1)],
                ["keep", "keep", "too_few_regions", "below_threshold"]),
    "ignore": ({"ignore_above": 0.3},
               [region(), region(score=0.5), region(score=0.3), region(score=0.4, box=(1, 1, 1, 1)),
                region(score=0.4, key="b")],
               ["keep", "kept_as_ignore", "below_threshold", "below_threshold", "below_threshold"]),
    "first reason": ({"max_aspect": 2.0, "min_box_side": 5}, [region(box=(0, 0, 4, 50))], ["too_small"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_rule_by_hand(name, tmp_path):
    settings, rows, expected = CASES[name]
    assert reasons(tmp_path, rows, FilterConfig(**settings)) == expected


def test_the_teachers_that_agree_are_counted_before_the_best_of_a_phrase_is_chosen(tmp_path):
    rows, config = [region(), region(score=0.8), region(score=0.7)], FilterConfig(min_agreed=2, best_per_phrase=1)
    expected = ["too_few_teachers", "keep", "not_best_of_phrase"]
    assert reasons(tmp_path, rows, config, agreed=[1, 3, 2]) == expected


def test_yolo_world_goes_by_the_geometric_mean_and_the_images_mean_region_text_score(tmp_path):
    rows = [
        region(score=0.9),
        region(score=0.9, box=FAR),
        region(score=0.4, box=(0, 50, 20, 70)),
        region(key="b"),
        region(key="b", box=FAR),
    ]
    region_text = [0.4, 0.05, 0.3, 0.2, float("nan")]  # sqrt: 0.6, 0.21, 0.35, 0.42
    config = FilterConfig(preset="yolo_world")
    # image a: mean of 0.4 and 0.3; image b: 0.2
    expected = ["keep", "below_threshold", "keep", "image_score_low", "below_threshold"]
    assert reasons(tmp_path, rows, config, region_text=region_text) == expected
    by_region_text = FilterConfig(score_by="region_text", threshold=0.3, include_equal=True)
    found = reasons(tmp_path, rows, by_region_text, region_text=region_text)
    assert found == ["keep", "below_threshold", "keep", "below_threshold", "below_threshold"]
    with pytest.raises(InputError, match=r"no column region_text.*or set score_by=score"):
        reasons(tmp_path, rows, config)
    by_verifier = FilterConfig(score_by="verifier", threshold=0.3, min_image_score=0.35)
    found = reasons(tmp_path, rows, by_verifier, verifier=region_text)
    assert found == ["keep", *["below_threshold"] * 4]
    with pytest.raises(InputError, match="no column verifier, which score_by=verifier needs; run rescore"):
        reasons(tmp_path, rows, by_verifier, region_text=region_text)
    assert "keep" in reasons(tmp_path, rows, FilterConfig(preset="yolo_world", score_by="score"))


def test_presets_fill_in_and_settings_beside_them_win():
    assert FilterConfig(preset="glip").effective() == FilterConfig().effective()
    owl = FilterConfig(preset="owl_st")
    assert (owl.threshold, owl.include_equal, owl.image_threshold) == (0.1, True, 0.3)
    grit = FilterConfig.model_validate({"preset": "grit", "threshold": 0.7})
    assert (grit.threshold, grit.cross_phrase_iou) == (0.7, 0.6)
    assert FilterConfig.model_validate(grit.model_dump()) == grit
    assert [preset_of(c) for c in (FilterConfig(), owl, grit)] == ["glip", "owl_st", ""]
    with pytest.raises(ValueError, match="preset"):
        FilterConfig.model_validate({"preset": "glipp"})


def plain(rows, config):
    """The rules of the first version, one region at a time."""
    out = []
    for r in rows:
        w, h = r["x2"] - r["x1"], r["y2"] - r["y1"]
        if not np.float32(r["score"]) > np.float32(config.threshold):
            out.append("below_threshold")
        else:
            out.append("keep" if w > 0 and h > 0 else "no_area")

    def best(group, limit, reason):
        groups = {}
        for i, r in enumerate(rows):
            if out[i] == "keep":
                groups.setdefault(group(r), []).append(i)
        for members in groups.values():
            for i in sorted(members, key=lambda i: (-rows[i]["score"], i))[limit:]:
                out[i] = reason

    best(lambda r: r["phrase_row"], config.best_per_phrase, "not_best_of_phrase")
    for i, r in enumerate(rows):
        w, h = r["x2"] - r["x1"], r["y2"] - r["y1"]
        if out[i] == "keep" and min(w, h) < config.min_box_side:
            out[i] = "too_small"
        if out[i] == "keep" and w * h > config.max_area_share * r["height"] * r["width"]:
            out[i] = "too_large"
        if out[i] == "keep" and max(w / h, h / w) > config.max_aspect:
            out[i] = "aspect"
    best(lambda r: r["phrase"].lower(), config.max_per_phrase_text, "phrase_cap")
    per_image = {r["key"]: sum(out[i] == "keep" for i, q in enumerate(rows) if q["key"] == r["key"]) for r in rows}
    for i, r in enumerate(rows):
        if out[i] == "keep" and per_image[r["key"]] < config.min_regions:
            out[i] = "too_few_regions"
    labelled = {r["key"] for i, r in enumerate(rows) if out[i] == "keep"}
    for i, r in enumerate(rows):
        area = (r["x2"] - r["x1"]) * (r["y2"] - r["y1"])
        if out[i] == "below_threshold" and r["score"] > config.ignore_above and r["key"] in labelled and area > 0:
            out[i] = "kept_as_ignore"
    return out


@pytest.mark.parametrize("seed", range(5))
def test_all_together_are_a_plain_loop_over_regions(seed, tmp_path):
    config = FilterConfig(
        threshold=0.45, best_per_phrase=2, min_box_side=15, max_area_share=0.1, max_aspect=2.5, max_per_phrase_text=6,
        min_regions=2, ignore_above=0.22,
    )  # fmt: skip
    rows = random_rows(seed, 60)
    found = reasons(tmp_path, rows, config)
    assert found == plain(rows, config) and len(set(found)) >= 8


def test_odd_shards(tmp_path):
    config = FilterConfig(preset="grit", ignore_above=0.1, max_per_phrase_text=3)
    empty = open_regions(write(tmp_path / "empty.parquet", table_of([])), config)
    assert apply_rules(empty, config).counts() == {} and empty.images == 0
    rows = random_rows(1, 60)
    whole, cut = tmp_path / "00000.parquet", tmp_path / "cut" / "00000.parquet"
    one = open_regions(write(whole, table_of(rows)), config)
    cut.parent.mkdir()
    pq.write_table(pq.read_table(whole), cut, row_group_size=7)  # many row groups, each with a dictionary of its own
    many = open_regions(cut, config)
    assert (
        apply_rules(many, config).reason.tolist() == apply_rules(one, config).reason.tolist()
        and many.images == one.images
    )
    stays = apply_rules(one, config).stays
    apply_rules(many, config)
    assert one.table(stays, REGIONS).cast(REGIONS).equals(many.table(stays, REGIONS).cast(REGIONS))


def test_columns_that_may_be_missing_are_null_and_others_are_named(tmp_path):
    table = table_of([region(), region(key="b")])
    path = write(tmp_path / "00000.parquet", table.drop_columns(["centerness"]))
    place = REGIONS.get_field_index("centerness")
    schema = REGIONS.set(place, pa.field("centerness", pa.float32(), nullable=True))
    shard = open_regions(path, FilterConfig())
    assert shard.table(np.ones(2, bool), schema)["centerness"].null_count == 2
    strict = REGIONS.set(place, pa.field("centerness", pa.float32(), nullable=False))
    with pytest.raises(InputError, match=r"00000.parquet: has no column centerness"):
        shard.table(np.ones(2, bool), strict)
    (tmp_path / "x.parquet").write_text("no table")
    with pytest.raises(InputError, match=r"x.parquet: not a Parquet file"):
        open_regions(tmp_path / "x.parquet", FilterConfig())
    with pytest.raises(InputError, match=r"y.parquet: no such file"):
        open_regions(tmp_path / "y.parquet", FilterConfig())


def test_nan_is_never_kept(tmp_path):
    rows = [region(score=math.nan), region(box=(math.nan, 0, 10, 10)), region(box=(0, 0, 10, math.inf))]
    found = reasons(tmp_path, rows, FilterConfig(threshold=0.0, include_equal=True, max_aspect=3.0))
    assert found == ["below_threshold", "no_area", "aspect"]


def numbered(rows, numbers):
    return table_of(rows).append_column("number", pa.array(numbers, pa.int32()))


def test_a_phrase_keeps_as_many_boxes_as_it_says(tmp_path):
    scores = (0.7, 0.9, 0.8, 0.6)
    rows = [region(score=s, phrase_row=p) for p in range(4) for s in scores]
    numbers = [n for n in (1, 2, 0, None) for _ in scores]  # "a dog", "two dogs", "dogs", an n-gram
    table = numbered(rows, numbers)
    config = FilterConfig(phrase_number=True)
    shard = open_regions(write(tmp_path / "00000.parquet", table), config)
    found = [REASONS[i] for i in apply_rules(shard, config).reason]
    no, yes = "beyond_number", "keep"
    assert found == [no, yes, no, no, no, yes, yes, no, *[yes] * 8]
    assert "phrase_number" not in FilterConfig().effective()  # rules and fingerprints without it stay as they were
    assert set(reasons(tmp_path, rows, FilterConfig())) == {yes}


def test_a_store_without_numbers_is_named(tmp_path):
    with pytest.raises(
        InputError, match=r"00000.parquet: has no column number, which phrase_number needs; run parse-ph"
    ):
        reasons(tmp_path, [region()], FilterConfig(phrase_number=True))
    assert reasons(tmp_path, [], FilterConfig(phrase_number=True)) == []
