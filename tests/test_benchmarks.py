"""Scripts of benchmarks/ at a tiny size on a CPU: they run, and return the keys that they state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.annotators.base import RegionPredictions
from pipeline.data.name_list import NameList
from pipeline.data.verdicts import Verdicts
from pipeline.runs.layout import RunLayout
from tests.fixtures.regions import write_store

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def regions(boxes, scores, phrases) -> RegionPredictions:
    zeros = np.zeros(len(scores), np.float32)
    evidence = dict.fromkeys(("token_mean", "token_min", "token_max", "centerness"), zeros)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return RegionPredictions(phrase=np.array(phrases), boxes=boxes, score=np.array(scores, np.float32), **evidence)


def test_kept_regions_have_the_same_phrase_and_nearly_the_same_box():
    from gpu import best_ious, kept

    box, near, far = [0, 0, 100, 100], [0, 0, 100, 98], [0, 0, 100, 70]
    exact = [regions([box] * 4, [0.9, 0.8, 0.7, 0.4], [0, 1, 2, 0]), regions([box], [0.9], [0]), regions([], [], [])]
    other = [regions([near, far], [0.6, 0.6], [0, 1]), regions([], [], []), regions([box], [0.9], [0])]
    assert best_ious(exact, other, 0.5).tolist() == pytest.approx([0.98, 0.7, 0.0, 0.0])
    assert kept(exact, other) == 0.25 and kept(exact, other, 0.95) is None


def test_precision(teacher, tmp_path):
    from labelling import write_crawl
    from precision import compare

    shards = write_crawl(tmp_path / "crawl", 1, 3, 96, mixed=False)
    figures = compare(str(teacher), shards, 0.05, images=2)
    assert figures.keys() == {"regions", "kept_share", "median_iou", "highest_score"}
    assert figures["regions"] > 0 and 0 < figures["kept_share"] <= 1 and 0 < figures["highest_score"] < 1


def test_class_names(teacher, tmp_path):
    from labelling import Bench, many_names, names_over_captions, write_crawl

    bench = Bench(tmp_path / "bench", write_crawl(tmp_path / "crawl", 1, 3, 96, mixed=False), str(teacher), 2)
    figures = names_over_captions(bench, NameList(names=("dog", "red car")), 1)
    assert figures["names_over_captions"] > 0 and figures["names_images"] == 3
    names = NameList(names=tuple(f"{colour} {thing}" for colour in ("red", "green", "old") for thing in "abcdefghijkl"))
    figures = many_names(bench, names, 1)
    assert figures["many_names_texts"] == 2 and figures["backbone_passes_per_image"] == 1
    assert figures["many_names_over_texts"] > 0


@pytest.mark.slow
def test_verification_from_verdicts_to_figures(tmp_path, monkeypatch):
    import verification

    write_store(tmp_path / "made", shards=3, images=200)
    for name, place in (("regions", "regions/round-1"), ("gold", "data/crawl_gold")):
        (tmp_path / place).parent.mkdir()
        (tmp_path / "made" / name).rename(tmp_path / place)
    (tmp_path / "regions/round-1/00002.parquet").unlink()  # it has no gold
    monkeypatch.setattr(verification, "VERDICTS", 300)
    figures = verification.verify(RunLayout(tmp_path), 0)
    assert set(verification.MEASURES) | {"uncertain_over_random_wrong", "uncertain_by_score"} <= figures.keys()
    assert 200 < len(Verdicts.read(tmp_path / "verification/verdicts")) <= 300
    assert 0 <= figures["ece"] < 20 and 0 < figures["hard_precision"] < 100
    for name, value in (("JOIN_SHARDS", 2), ("SHARD_REGIONS", 2000), ("SHARD_VERDICTS", 50)):
        monkeypatch.setattr(verification, name, value)
    (tmp_path / "big").mkdir()
    verification.make_big_store(tmp_path / "big")
    assert verification.append(tmp_path / "big") > 0
    assert verification.join(tmp_path / "big", tmp_path, 1).keys() == {"join_s", "join_gib"}


@pytest.mark.slow
def test_gpu_measures_what_it_states():
    from gpu import VARIANTS, Card, key, measure

    figures = measure(Card("cpu"), tiny=True, compiled=False)
    rates = {f"{kind}_glip_t_{p}_b{n}" for kind in ("images_per_second", "peak_gib") for p in ("float32", "bf16")
             for n in (1, 2)}  # fmt: skip
    training = {"training_seconds_float32", "training_seconds_bf16"}
    assert key(VARIANTS[0]) == "glip_t"
    assert figures.keys() == {"card", "kept_glip_t", "stage_images_per_second_glip_t"} | rates | training
    assert all(v > 0 for name, v in figures.items() if "second" in name)
