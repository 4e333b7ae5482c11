"""Evidence of regions against a direct computation, and a verifier's file: its bytes, and what it refuses."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.errors import InputError
from pipeline.filtering.evidence import BUCKETS, COLUMNS, DERIVED, RIVAL_IOU, Mentions, evidence, inputs_of
from pipeline.filtering.nms import pair_iou
from pipeline.filtering.store import RegionShard
from pipeline.filtering.verifier import FILE, Model, Verifier, read_verifier, thresholds_of, verifier_digest
from tests.fixtures.regions import random_rows, region, table_of, write


def shard_of(path, rows, **more):
    return RegionShard(write(path / "00000.parquet", table_of(rows, **more)))


def named(shard, names=(*COLUMNS, *DERIVED)):
    return dict(zip(names, evidence(shard, names, Mentions.count([shard])).T, strict=True))


def direct(rows):
    """The inputs that compare regions, by loops over the regions of an image."""
    boxes = np.array([[r[n] for n in ("x1", "y1", "x2", "y2")] for r in rows], float)
    score = np.nan_to_num(np.array([r["score"] for r in rows], np.float32)).astype(float)
    names = ("margin", "image_margin", "rival_margin", "rival_iou", "same_iou", "support", "place_margin")
    found = {name: np.zeros(len(rows)) for name in names}
    overlap = [np.nan_to_num(pair_iou(np.repeat(boxes[i : i + 1], len(rows), 0), boxes)) for i in range(len(rows))]

    def others(i, accept):
        return [j for j, r in enumerate(rows) if j != i and r["key"] == rows[i]["key"] and accept(i, j)]

    def same(i, j):
        return rows[i]["phrase_row"] == rows[j]["phrase_row"]

    def rival(i, j):
        return not same(i, j) and overlap[i][j] >= RIVAL_IOU

    taken, refused_by, refused = set(), {}, {}
    for i in sorted(range(len(rows)), key=lambda i: -score[i]):
        winners = [j for j in others(i, lambda i, j: same(i, j) or rival(i, j)) if j in taken]
        if winners:
            refused_by[i] = max(score[j] for j in winners)
            for j in winners:
                if score[j] == refused_by[i]:
                    refused[j] = max(refused.get(j, 0), score[i])
        else:
            taken.add(i)
    for i in range(len(rows)):
        best = {
            "margin": others(i, same),
            "image_margin": others(i, lambda i, j: not same(i, j)),
            "rival_margin": others(i, rival),
        }
        for name, those in best.items():
            found[name][i] = score[i] - max([score[j] for j in those], default=0)
        found["rival_iou"][i] = max([overlap[i][j] for j in best["image_margin"]], default=0)
        found["same_iou"][i] = max([overlap[i][j] for j in best["margin"]], default=0)
        found["support"][i] = len(best["rival_margin"])
        found["place_margin"][i] = score[i] - (refused.get(i, 0) if i in taken else refused_by[i])
    return found


@pytest.mark.parametrize("seed", range(6))
def test_neighbours_are_those_of_a_direct_computation(seed, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.filtering.evidence.PAIRS", 40)  # several images at a time, and one alone
    rng = np.random.default_rng(seed)
    rows = [r | {"score": float(rng.random())} for r in random_rows(seed, images=12)]
    rows = [rows[i] for i in rng.permutation(len(rows))] if seed % 2 else rows
    found = named(shard_of(tmp_path, rows))
    for name, values in direct(rows).items():
        np.testing.assert_allclose(found[name], values, atol=1e-6, err_msg=name)


def test_places_are_given_away_once_and_a_refused_region_claims_none(tmp_path):
    place, other = (0, 0, 10, 10), (50, 50, 60, 60)
    rows = [
        region(phrase_row=0, score=0.9, box=place), region(phrase_row=0, score=0.7, box=other, rank=1),
        region(phrase_row=1, score=0.8, box=place), region(phrase_row=1, score=0.6, box=other, rank=1),
    ]  # fmt: skip
    # the second phrase's best lost its place, so its other one takes the place that the first phrase's other does not
    assert named(shard_of(tmp_path, rows))["place_margin"] == pytest.approx([0.1, -0.2, -0.1, 0.6])


def test_inputs_of_an_image_do_not_depend_on_other_images(tmp_path):
    rows, names = random_rows(3), (*COLUMNS, *DERIVED)
    whole, part = (shard_of(tmp_path, rows) for _ in range(2))
    mentions = Mentions.count([whole])
    some = pc.equal(part.whole("key"), "00004").to_numpy(zero_copy_only=False)
    part.restrict(some)
    np.testing.assert_array_equal(evidence(whole, names, mentions)[some], evidence(part, names, mentions))
    values = named(whole, [name for name in DERIVED if name != "aspect"])  # some scores are nan
    assert np.isfinite(list(values.values())).all()
    assert values["image_phrases"].max() <= 3 and values["words"].max() == 2 and values["width"].max() <= 0.4


def test_further_columns_are_inputs_and_a_store_without_them_is_refused(tmp_path):
    rows = random_rows(0, 3)
    more = {"region_text": [0.5] * len(rows), "verified": [0.1] * len(rows)}
    shard = shard_of(tmp_path, rows, **more)
    assert inputs_of(shard) == (*COLUMNS, *DERIVED, "region_text")
    with pytest.raises(InputError, match="found no column region_text; want a store as the one"):
        named(shard_of(tmp_path, rows), inputs_of(shard))


def test_mentions_count_a_phrase_once_an_image_over_all_shards(tmp_path):
    rows = [region(key=str(i), phrase_row=i, phrase="Dog", rank=r) for i in range(3) for r in range(2)]
    rows += [region(key="3", phrase_row=3, phrase="cat")]
    shard = shard_of(tmp_path, rows)
    both = Mentions.count([shard, shard])
    codes, texts = shard.texts()
    assert 10 ** both.of(texts)[codes[[0, -1]]] == pytest.approx([0.75, 0.25])
    assert Mentions(np.zeros(BUCKETS, np.uint32)).of(texts) == pytest.approx(np.log10(0.5))


STUMP = Model(
    baseline=np.array(-0.5), roots=np.array([0]), feature=np.array([1, -1, -1]), threshold=np.array([0.3, 0, 0]),
    left=np.array([1, 0, 0]), right=np.array([2, 0, 0]), missing_left=np.array([True, False, False]),
    value=np.array([0, -1.0, 2.0]), weight=np.array([0.1, 0]), mean=np.array([8, 0]), scale=np.array([2, 1.0]),
)  # fmt: skip
VERIFIER = Verifier(("score", "margin"), STUMP, np.array([-2.0, 2.0]), np.array([0.1, 0.9]),
                    Mentions(np.zeros(BUCKETS, np.uint32)))  # fmt: skip


def test_a_verifier_read_again_is_the_same_and_has_the_same_bytes(tmp_path):
    first, second = VERIFIER.write(tmp_path / "a"), read_verifier_of(VERIFIER, tmp_path / "b").write(tmp_path / "c")
    assert first == second and verifier_digest(tmp_path / "a") == first.sha256
    inputs = np.array([[10, 0.29], [8, 0.31], [np.nan, np.nan], [1000, 0.31]], np.float32)
    expected = [0.1 + 0.8 * (log_odds + 2) / 4 for log_odds in (-1.4, 1.5, -1.5, 2)]
    assert read_verifier(tmp_path / "a").predict(inputs) == pytest.approx(expected)


def read_verifier_of(verifier, folder):
    verifier.write(folder)
    return read_verifier(folder)


def test_a_file_that_is_no_verifier_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"verifier\.npz: no such file; want the folder that verify fit wrote"):
        read_verifier(tmp_path)
    VERIFIER.write(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    buffer = io.BytesIO()
    np.savez(buffer, version=np.array({"a": 1}, object))  # would need pickle
    circle = replace(VERIFIER, model=replace(STUMP, left=np.array([0, 0, 0])))
    beyond = replace(VERIFIER, inputs=("score",))
    for data in (whole[:-40], b"", b"nothing", buffer.getvalue()):
        (tmp_path / FILE).write_bytes(data)
        with pytest.raises(InputError, match="found a damaged file"):
            read_verifier(tmp_path)
    for wrong in (circle, beyond):
        with pytest.raises(InputError, match="found a damaged file"):
            read_verifier_of(wrong, tmp_path)


@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(0, 1, width=32)), st.sampled_from([0.5, 0.8, 0.9]))
def test_above_the_threshold_the_mean_probability_reaches_the_precision(values, precision):
    (found,) = thresholds_of([values[:3], values[3:]], [precision])
    if found is None:
        assert values.max() < precision
    else:
        kept = values[values > np.float32(found[0])].astype(float)
        assert len(kept) == found[1] and kept.mean() >= precision - 1e-6
