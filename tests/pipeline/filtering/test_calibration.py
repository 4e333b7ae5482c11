"""Sweep, phrase counts and fitted thresholds against what filter-boxes itself then keeps."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from pipeline.config import FilterConfig
from pipeline.data.records import LABELS, REGIONS
from pipeline.errors import InputError, RunError
from pipeline.evaluation.label_quality import label_quality
from pipeline.filtering.calibration import Sample, calibrate, fit, lines, wilson
from pipeline.filtering.counting import count_phrases
from pipeline.filtering.phrases import COUNTS, DistinctTexts, uniform
from pipeline.filtering.sweep import lines as sweep_lines
from pipeline.filtering.sweep import sweep
from pipeline.filtering.thresholds import Thresholds
from pipeline.io.tables import read_table
from pipeline.stages.jobs import FilterBoxes
from tests.fixtures.regions import region, table_of, write, write_gold, write_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"))


def rows_of(paths, schema=REGIONS):
    return [r for p in paths for r in read_table(p, schema).to_pylist()]


def folder(paths):
    return Path(paths[0]).parents[1]


# --- sweep


@pytest.mark.parametrize("settings", [{}, {"preset": "grit", "best_per_phrase": 2, "max_per_phrase_text": 4}])
def test_a_sweep_says_what_filter_boxes_then_keeps(settings, store, tmp_path):
    config = FilterConfig.model_validate(settings)
    result = sweep(config, store, [0.7, 0.3, 0.5], gold=folder(store) / "gold")
    assert [row["threshold"] for row in result["thresholds"]] == [0.3, 0.5, 0.7]
    for row in result["thresholds"]:
        out = tmp_path / str(row["threshold"])
        report = FilterBoxes(
            settings=config.model_copy(update={"threshold": row["threshold"]}), regions=store, out=out
        ).run()
        assert (row["images"], row["boxes"]) == (report.tallies["images"].kept, report.tallies["regions"].kept)
        labels = rows_of(sorted(out.glob("*.parquet")), LABELS)
        assert row["phrases"] == len({r["phrase"].lower() for r in labels})
        golds = {p.stem: pq.read_table(p).to_pylist() for p in (folder(store) / "gold").glob("*.parquet")}
        measured = right = 0
        for name, gold in golds.items():
            mine = [r for r in rows_of([out / f"{name}.parquet"], LABELS) if r["key"] in {g["key"] for g in gold}]
            measured += len(mine)
            right += sum(fits(r, [g for g in gold if g["key"] == r["key"]]) for r in mine)
        assert (row["labels"], row["correct"]) == (measured, right) and 0 < right < measured
        assert row["precision"] == round(100 * right / measured, 2)
    assert [row["recall"] for row in result["thresholds"]] == sorted(
        (row["recall"] for row in result["thresholds"]), reverse=True
    )
    assert len(sweep_lines(result)) == 2 + 3 and "precision" in sweep_lines(result)[1]


def test_thresholds_below_the_stores_floor_are_warned_of_by_sweep_and_filter(tmp_path, caplog):
    """The floor is a probability: with centerness, the store lacks regions below its root."""
    (tmp_path / "regions").mkdir()
    rows = [region(score=score) for score in (0.35, 0.5)]
    path = write(tmp_path / "regions" / "a.parquet", table_of(rows), {"config": json.dumps({"floor": 0.09})})
    sweep(FilterConfig(), [path], [0.3, 0.5])
    FilterBoxes(settings=FilterConfig(threshold=0.3), regions=[path], out=tmp_path / "out").run()
    assert not caplog.records
    sweep(FilterConfig(), [path], [0.5, 0.2])
    assert caplog.text.count("threshold: found 0.2; want 0.3 or more") == 1
    FilterBoxes(settings=FilterConfig(threshold=0.2), regions=[path], out=tmp_path / "out").run()
    assert caplog.text.count("threshold: found 0.2; want 0.3 or more") == 2


def fits(label, golds):
    """Does a label's box have IoU 0.5 with the box of the gold phrase that it shares most characters with?"""
    shared = [min(label["end"], g["end"]) - max(label["start"], g["start"]) for g in golds]
    if not shared or max(shared) <= 0:
        return False
    g = golds[shared.index(max(shared))]
    inner = max(min(label["x2"], g["x2"]) - max(label["x1"], g["x1"]), 0) * max(
        min(label["y2"], g["y2"]) - max(label["y1"], g["y1"]), 0
    )
    areas = sum((b["x2"] - b["x1"]) * (b["y2"] - b["y1"]) for b in (label, g))
    return inner / (areas - inner) >= 0.5


def test_a_wrong_grid_or_gold_is_named(store, tmp_path):
    with pytest.raises(InputError, match="want 1 to 64 thresholds between 0 and 1"):
        sweep(FilterConfig(), store, [0.5, 1.5])
    write_gold(tmp_path / "elsewhere.parquet", [{"key": "a"}])
    with pytest.raises(InputError, match="no gold table with the name"):
        sweep(FilterConfig(), store, [0.5], gold=tmp_path)


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3))), max_size=6))
def test_distinct_texts_are_counted_by_filter(batches):
    found = DistinctTexts()
    for batch in batches:
        found.add(np.array([h for h, _ in batch], np.uint64), np.array([1 << i for _, i in batch], np.uint64))
    pairs = {pair for batch in batches for pair in batch}
    assert found.counts(4) == [sum(i == n for _, i in pairs) for n in range(4)]


# --- counts and balancing


def test_counts_are_those_of_a_plain_loop(store, tmp_path):
    config = FilterConfig(threshold=0.4, best_per_phrase=1)
    n, _ = count_phrases(config, store, tmp_path / "counts.parquet", min_count=5)
    FilterBoxes(settings=config, regions=store, out=tmp_path / "labels").run()
    kept = Counter(r["phrase"].lower() for r in rows_of(sorted((tmp_path / "labels").glob("*.parquet")), LABELS))
    mentions = Counter(
        text for p in store for _, text in {(r["phrase_row"], r["phrase"].lower()) for r in rows_of([p])}
    )
    expected = {t: (m, kept[t]) for t, m in mentions.items() if max(m, kept[t]) >= 5}
    table = read_table(tmp_path / "counts.parquet", COUNTS).to_pylist()
    assert {r["phrase"]: (r["mentions"], r["kept"]) for r in table} == expected and n == len(expected) > 3
    assert [r["mentions"] for r in table] == sorted((m for m, _ in expected.values()), reverse=True)


def test_balancing_thins_frequent_phrases_to_about_the_number(tmp_path):
    paths = [
        write(tmp_path / "regions" / f"{n:05d}.parquet", table_of([
            region(key=f"{n}-{i}", phrase_row=i, phrase="Dog" if i % 10 else "kite") for i in range(1000)
        ]))
        for n in range(3)
    ] if (tmp_path / "regions").mkdir() is None else []  # fmt: skip
    config = FilterConfig(balance_to=350)
    count_phrases(config, paths, tmp_path / "counts.parquet", min_count=100)
    run = FilterBoxes(settings=config, regions=paths, out=tmp_path / "labels", counts=tmp_path / "counts.parquet").run()
    kept = Counter(r["phrase"] for r in rows_of(sorted((tmp_path / "labels").glob("*.parquet")), LABELS))
    assert kept["kite"] == 300 and 270 < kept["Dog"] < 430  # 2,700 x 350 / 2,700, five standard deviations
    assert run.tallies["regions"].dropped == {"balanced_away": 2700 - kept["Dog"]}
    with pytest.raises(InputError, match="counted by other rules"):
        FilterBoxes(
            settings=FilterConfig(balance_to=350, threshold=0.6),
            regions=paths,
            out=tmp_path / "x",
            counts=tmp_path / "counts.parquet",
        ).run()
    with pytest.raises(InputError, match="run count-phrases --min-count 50"):
        FilterBoxes(
            settings=FilterConfig(balance_to=50), regions=paths, out=tmp_path / "x", counts=tmp_path / "counts.parquet"
        ).run()


def test_a_regions_lot_is_even_and_its_own():
    rows, ranks = np.repeat(np.arange(5000), 4), np.tile(np.arange(4), 5000)
    lots = uniform("00017", rows, ranks)
    assert len(np.unique(lots)) == len(lots) and lots.min() >= 0 and lots.max() < 1
    assert np.abs(np.histogram(lots, 10, (0, 1))[0] - 2000).max() < 5 * np.sqrt(2000)
    assert np.array_equal(lots, uniform("00017", rows, ranks))
    assert abs(np.corrcoef(lots, uniform("00018", rows, ranks))[0, 1]) < 0.03


# --- calibration


@given(st.integers(0, 50), st.integers(1, 50))
def test_wilsons_interval_is_scipys(k, more):
    low, high = wilson(k, k + more)
    ours = binomtest(k, k + more).proportion_ci(0.95, "wilson")
    assert (low, high) == pytest.approx((ours.low, ours.high), abs=1e-12)


def sample_of(bands):
    """Labels as {band: [(score, correct), ...]}; every label names a gold box of its own."""
    flat = [(s, c, b) for b, labels in bands.items() for s, c in labels]
    band = np.array([b for _, _, b in flat])
    return Sample(
        np.array([s for s, _, _ in flat], np.float32), np.array([c for _, c, _ in flat], bool),
        np.arange(len(flat)), band, band,
    )  # fmt: skip


def fit_it(bands, precision=0.75, by="estimate", min_labels=4):
    starts = sorted({0, *(10**b for b in bands if b)})
    pooled, fits = fit(sample_of(bands), len(starts), precision, by, min_labels)
    return Thresholds(
        precision=precision, by=by, min_labels=min_labels, iou=0.5, rules={}, inputs={}, pooled=pooled,
        bands=[{**own, "from_mentions": start} for own, start in zip(fits, starts, strict=True)],
    )  # fmt: skip


def test_bands_by_hand():
    good = [(0.9, 1), (0.8, 1), (0.7, 0), (0.6, 1), (0.5, 1), (0.4, 1), (0.3, 0), (0.2, 0)]  # 5 of 6 above 0.3; 5 of 7
    result = fit_it({0: good, 1: [(0.9, 0), (0.8, 1), (0.5, 0), (0.4, 1), (0.2, 1)], 2: [(0.8, 1), (0.1, 0)]})
    first, second, third = result.bands
    assert (first.status, first.threshold, first.kept, first.kept_correct) == ("fitted", pytest.approx(0.3), 6, 5)
    assert first.precision == pytest.approx(5 / 6, abs=1e-6) and first.found == 5 and first.gold == 8
    assert (second.status, second.threshold, second.best_precision) == ("closed", None, 0.6)
    # all: above 0.7 it is 4 of 5 (0.9 1, 0.9 0, 0.8 1, 0.8 1, 0.8 1), 4 of 6 with the 0.7
    assert result.pooled.threshold == pytest.approx(0.7) and result.pooled.kept == 5
    assert (third.status, third.threshold, third.kept) == ("pooled", result.pooled.threshold, 1)
    assert result.of(np.array([0, 9, 10, 99, 100, 10**6])).tolist() == pytest.approx(
        [0.3, 0.3, np.inf, np.inf, 0.7, 0.7]
    )
    assert [line.split()[-1] for line in lines(result)[1:]] == ["fitted", "60.0", "pooled"]


def test_equal_scores_are_kept_or_left_together():
    result = fit_it({0: [(0.9, 1)] * 4 + [(0.5, 1), (0.5, 0), (0.5, 0)]}, precision=0.8)
    assert result.bands[0].threshold == 0.5 and result.bands[0].kept == 4
    everything = fit_it({0: [(0.9, 1)] * 4 + [(0.5, 1), (0.5, 0)]}, precision=0.8)
    assert everything.bands[0].threshold == 0.0 and everything.bands[0].kept == 6


def test_the_lower_end_asks_for_more():
    labels = [(0.9 - 0.01 * i, i % 10 != 9) for i in range(80)]  # 90 % all the way down
    assert fit_it({0: labels}, 0.85).bands[0].kept == 80
    with pytest.raises(RunError, match=r"no threshold reaches precision 0.9 .*72 correct; the best that 30 labels"):
        fit_it({0: labels}, 0.9, by="lower", min_labels=30)
    strict = fit_it({0: labels + [(0.95, True)] * 60}, 0.9, by="lower").bands[0]
    assert strict.low >= 0.9 and strict.kept < 140


def test_what_was_promised_is_what_filter_boxes_gives(store, tmp_path):
    measured = [p for p in store if (folder(store) / "gold" / Path(p).name).exists()]
    rules = FilterConfig(best_per_phrase=1, min_box_side=15)
    count_phrases(rules, store, tmp_path / "counts.parquet", min_count=5)
    options = {"counts": tmp_path / "counts.parquet", "bands": [10, 24], "min_labels": 5, "precision": 0.5}
    result = calibrate(rules, store, folder(store) / "gold", tmp_path / "t.json", **options)
    assert {b.status for b in result.bands} >= {"fitted"} and len(result.bands) == 3
    report = FilterBoxes(
        settings=rules,
        regions=measured,
        out=tmp_path / "labels",
        thresholds=tmp_path / "t.json",
        counts=options["counts"],
    ).run()
    assert sum(report.tallies["regions"].dropped.values()) > 0
    golds = {p.stem: pq.read_table(p).to_pylist() for p in (folder(store) / "gold").glob("*.parquet")}
    kept = right = 0
    for name, gold in golds.items():
        keys = {g["key"] for g in gold}
        for r in rows_of([tmp_path / "labels" / f"{name}.parquet"], LABELS):
            kept += r["key"] in keys
            right += fits(r, [g for g in gold if g["key"] == r["key"]])
    assert (kept, right) == (sum(b.kept for b in result.bands), sum(b.kept_correct for b in result.bands))
    assert right / kept >= 0.5
    before = (tmp_path / "t.json").read_bytes()
    calibrate(rules, store, folder(store) / "gold", tmp_path / "t.json", **options)
    assert (tmp_path / "t.json").read_bytes() == before


def test_thresholds_of_other_rules_are_warned_of(store, tmp_path, caplog):
    calibrate(
        FilterConfig(best_per_phrase=2), store, folder(store) / "gold", tmp_path / "t.json", precision=0.3, min_labels=5
    )
    FilterBoxes(
        settings=FilterConfig(best_per_phrase=2, min_regions=2),
        regions=store,
        out=tmp_path / "a",
        thresholds=tmp_path / "t.json",
    ).run()
    assert not caplog.records
    FilterBoxes(settings=FilterConfig(), regions=store, out=tmp_path / "b", thresholds=tmp_path / "t.json").run()
    assert "fitted with other rules" in caplog.text and "best_per_phrase: 2, here None" in caplog.text


def test_one_band_needs_no_counts_and_several_do(store, tmp_path):
    gold = folder(store) / "gold"
    one = calibrate(FilterConfig(), store, gold, tmp_path / "one.json", precision=0.3, min_labels=5)
    assert len(one.bands) == 1 and set(one.inputs) == {"regions", "gold"}
    FilterBoxes(settings=FilterConfig(), regions=store, out=tmp_path / "labels", thresholds=tmp_path / "one.json").run()
    counts = tmp_path / "counts.parquet"
    count_phrases(FilterConfig(), store, counts, min_count=8)
    with pytest.raises(InputError, match="second band begins at 3; run count-phrases --min-count 3"):
        calibrate(
            FilterConfig(), store, gold, tmp_path / "two.json", counts=counts, bands=[3], precision=0.3, min_labels=5
        )
    calibrate(
        FilterConfig(), store, gold, tmp_path / "two.json", counts=counts, bands=[10], precision=0.3, min_labels=5
    )
    with pytest.raises(InputError, match="2 bands of phrase frequency; want the phrase counts"):
        FilterBoxes(
            settings=FilterConfig(), regions=store, out=tmp_path / "labels", thresholds=tmp_path / "two.json"
        ).run()
    data = json.loads((tmp_path / "two.json").read_text())
    data["bands"].reverse()
    (tmp_path / "wrong.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="want ascending numbers from 0"):
        FilterBoxes(
            settings=FilterConfig(),
            regions=store,
            out=tmp_path / "labels",
            thresholds=tmp_path / "wrong.json",
            counts=counts,
        ).run()


def test_quality_of_labels_is_that_of_a_plain_loop(store, tmp_path):
    measured = [p for p in store if (folder(store) / "gold" / Path(p).name).exists()]
    FilterBoxes(settings=FilterConfig(threshold=0.3), regions=measured, out=tmp_path / "labels").run()
    got = label_quality(tmp_path / "labels", folder(store) / "gold")
    labels = right = stray = 0
    found = set()
    golds = {p.stem: pq.read_table(p).to_pylist() for p in (folder(store) / "gold").glob("*.parquet")}
    for name, gold in golds.items():
        for r in rows_of([tmp_path / "labels" / f"{name}.parquet"], LABELS):
            mine = [g for g in gold if g["key"] == r["key"]]
            shared = [min(r["end"], g["end"]) - max(r["start"], g["start"]) for g in mine]
            labels += 1
            stray += max(shared, default=0) <= 0
            if fits(r, mine):
                right += 1
                found.add((name, r["key"], shared.index(max(shared))))
    everything = got["all"]
    assert (everything["labels"], everything["correct"], everything["found"]) == (labels, right, len(found))
    assert got["phrases_not_gold"] == stray > 0
    assert got["base"]["correct"] + got["novel"]["correct"] == right
    assert got["base"]["found"] + got["novel"]["found"] == len(found)
    assert len(measured) < len(store)
    FilterBoxes(settings=FilterConfig(threshold=0.3), regions=store, out=tmp_path / "all").run()
    assert label_quality(tmp_path / "all", folder(store) / "gold") == got  # gold of some shards is a sample


def test_a_sweep_says_that_it_cannot_balance(store):
    with pytest.raises(InputError, match="balance_to: phrases are counted for one threshold"):
        sweep(FilterConfig(balance_to=5), store, [0.5])
