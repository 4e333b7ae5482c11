"""Human labels into shards: spans and boxes go together, everything that goes is counted, errors name the field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import IngestConfig
from pipeline.errors import InputError, RunError
from pipeline.io.tars import read_tar
from pipeline.records import GroundingRecord
from pipeline.sources.base import SetFiles, read_set
from pipeline.sources.formats import load_format
from pipeline.stages import ingest
from tests.fixtures.crawl import jpeg

CAPTION = "a red car near a blue car"


def read_coco(path):
    return read_set(load_format("coco"), SetFiles("set", str(path)))


def read_mdetr(path):
    return read_set(load_format("mdetr"), SetFiles("set", str(path)))


def write_sets(root: Path) -> Path:
    """A COCO set of 5 images (one broken, one missing) and an MDETR set of 2, with a manifest."""
    for name in ("det", "gr"):
        (root / name).mkdir(parents=True)
    for i in range(1, 4):
        (root / "det" / f"{i}.jpg").write_bytes(jpeg(i))
    (root / "det" / "4.jpg").write_bytes(b"broken")
    coco = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 64, "width": 80} for i in range(1, 6)],
        "categories": [{"id": 7, "name": "car"}, {"id": 3, "name": "tree"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 10, 20, 30]},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [70, 50, 30, 30], "iscrowd": 1},  # clipped to 80 x 64
            {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0, 0, 0, 5]},
            {"id": 4, "image_id": 2, "category_id": 9, "bbox": [0, 0, 5, 5]},
            {"id": 5, "image_id": 2, "category_id": 7, "bbox": [90, 0, 5, 5]},
            {"id": 6, "image_id": 99, "category_id": 7, "bbox": [0, 0, 5, 5]},
            {"id": 7, "image_id": 4, "category_id": 7, "bbox": [0, 0, 5, 5]},
        ],
    }
    (root / "det.json").write_text(json.dumps(coco))
    for i in (1, 2):
        (root / "gr" / f"{i}.jpg").write_bytes(jpeg(10 + i))
    mdetr = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "caption": CAPTION, "height": 64, "width": 80} for i in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, "bbox": [1, 2, 10, 10], "tokens_positive": [[2, 9]]},
            {"id": 2, "image_id": 1, "bbox": [20, 2, 10, 10], "tokens_positive": [[17, 21], [22, 25]]},
            {"id": 3, "image_id": 2, "bbox": [1, 2, 10, 10], "tokens_positive": []},
            {"id": 4, "image_id": 2, "bbox": [1, 2, 10, 10], "tokens_positive": [[20, 99]]},
        ],
    }
    (root / "gr.json").write_text(json.dumps(mdetr))
    (root / "sets.yaml").write_text(
        "sets:\n"
        "  det: {kind: detection, format: coco, annotations: det.json, images_folder: det, licence: CC0-1.0}\n"
        "  gr: {kind: grounding, format: mdetr, annotations: gr.json, images_folder: gr}\n"
        "  web: {kind: crawl, format: img2dataset, shards_pattern: 'web/*.tar'}\n"
    )
    return root / "sets.yaml"


CONFIG = IngestConfig(samples_per_shard=2, max_failed_share=0.5)


def records(folder: Path, pattern: str) -> list[GroundingRecord]:
    return [
        GroundingRecord.model_validate_json(s.files["json"]) for p in sorted(folder.glob(pattern)) for s in read_tar(p)
    ]


def test_ingest_counts_and_writes(tmp_path):
    report = ingest.run(CONFIG, write_sets(tmp_path), tmp_path / "out")
    assert report.tallies["samples"].dropped == {"broken_image": 1, "image_missing": 1}
    assert report.tallies["samples"].kept == 5
    assert report.tallies["regions"].dropped == {
        "box_outside_image": 1, "box_without_area": 1, "image_lost": 1, "no_span": 1, "span_outside_caption": 1,
        "unknown_category": 1, "unknown_image": 1,
    }  # fmt: skip
    assert report.tallies["regions"].kept == 4
    found = records(tmp_path / "out", "det-*.tar")
    assert [r.key for r in found] == ["000000001", "000000002", "000000003"]
    car, crowd = found[0].regions
    assert (car.phrase, car.box, car.ignore) == ("car", (10, 10, 30, 40), False)
    assert (crowd.phrase, crowd.box, crowd.ignore) == ("tree", (70, 50, 80, 64), True)
    card = json.loads((tmp_path / "out" / "det.dataset.json").read_text())
    assert card["label_space"] == ["tree", "car"] and card["licence"] == "CC0-1.0"
    first, second = records(tmp_path / "out", "gr-*.tar")
    assert [(r.phrase, r.tokens_positive) for r in first.regions] == [
        ("red car", ((2, 9),)),
        ("blue car", ((17, 21), (22, 25))),
    ]
    assert second.regions == () and second.caption == CAPTION


def test_ingest_again_does_nothing_and_a_changed_image_is_noticed(tmp_path):
    manifest = write_sets(tmp_path)
    ingest.run(CONFIG, manifest, tmp_path / "out")
    assert ingest.run(CONFIG, manifest, tmp_path / "out").done == 0
    (tmp_path / "gr" / "2.jpg").write_bytes(jpeg(99) + b"\0")
    assert ingest.run(CONFIG, manifest, tmp_path / "out", only="gr").done == 1


def test_two_workers_write_the_same_bytes(tmp_path):
    manifest = write_sets(tmp_path)
    ingest.run(CONFIG, manifest, tmp_path / "one", only="det")
    ingest.run(CONFIG, manifest, tmp_path / "two", only="det", workers=2)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_ingest_stops_at_too_many_losses(tmp_path):
    with pytest.raises(RunError, match=r"set det: 2 of 5 images lost.*max_failed_share"):
        ingest.run(IngestConfig(max_failed_share=0.1), write_sets(tmp_path), tmp_path / "out", only="det")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sets: {a: {kind: detection, format: coco, anotations: x}}", r"sets\.a\.anotations"),
        ("sets: {a: {kind: detection, format: coco}}", "annotations"),
        ("nothing: 1", "want a mapping `sets`"),
        ("sets: {a: {kind: crawl, format: img2dataset}}", "no labelled set"),
    ],
)
def test_wrong_manifests_are_named(tmp_path, text, message):
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        ingest.run(CONFIG, tmp_path / "m.yaml", tmp_path / "out")


def test_wrong_label_files_are_named(tmp_path):
    path = tmp_path / "a.json"
    for data, message in [
        ("[", "want COCO's detection JSON.*found a JSON list"),
        ('{"images": [}', "want JSON; found none"),
        ('{"images": [{"id": 1, "file_na', "want JSON; found none .cut off"),
        ('{"images": []}', "`annotations`"),
        ('{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": [], "categories": []}',
            "image id 1 is there twice",
        ),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "`file_name` is missing"),
    ]:
        path.write_text(data)
        with pytest.raises(InputError, match=message):
            read_coco(path)
    path.write_text('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}')
    with pytest.raises(InputError, match="image 1: `caption` is missing"):
        read_mdetr(path)


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.text("abcé字 ", min_size=1, max_size=6), min_size=1, max_size=6),
    data=st.data(),
)
def test_spans_never_shift(tmp_path_factory, words, data):
    caption = " ".join(words) + "."
    start = data.draw(st.integers(0, len(caption) - 1))
    end = data.draw(st.integers(start + 1, len(caption)))
    path = tmp_path_factory.mktemp("m") / "a.json"
    image = {"id": 1, "file_name": "a.jpg", "caption": caption, "height": 10, "width": 10}
    row = {"image_id": 1, "bbox": [1, 1, 5, 5], "tokens_positive": [[start, end]]}
    path.write_text(json.dumps({"images": [image], "annotations": [row]}))
    (region,) = read_mdetr(path).images[0].regions
    assert region.tokens_positive == ((start, end),) and region.phrase == caption[start:end]
