"""Verdicts joined to regions, and what is judged by them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import FilterConfig
from pipeline.data.records import REGIONS
from pipeline.data.verdicts import VerdictLog, Verdicts
from pipeline.errors import InputError
from pipeline.evaluation.label_qa import write_verdict_qa
from pipeline.filtering.gold import GoldMatcher, read_gold
from pipeline.filtering.rules import apply_rules, open_regions
from pipeline.filtering.store import RegionShard
from pipeline.filtering.thresholds import CALIBRATION_OVERRIDES
from pipeline.filtering.verdicts import JoinedVerdicts
from pipeline.io.tables import read_table
from pipeline.stages.jobs import Calibrate
from tests.fixtures.names import named, write_named
from tests.fixtures.regions import random_rows, region, table_of, write, write_store
from tests.fixtures.verdicts import verdict

A, B, C = (0, 0, 10, 10), (20, 20, 40, 40), (60, 60, 80, 90)


def joined(tmp_path, path, verdicts):
    with VerdictLog(tmp_path / "verdicts") as log:
        log.append(*(v.model_copy(update={"shard": "s"}) for v in verdicts))
    shard = RegionShard(path)
    return shard, JoinedVerdicts(shard, Verdicts.read(tmp_path / "verdicts").of("s"))


def test_regions_are_found_by_phrase_and_box(tmp_path):
    rows = [
        region(box=A), region(box=B, rank=1), region(box=A, start=5, end=8, phrase="cat", phrase_row=1),
        region(box=A, key="b", phrase_row=2), region(box=C, key="b", phrase_row=2, rank=1),
    ]  # fmt: skip
    a, b = {"key": "a", "start": 0, "end": 3}, {"key": "b", "start": 0, "end": 3}
    near = (0.1, 0.1, 10, 10)
    verdicts = [
        verdict("accept", box=near, **a), verdict("fixed", box=B, boxes=((22, 20, 40, 40),), **a),
        verdict("reject", **b), verdict("accept", box=C, **b),
        verdict("missing", boxes=(B, C), key="a", start=5, end=8),
        verdict("reject", box=A, key="a", start=0, end=4), verdict("reject", box=A, key="none", start=0, end=3),
    ]  # fmt: skip
    shard, join = joined(tmp_path, write(tmp_path / "s.parquet", table_of(rows)), verdicts)
    assert join.decisions(join.region).tolist() == ["accept", "fixed", "", "", "accept"]
    assert join.decisions(join.phrase).tolist() == ["", "", "missing", "reject", "reject"]
    judged, correct = join.judge(shard)
    assert judged.tolist() == [True, True, False, True, True]
    assert correct.tolist() == [True, True, False, False, True]
    assert join.judge(shard, 0.95)[1].tolist() == [True, False, False, False, True]
    assert join.missing().tolist() == [list(B), list(C)]


def test_of_class_names_the_name_is_the_phrase(tmp_path):
    path = write_named(tmp_path / "s.parquet", [named("dog", 0.9), named("hound", 0.8, B), named("cat", 0.7)])
    verdicts = [verdict("reject", box=B, key="a", phrase="dog"), verdict("accept", box=A, key="a", phrase="Cat")]
    _, join = joined(tmp_path, path, verdicts)
    assert join.decisions(join.region).tolist() == ["", "reject", "accept"]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.floats(0, 1))
def test_each_verdict_finds_its_own_region(tmp_path_factory, seed, share):
    folder = tmp_path_factory.mktemp("join")
    rng = np.random.default_rng(seed)
    # boxes of a phrase are distinct, as after NMS, and have an area
    rows, seen = [], set()
    for row in random_rows(seed, images=6):
        place = (row["key"], row["start"], row["x1"], row["y1"])
        row |= {"x2": row["x1"] + 9, "y2": row["y1"] + 9}
        rows += [row] if place not in seen else []
        seen.add(place)
    path = write(folder / "s.parquet", table_of(rows))
    rows = read_table(path, REGIONS).to_pylist()
    chosen = np.flatnonzero(rng.random(len(rows)) < share)
    verdicts = [
        verdict(
            "accept" if i % 2 else "reject", key=r["key"], phrase=r["phrase"], start=r["start"], end=r["end"],
            box=tuple(r[c] for c in ("x1", "y1", "x2", "y2")),
        )
        for i in chosen for r in (rows[i],)
    ]  # fmt: skip
    rng.shuffle(verdicts)
    shard, join = joined(folder, path, verdicts) if verdicts else (None, None)
    if join is not None:
        judged, correct = join.judge(shard)
        assert np.flatnonzero(judged).tolist() == chosen.tolist()
        assert np.flatnonzero(correct).tolist() == [i for i in chosen if i % 2]


def test_label_quality_by_verdicts(tmp_path):
    paths = write_store(tmp_path, shards=2)
    wanted, right = [], []
    with VerdictLog(tmp_path / "verdicts") as log:
        for path in paths:
            for row in read_table(path, REGIONS).to_pylist():
                box = tuple(row[c] for c in ("x1", "y1", "x2", "y2"))
                if row["rank"] or not (box[2] > box[0] and box[3] > box[1]) or np.isnan(row["score"]):
                    continue
                good = row["score"] > 0.5
                wanted.append(row["score"])
                right.append(good)
                log.append(verdict(
                    "accept" if good else "reject", shard=path[-13:-8], key=row["key"], phrase=row["phrase"],
                    start=row["start"], end=row["end"], box=box,
                ))  # fmt: skip
        log.append(verdict("missing", boxes=(A,), shard=paths[0][-13:-8], key="00000", start=0, end=3))
    page = write_verdict_qa(str(tmp_path / "regions"), tmp_path / "verdicts", tmp_path / "qa", [90])
    assert "Model `glip@0123456789ab`. Correct labels were accepted" in page
    quality = json.loads((tmp_path / "qa" / "label_qa.json").read_text())["sets"]["verdicts"]
    assert quality["gold"] == sum(right) + 1
    at = {row["threshold"]: row for row in quality["by_threshold"]}
    assert at[0.55]["precision"] == 100.0 and at[0.05]["labels"] == len(wanted)
    assert at[0.05]["precision"] == pytest.approx(100 * np.mean(right))
    assert at[0.05]["recall"] == pytest.approx(100 * sum(right) / (sum(right) + 1))
    with pytest.raises(InputError, match="found no region with a verdict among 1 verdicts"):
        with VerdictLog(tmp_path / "other") as log:
            log.append(verdict(shard=paths[0][-13:-8], key="none"))
        write_verdict_qa(str(tmp_path / "regions"), tmp_path / "other", tmp_path / "qa", [90])


def test_calibration_by_verdicts_is_that_by_gold(tmp_path):
    """A reviewer who reads the gold and judges everything leads to the same thresholds, but for what nobody boxed."""
    paths = write_store(tmp_path, shards=3)[:2]
    config = FilterConfig(best_per_phrase=1)
    by_gold = Calibrate(
        regions=paths, gold=tmp_path / "gold", out=tmp_path / "gold.json", settings=config, precision=0.4, min_labels=10
    ).run()
    with VerdictLog(tmp_path / "verdicts") as log:
        for path in paths:
            shard, gold = (
                open_regions(path, config.model_copy(update=CALIBRATION_OVERRIDES)),
                read_gold(tmp_path / "gold" / f"{path[-13:-8]}.parquet"),
            )
            labels = apply_rules(shard, config.model_copy(update=CALIBRATION_OVERRIDES)).keeps
            codes, keys = shard.keys()
            right = GoldMatcher(
                gold, codes, keys, shard.numbers("start"), shard.numbers("end"), shard.boxes(), shard.numbers("score"),
                0.5,
            ).match(labels & gold.has(keys)[codes]) >= 0  # fmt: skip
            phrases, texts, boxes = shard.column("phrase").to_pylist(), keys.to_pylist(), shard.boxes().tolist()
            for i in np.flatnonzero(labels & gold.has(keys)[codes]):
                log.append(verdict(
                    "accept" if right[i] else "reject", shard=shard.name, key=texts[codes[i]], phrase=phrases[i],
                    start=int(shard.numbers("start")[i]), end=int(shard.numbers("end")[i]), box=tuple(boxes[i]),
                ))  # fmt: skip
    by_verdicts = Calibrate(
        regions=paths, verdicts=tmp_path / "verdicts", out=tmp_path / "v.json", settings=config, precision=0.4,
        min_labels=10,
    ).run()  # fmt: skip
    for name in ("threshold", "kept", "kept_correct", "found", "labels", "correct"):
        assert getattr(by_verdicts.pooled, name) == getattr(by_gold.pooled, name), name
    assert by_verdicts.pooled.gold == by_verdicts.pooled.correct < by_gold.pooled.gold
    with pytest.raises(InputError, match="want either --gold or --verdicts"):
        Calibrate(regions=paths, out=tmp_path / "none.json").run()
