"""Exports as others' own readers see them: pycocotools, HF datasets, and the layouts that
FiftyOne, GLIP and YOLO document."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from pycocotools.coco import COCO

from pipeline.config import IngestConfig
from pipeline.errors import InputError
from pipeline.stages.jobs import ExportLabels, Ingest
from tests.fixtures import exports
from tests.fixtures.crawl import jpeg
from tests.pipeline.readers import layouts


@pytest.fixture
def mixed(tmp_path):
    return exports.write_mixed(tmp_path / "train")


def run(folder: Path, out: Path, to: str, **options) -> dict[str, float]:
    done = ExportLabels(dirs=[str(folder)], out=out, to=to, **options).run()
    assert done.hints
    return done.report.numbers


def coco_of(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_pycocotools_reads_a_detection_set(mixed, tmp_path):
    run(mixed, tmp_path / "out", "coco")
    coco = coco_of(tmp_path / "out" / "det.json")
    assert [coco.cats[i]["name"] for i in sorted(coco.cats)] == ["tree", "car", "dog"]
    assert sorted(coco.imgs) == [7, 9] and coco.getAnnIds(imgIds=[9]) == []
    (image,) = coco.loadImgs([7])
    assert (tmp_path / "out" / image["file_name"]).read_bytes() == jpeg(0)
    car, tree = coco.loadAnns(coco.getAnnIds(imgIds=[7]))
    assert (car["bbox"], car["category_id"], car["iscrowd"], car["area"]) == ([1.0, 2.0, 29.0, 38.0], 2, 0, 1102.0)
    assert (
        tree["ignore"] == tree["iscrowd"] == 1 and "ignore" not in car and coco.getAnnIds(iscrowd=False) == [car["id"]]
    )
    assert coco.dataset["licenses"][0]["name"] == "CC0-1.0"


def test_a_federated_set_is_lvis(tmp_path):
    exports.write_card(tmp_path / "train", "det", "detection", ("tree", "car", "dog"))
    records = [
        exports.detection("x", exports.CAR, absent=("dog", "zebra"), more=("car",)), exports.detection("y", absent=()),
    ]  # fmt: skip
    exports.write_shard(tmp_path / "train" / "det-000000.tar", records)
    assert run(tmp_path / "train", tmp_path / "out", "coco") == {
        "classes_outside_the_card": 1, "images_copied": 2, "not_exhaustive_unknown": 1,
    }  # fmt: skip
    coco = coco_of(tmp_path / "out" / "det.json")
    assert coco.imgs[1]["neg_category_ids"] == [3, 4] and coco.imgs[1]["not_exhaustive_category_ids"] == [2]
    assert coco.imgs[2]["neg_category_ids"] == coco.imgs[2]["not_exhaustive_category_ids"] == []
    mixed = [*records, exports.detection("z")]
    exports.write_shard(tmp_path / "train" / "det-000000.tar", mixed)
    assert run(tmp_path / "train", tmp_path / "both", "coco")["lost_all_others_absent"] == 1


def test_the_lvis_package_measures_an_exported_set_as_it_does_the_owners_file(tmp_path, monkeypatch):
    """Ingested and exported again: its false positives count where, and only where, a class is boxed exhaustively."""
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis 0.5.3 is older than numpy 2
    import lvis

    size = {"height": 64, "width": 80}
    images = [
        {"id": 11, "file_name": "11.jpg", **size, "neg_category_ids": [2], "not_exhaustive_category_ids": [1]},
        {"id": 12, "file_name": "12.jpg", **size, "neg_category_ids": [], "not_exhaustive_category_ids": []},
    ]
    gold = [(11, 1, [1, 2, 30, 40]), (12, 1, [5, 5, 20, 20]), (12, 2, [40, 5, 20, 20])]
    rows = [
        {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": 0, "segmentation": []}
        for n, (i, c, b) in enumerate(gold, 1)
    ]
    names = [{"id": 1, "name": "bow_(weapon)", "frequency": "r"}, {"id": 2, "name": "cat", "frequency": "f"}]
    layouts.put(tmp_path / "lvis.json", {"images": images, "annotations": rows, "categories": names})
    for image in images:
        (tmp_path / image["file_name"]).write_bytes(jpeg(image["id"]))
    layouts.put(
        tmp_path / "m.yaml", "sets: {l: {kind: detection, format: lvis, annotations: lvis.json, images_folder: .}}"
    )
    Ingest(settings=IngestConfig(), manifest=tmp_path / "m.yaml", out=tmp_path / "train").run()
    assert run(tmp_path / "train", tmp_path / "out", "coco") == {"images_copied": 2}
    found = [(i, c, b, 0.5) for i, c, b in gold] + [(11, 1, [50, 2, 20, 40], 0.9), (12, 1, [50, 30, 20, 20], 0.8)]

    def measured(path: Path, ids: dict[int, int]) -> dict[str, float]:
        rows = [{"image_id": ids[i], "category_id": c, "bbox": b, "score": s} for i, c, b, s in found]
        with contextlib.redirect_stdout(io.StringIO()):
            truth = lvis.LVIS(str(path))
            evaluation = lvis.LVISEval(truth, lvis.LVISResults(truth, rows), "bbox")
            evaluation.run()
        return dict(evaluation.get_results())

    exported = coco_of(tmp_path / "out" / "l.json")
    ids = {int(image["key"]): number for number, image in exported.imgs.items()}
    owners = measured(tmp_path / "lvis.json", {i: i for i in (11, 12)})
    assert measured(tmp_path / "out" / "l.json", ids) == owners and 0 < owners["AP"] < 1 and owners["APr"] < 1


def test_a_grounding_set_is_mdetrs(mixed, tmp_path):
    numbers = run(mixed, tmp_path / "out", "coco")
    assert numbers == {
        "extra_annotator": 1, "extra_root": 1, "extra_score": 2, "extra_uncertain": 1, "images_copied": 5,
        "renamed_duplicate_keys": 1,
    }  # fmt: skip
    coco = coco_of(tmp_path / "out" / "gr.json")
    first = coco.imgs[1]
    assert first["caption"] == exports.CAPTION and first["tokens_negative"] == [[0, 10], [15, len(exports.CAPTION)]]
    rows = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert [r["tokens_positive"] for r in rows] == [[[2, 9]], [[2, 9]], [[21, 25], [26, 29]]]
    assert [r["iscrowd"] for r in rows] == [0, 1, 0] and {r["category_id"] for r in rows} == {1}
    assert [coco.imgs[i]["key"] for i in (1, 2, 3)] == ["a", "b", "a~2"]
    files = [coco.imgs[i]["file_name"] for i in (1, 2, 3)]
    assert files == ["images/gr-000000/a.jpg", "images/gr-000000/b.jpg", "images/gr-000001/a.jpg"]
    assert all((tmp_path / "out" / file).is_file() for file in files)


@pytest.fixture
def load_dataset(tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    import datasets

    datasets.disable_progress_bars()

    def load(path: Path, **options):
        cache = str(tmp_path / "cache")
        return datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache, **options)

    return load


def test_hf_datasets_read_the_lines_of_odvg(mixed, tmp_path, load_dataset):
    numbers = run(mixed, tmp_path / "out", "odvg")
    assert numbers["extra_ignore"] == 2 and numbers["lines_without_a_region"] == 2
    found = load_dataset(tmp_path / "out" / "gr.jsonl")
    assert found.num_rows == 3 and found[0]["grounding"]["caption"] == exports.CAPTION
    regions = found[0]["grounding"]["regions"]
    assert [r["phrase"] for r in regions] == ["red car", "blue car"]  # what is to be ignored is no label of theirs
    for region in regions:
        assert " ".join(exports.CAPTION[start:end] for start, end in region["tokens_positive"]) == region["phrase"]
    det = load_dataset(tmp_path / "out" / "det.jsonl")
    names = json.loads((tmp_path / "out" / "det.label_map.json").read_text())
    assert names == {"0": "tree", "1": "car", "2": "dog"}
    (instance,) = det[0]["detection"]["instances"]
    assert instance == {"bbox": [1.0, 2.0, 30.0, 40.0], "label": 1, "category": "car"}
    assert det[1]["detection"]["instances"] == []


def test_hf_datasets_read_the_images_of_coco(mixed, tmp_path, load_dataset):
    run(mixed, tmp_path / "out", "coco")
    rows = load_dataset(tmp_path / "out" / "gr.json", field="annotations")
    assert rows["id"] == [1, 2, 3, 4] and rows[0]["score"] == 0.75


def test_fiftyone_finds_samples_with_every_field(mixed, tmp_path):
    """Without a version in metadata.json FiftyOne reads the samples field by field."""
    assert run(mixed, tmp_path / "out", "fiftyone") == {"images_copied": 5}
    assert "version" not in json.loads((tmp_path / "out" / "metadata.json").read_text())
    samples = json.loads((tmp_path / "out" / "samples.json").read_text())["samples"]
    assert len(samples) == 5 and all((tmp_path / "out" / s["filepath"]).is_file() for s in samples)
    first = next(s for s in samples if s["filepath"] == "data/gr-000000/a.jpg")
    assert first["tags"] == ["gr"] and first["caption"] == exports.CAPTION and first["uncertain"] == [[10, 15]]
    red, unsure = first["predictions"]["detections"]
    assert red["bounding_box"] == [1 / 80, 2 / 64, 29 / 80, 38.5 / 64] and red["confidence"] == 0.75
    assert (red["label"], red["tags"], unsure["tags"]) == ("red car", [], ["ignore"])
    (blue,) = first["ground_truth"]["detections"]
    assert blue["tokens_positive"] == [[21, 25], [26, 29]] and "confidence" not in blue
    assert {d["_cls"] for d in (red, unsure, blue)} == {"Detection"}


def test_glips_tables_have_their_line_indices(mixed, tmp_path):
    run(mixed, tmp_path / "out", "glip")
    for name in ("gr.label", "gr.img"):
        data = (tmp_path / "out" / f"{name}.tsv").read_bytes()
        starts = [int(n) for n in (tmp_path / "out" / f"{name}.lineidx").read_text().split()]
        lines = [data[start:].split(b"\n", 1)[0].split(b"\t") for start in starts]
        assert [key for key, _ in lines] == [b"a", b"b", b"a~2"] and len(data.splitlines()) == 3
        if name == "gr.img":
            assert base64.b64decode(lines[1][1], validate=True) == jpeg(1)
        else:
            record = json.loads(lines[0][1])
            assert record["scores"] == [0.75, 1.0] and record["tokens_positive"] == [[[2, 9]], [[21, 25], [26, 29]]]
            assert (record["img_h"], record["img_w"], record["bboxes"][1]) == (64, 80, [40, 2.25, 59, 29])


@pytest.mark.parametrize(("class_names", "names"), [("phrase", ["red car", "blue car"]), ("root", ["car"])])
def test_yolo_finds_a_label_file_for_every_image(mixed, tmp_path, class_names, names):
    done = ExportLabels(dirs=[str(mixed)], out=tmp_path / "out", to="yolo", class_names=class_names).run()
    data = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert list(data["names"].values()) == ["tree", "car", "dog", *(n for n in names if n != "car")]
    assert data["train"] == data["val"] == "images"
    images = sorted((tmp_path / "out" / "images").rglob("*.jpg"))
    assert len(images) == 5
    boxes = []
    for image in images:
        place = f"{os.sep}images{os.sep}"
        label = Path(f"{os.sep}labels{os.sep}".join(str(image).rsplit(place, 1))).with_suffix(".txt")
        for line in label.read_text().splitlines():
            number, x, y, w, h = (float(v) for v in line.split())
            corners = ((x - w / 2) * 80, (y - h / 2) * 64, (x + w / 2) * 80, (y + h / 2) * 64)
            boxes.append((data["names"][number], tuple(round(v, 4) for v in corners)))
    dropped = done.report.tallies["regions"].dropped
    assert boxes[:2] == [("car", (1, 2, 30, 40)), (names[0] if names[0] != "car" else "car", exports.RED.box)]
    if class_names == "phrase":
        assert boxes[2:] == [("blue car", exports.BLUE.box)] * 2 and dropped == {"ignore_region": 2}
    else:
        assert len(boxes) == 2 and dropped == {"ignore_region": 2, "no_root": 2}
    assert done.report.numbers["lost_score"] == 2 and done.report.numbers["lost_caption"] == 3


def test_a_yolo_split_puts_every_image_into_one_list_by_its_key_alone(tmp_path):
    records = [exports.grounding(f"k{i}", exports.RED) for i in range(60)]
    for folder, part in (("all", records), ("some", records[::2])):
        exports.write_card(tmp_path / folder, "gr", "grounding")
        exports.write_shard(tmp_path / folder / "gr-000000.tar", part)
        run(tmp_path / folder, tmp_path / f"{folder}-out", "yolo", val_share=0.25)

    def listed(folder: str, split: str) -> list[str]:
        data = yaml.safe_load((tmp_path / folder / "data.yaml").read_text())
        return (tmp_path / folder / data[split]).read_text().splitlines()

    train, val = listed("all-out", "train"), listed("all-out", "val")
    images = {f"./{p.relative_to(tmp_path / 'all-out')}" for p in (tmp_path / "all-out" / "images").rglob("*.jpg")}
    assert len(images) == 60 and sorted([*train, *val]) == sorted(images) and 6 <= len(val) <= 26
    assert set(listed("some-out", "val")) == set(val) & set(listed("some-out", "val") + listed("some-out", "train"))
    with pytest.raises(InputError, match="found no image for val; want another share"):
        run(tmp_path / "some", tmp_path / "none", "yolo", val_share=1e-9)


@pytest.mark.parametrize(("class_names", "names"), [("phrase", ["red car", "blue car"]), ("root", ["car"])])
def test_a_grounding_set_by_class_is_a_detection_set_that_pycocotools_and_ingest_read(
    mixed, tmp_path, class_names, names
):
    numbers = run(mixed, tmp_path / "out", "coco", class_names=class_names)
    coco = coco_of(tmp_path / "out" / "gr.json")
    assert [coco.cats[i]["name"] for i in sorted(coco.cats)] == names
    boxes = [(coco.cats[a["category_id"]]["name"], a["iscrowd"]) for a in coco.anns.values()]
    if class_names == "phrase":
        assert boxes == [("red car", 0), ("red car", 1), ("blue car", 0), ("blue car", 0)]
    else:  # only one of the regions has a head noun
        assert boxes == [("car", 0)]
    assert numbers["lost_caption"] == 3 and all("caption" not in image for image in coco.imgs.values())
    plain = run(mixed, tmp_path / "plain", "coco")
    assert "lost_caption" not in plain
    assert (tmp_path / "plain" / "det.json").read_bytes() == (tmp_path / "out" / "det.json").read_bytes()
    again = exports.ingest_again(tmp_path / "out", tmp_path / "again")
    assert {r.kind for r in again.values()} == {"detection"}
    assert {region.phrase for (name, _), r in again.items() if name == "gr" for region in r.regions} == set(names)
