"""pseudo-label with class names on loose images: evaluate's detections, once through the network's image part."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.annotators.base import load_annotator, own_settings
from pipeline.annotators.glip import GlipAnnotator
from pipeline.config import EvaluateConfig, PseudoLabelConfig
from pipeline.data.name_list import NameList, footer_names
from pipeline.data.records import NAMED_REGIONS, DatasetCard, GroundingRecord, Region
from pipeline.errors import InputError
from pipeline.evaluation.predictions import read_predictions
from pipeline.io.tables import footer, read_table
from pipeline.io.tars import write_tar
from pipeline.stages.jobs import Evaluate, PseudoLabel
from tests.fixtures.crawl import jpeg

NAMES = ("car", "tree", "traffic light", "dog", "umbrella")
SIZES = [(80, 64), (64, 80), (96, 48)]  # (width, height)
SETTINGS = PseudoLabelConfig(floor=0.0, max_regions_per_phrase=100, batch_size=3)
"""Batches as evaluate makes them: padding, and so a batch, moves scores a little (GroupNorm)."""


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, size in enumerate(SIZES):
        (folder / f"{i:09d}.jpg").write_bytes(jpeg(i, size))
    return folder


def label(photos, teacher, out, names=". ".join(NAMES), **options):
    return PseudoLabel(shards=photos, names=names, teacher=teacher, out=out, **{"settings": SETTINGS, **options}).run()


def test_detections_are_those_of_evaluate(photos, teacher, tmp_path):
    (gold := tmp_path / "gold").mkdir()
    region = Region(box=(5, 5, 40, 40), phrase="car")
    records = [
        GroundingRecord(key=f"{i:09d}", dataset="val", kind="detection", image_size=size[::-1], regions=[region])
        for i, size in enumerate(SIZES)
    ]
    images = {f"{i:09d}": jpeg(i, size) for i, size in enumerate(SIZES)}
    write_tar(gold / "val-0.tar", ((r.key, {"jpg": images[r.key], "json": r.to_json()}) for r in records))
    (gold / "val.dataset.json").write_text(
        DatasetCard(name="val", kind="detection", label_space=NAMES).model_dump_json()
    )
    Evaluate(
        settings=EvaluateConfig(batch_size=3), model=str(teacher), sets={"val": [str(gold / "val-0.tar")]},
        out=tmp_path / "eval",
    ).run()  # fmt: skip
    (table,) = (tmp_path / "eval").rglob("*val-0.parquet")
    wanted = read_predictions(str(table), len(SIZES))

    report = label(photos, teacher, tmp_path / "regions")
    assert report.tallies["samples"].kept == len(SIZES) and report.tallies["phrases"].seen == len(SIZES) * len(NAMES)
    (path,) = (tmp_path / "regions").glob("*.parquet")
    regions = read_table(path, NAMED_REGIONS)
    about = footer(regions.schema)
    assert footer_names(about, "") == NameList(names=NAMES) and "nms_threshold" in json.loads(about["config"])
    prompt = ". ".join(NAMES)
    rows = regions.to_pylist()
    assert all(prompt[r["start"] : r["end"]] == r["phrase"] == r["name"] == NAMES[r["phrase_row"]] for r in rows)
    for i, found in enumerate(wanted):
        own = sorted((r for r in rows if r["key"] == f"{i:09d}"), key=lambda r: -r["score"])[: len(found.scores)]
        assert len(own) == len(found.scores) > 20
        np.testing.assert_allclose([r["score"] for r in own], found.scores, atol=1e-5)
        for r in own[:20]:  # equal scores may be in another order
            alike = (found.labels == r["phrase_row"]) & (np.abs(found.scores - r["score"]) < 1e-5)
            boxes = found.boxes[alike] - [r["x1"], r["y1"], r["x2"], r["y2"]]
            assert np.abs(boxes).max(1).min() < 0.01


def test_many_names_take_several_texts_and_one_pass_of_the_image_part(photos, teacher, tmp_path, monkeypatch):
    names = [f"{colour} {thing}" for colour in ("red", "green", "blue", "old", "small") for thing in NAMES * 2]
    names = [f"{name} {i}" for i, name in enumerate(names)]
    (listed := tmp_path / "names.txt").write_text("\n".join(names))
    passes, heads = [], []
    forward = GlipAnnotator._forward
    annotator = load_annotator(teacher, own_settings(teacher, SETTINGS, "cpu"))
    encode = annotator._model.encode_image
    monkeypatch.setattr(annotator, "_encode_image", lambda pixels: passes.append(len(pixels)) or encode(pixels))
    monkeypatch.setattr(GlipAnnotator, "_forward", lambda self, batch: heads.append(1) or forward(self, batch))
    label(photos, teacher, tmp_path / "regions", names=str(listed))
    texts = len(annotator.class_queries(names))
    assert texts > 2 and sum(passes) == len(SIZES) and len(heads) == texts * len(passes)
    (path,) = (tmp_path / "regions").glob("*.parquet")
    rows = read_table(path, NAMED_REGIONS).to_pylist()
    assert {r["name"] for r in rows} == set(names) and {r["key"] for r in rows} == {f"{i:09d}" for i in range(3)}


def test_synonyms_are_prompted_and_belong_to_their_class(photos, teacher, tmp_path):
    (listed := tmp_path / "names.txt").write_text("dog: hound\ncat\n")
    label(photos, teacher, tmp_path / "regions", names=str(listed))
    (path,) = (tmp_path / "regions").glob("*.parquet")
    rows = read_table(path, NAMED_REGIONS).to_pylist()
    assert {(r["phrase"], r["name"]) for r in rows} == {("dog", "dog"), ("hound", "dog"), ("cat", "cat")}


def test_other_names_are_labelled_anew_and_phrases_beside_names_refused(photos, teacher, tmp_path):
    label(photos, teacher, tmp_path / "regions")
    assert label(photos, teacher, tmp_path / "regions").skipped == 1
    assert label(photos, teacher, tmp_path / "regions", names="car. tree").skipped == 0
    with pytest.raises(InputError, match=r"found names 'car' and phrases .*; want one of them"):
        label(photos, teacher, tmp_path / "regions", names="car", phrases=tmp_path)
