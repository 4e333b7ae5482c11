"""The fit of a verifier: equal to scikit-learn's, reproducible, on verdicts and on gold; what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.data.verdicts import Verdict, VerdictLog
from pipeline.errors import InputError
from pipeline.evaluation.verification import (
    as_arrays,
    average_precision,
    fit_calibration,
    fit_verifier,
    lines,
    precision_at,
)  # fmt: skip
from pipeline.filtering.verifier import FILE, read_verifier
from pipeline.io.paths import stem
from tests.fixtures.regions import random_gold, random_rows, table_of, write, write_gold, write_store

ensemble = pytest.importorskip("sklearn.ensemble")


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_the_arrays_predict_what_scikit_learn_does(missing):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 5)).astype(np.float32)
    x[rng.random(x.shape) < missing] = np.nan
    y = np.nan_to_num(x[:, 0]) + rng.normal(size=500) > 0.3
    model = ensemble.HistGradientBoostingClassifier(max_iter=30, max_leaf_nodes=9, random_state=0).fit(x, y)
    other = rng.normal(size=(300, 5)).astype(np.float32)
    other[rng.random(other.shape) < 0.2] = np.nan
    probability = 1 / (1 + np.exp(-as_arrays(model)(other)))
    np.testing.assert_allclose(probability, model.predict_proba(other)[:, 1], rtol=1e-12)


@pytest.mark.parametrize("n", [200, 3000])
def test_calibration_gives_the_share_that_is_right_and_keeps_the_order(n):
    rng = np.random.default_rng(1)
    log_odds = rng.normal(0, 3, n)
    correct = rng.random(n) < 1 / (1 + np.exp(1 - log_odds))  # off by one
    points, probability = fit_calibration(log_odds, correct)
    assert (np.diff(points) > 0).all() and (np.diff(probability) >= 0).all()
    assert np.interp([1, 3], points, probability) == pytest.approx([0.5, 0.88], abs=0.1)
    if n == 3000:
        assert (np.diff(probability) > 0).all()
    assert np.ptp(fit_calibration(-log_odds, correct)[1]) < 0.01  # an order that is wrong says nothing


def test_precision_counts_all_of_an_equal_score():
    score, correct = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, False, True, True])
    assert average_precision(score, correct) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert precision_at(score, correct, 0.5) == pytest.approx(3 / 4)


def store_with_verdicts(folder, images=120):
    """Regions of which the best of a phrase is right where it scores above 0.5; verdicts on every second image."""
    paths = []
    with VerdictLog(folder / "verdicts") as log:
        for number in range(2):
            rows = [r for r in random_rows(number, images) if r["x2"] > r["x1"] and r["y2"] > r["y1"]]
            paths.append(write(folder / "regions" / f"{number:05d}.parquet", table_of(rows)))
            for r in rows:
                if int(r["key"]) % 2 == 0 and r["score"] == r["score"]:
                    box = tuple(float(r[name]) for name in ("x1", "y1", "x2", "y2"))
                    said = "accept" if r["score"] > 0.5 and r["rank"] == 0 else "reject"
                    log.append(Verdict(
                        verdict=said, shard=stem(paths[-1]), key=r["key"], phrase=r["phrase"], start=r["start"],
                        end=r["end"], box=box, height=100, width=100, by="me",
                    ))  # fmt: skip
    return paths


def test_it_learns_from_verdicts_and_reports_what_it_has_not_seen(tmp_path):
    paths = store_with_verdicts(tmp_path)
    report = fit_verifier(paths, tmp_path / "out", verdicts=str(tmp_path / "verdicts"))
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    assert report["regions"] > 100 and 0 < report["right"] < report["regions"] and report["by"] == "verdicts"
    for unseen in ("unseen_images", "unseen_phrases"):
        figures = report[unseen]
        assert figures["verified"]["average_precision"] > figures["score"]["average_precision"]
        assert 0 <= figures["verified"]["ece"] < 12
    assert max(report["importance"], key=report["importance"].get) in ("score", "rank", "token_mean", "token_max")
    text = (tmp_path / "out/report.md").read_text()
    assert "| verified, unseen phrases |" in text and lines(report)[1].split()[0] == "AP"
    assert (tmp_path / "out/reliability.svg").read_bytes().startswith(b"<?xml")
    again = fit_verifier(paths, tmp_path / "again", verdicts=str(tmp_path / "verdicts"))
    assert again == report
    assert (tmp_path / "again" / FILE).read_bytes() == (tmp_path / "out" / FILE).read_bytes()
    assert len(read_verifier(tmp_path / "out").inputs) == len(report["importance"])


def test_it_learns_from_gold(tmp_path):
    paths = write_store(tmp_path, shards=3)
    report = fit_verifier(paths, tmp_path / "out", gold=str(tmp_path / "gold"))
    assert report["by"] == "gold" and report["right"] >= 10 and report["images"] <= 60


def test_too_few_and_one_sided_verdicts_are_refused(tmp_path):
    paths = store_with_verdicts(tmp_path, images=8)
    words = (
        r"verdicts: found \d+ right and \d+ wrong regions of the store, in \d+ images; want at least 50, of which 10"
    )
    with pytest.raises(InputError, match=words):
        fit_verifier(paths, tmp_path / "out", verdicts=str(tmp_path / "verdicts"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="found 0 right and 0 wrong"):
        write_gold(tmp_path / "gold/00000.parquet", [g | {"key": "zz"} for g in random_gold(0, random_rows(0))])
        fit_verifier(paths, tmp_path / "out", gold=str(tmp_path / "gold"))
