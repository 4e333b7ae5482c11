"""What is exported and ingested again is what it was: every field, in the formats that say so."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import IngestConfig
from pipeline.data.records import GroundingRecord, Region
from pipeline.errors import InputError
from pipeline.io.tars import read_tar
from pipeline.readers.base import SetFiles
from pipeline.readers.boxes import xywh_box
from pipeline.readers.registry import load_format
from pipeline.readers.spans import phrase_of
from pipeline.stages.jobs import ExportLabels, Ingest
from pipeline.writers.base import xywh
from tests.fixtures import exports
from tests.fixtures.labelled_sets import read_set
from tests.pipeline.readers import layouts
from tests.pipeline.stages.test_ingest import CONFIG, write_sets

HEIGHT, WIDTH = exports.SIZE
NAMES = ("car", "traffic light", "Träume", "bow_(weapon)", "猫")


@st.composite
def boxes(draw):
    def pair(limit: int) -> tuple[float, float]:
        side = st.floats(0, limit, width=64) | st.integers(0, limit * 100).map(lambda n: n / 100)
        low, high = sorted((draw(side), draw(side)))
        return (low, high) if high - low > 1e-3 else (0.0, float(limit))

    (x1, x2), (y1, y2) = pair(WIDTH), pair(HEIGHT)
    return float(x1), float(y1), float(x2), float(y2)


ORIGINS = st.fixed_dictionaries(
    {
        "score": st.none() | st.floats(0, 1),
        "annotator": st.none() | st.just("glip@0"),
        "root": st.none() | st.sampled_from(NAMES),
    }
)
KEYS = st.one_of(st.integers(0, 10**10).map("{:09d}".format), st.text("abc-_~%2E0", min_size=1, max_size=6))


def spans(length: int):
    edges = st.tuples(st.integers(0, length - 1), st.integers(1, length)).filter(lambda s: s[0] < s[1])
    return st.lists(edges, min_size=1, max_size=3).map(tuple)


def distinct(regions: Iterable[Region]) -> tuple[Region, ...]:
    """Ingest counts a repeated region as ``same_box_again``."""
    return tuple(dict.fromkeys(regions))


@st.composite
def grounding_records(draw):
    caption = draw(st.text(min_size=1, max_size=40).filter(lambda t: t.isprintable()) | st.just(exports.CAPTION))

    def region() -> Region:
        ignore = draw(st.booleans())
        where = draw(spans(len(caption)))
        if ignore and draw(st.booleans()):
            return Region(box=draw(boxes()), phrase=draw(st.sampled_from(NAMES)), ignore=True, **draw(ORIGINS))
        phrase = phrase_of(caption, where)
        return Region(box=draw(boxes()), phrase=phrase, tokens_positive=where, ignore=ignore, **draw(ORIGINS))

    return GroundingRecord(
        key=draw(KEYS), dataset="gr", kind="grounding", image_size=exports.SIZE, caption=caption,
        regions=distinct(region() for _ in range(draw(st.integers(0, 4)))),
        uncertain=draw(st.just(()) | spans(len(caption))),
    )  # fmt: skip


@st.composite
def detection_sets(draw):
    federated = draw(st.booleans())
    records = []
    for key in draw(st.lists(KEYS, min_size=1, max_size=4, unique=True)):
        regions = distinct(
            Region(box=draw(boxes()), phrase=draw(st.sampled_from(NAMES)), ignore=draw(st.booleans()), **draw(ORIGINS))
            for _ in range(draw(st.integers(0, 4)))
        )
        others = sorted(set(NAMES) - {r.phrase for r in regions})
        absent = tuple(sorted(draw(st.sets(st.sampled_from(others))))) if federated and others else ()
        present = tuple(sorted({r.phrase for r in regions}))
        more = draw(st.none() | st.just(()) | st.just(present)) if federated else None
        records.append(exports.detection(key, *regions, absent=absent if federated else None, more=more))
    return records


def round_trip(records: list[GroundingRecord], to: str) -> dict[str, GroundingRecord]:
    """Records by key, after a way out and back."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exports.write_card(folder / "train", "det", "detection", NAMES)
        exports.write_shard(folder / "train" / "set-000000.tar", records)
        ExportLabels(dirs=[str(folder / "train")], out=folder / "out", to=to).run()
        return {key: record for (_, key), record in exports.ingest_again(folder / "out", folder / "again").items()}


def ordered(record: GroundingRecord) -> GroundingRecord:
    """ODVG has ignore regions after the others."""
    return record.model_copy(update={"regions": tuple(sorted(record.regions, key=lambda r: r.ignore))})


@pytest.mark.parametrize("to", ["coco", "odvg"])
@settings(max_examples=40, deadline=None)
@given(records=st.lists(grounding_records(), min_size=1, max_size=4, unique_by=lambda r: r.key))
def test_grounding_records_come_back_as_they_were(to, records):
    again = round_trip(records, to)
    same = ordered if to == "odvg" else lambda r: r
    assert again == {record.key: same(record) for record in records}


@pytest.mark.parametrize("to", ["coco", "odvg"])
@settings(max_examples=40, deadline=None)
@given(records=detection_sets())
def test_detection_records_come_back_as_they_were(to, records):
    again = round_trip(records, to)
    same = ordered if to == "odvg" else lambda r: r
    assert again == {record.key: same(record) for record in records}


@settings(max_examples=30, deadline=None)
@given(records=detection_sets())
def test_boxes_and_classes_come_back_from_voc(records):
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name), Path(name) / "out"
        exports.write_card(folder / "train", "det", "detection", NAMES)
        exports.write_shard(folder / "train" / "set-000000.tar", records)
        done = ExportLabels(dirs=[str(folder / "train")], out=out, to="voc").run()
        assert (out / "labels.txt").read_text().splitlines() == list(NAMES)
        found = read_set(load_format("voc"), SetFiles("set", str(out / "Annotations")))
        assert all((out / "JPEGImages" / image.location.file).is_file() for image in found.images)
    assert done.report.tallies["regions"].kept == sum(len(r.regions) for r in records)
    by_key = {image.location.file.rpartition(".")[0].split("/", 1)[1]: image for image in found.images}
    assert by_key.keys() == {r.key for r in records}
    for record in records:
        again = by_key[record.key]
        assert again.size == record.image_size
        assert [(r.phrase, r.ignore) for r in again.regions] == [(r.phrase, r.ignore) for r in record.regions]
        for ours, theirs in zip(record.regions, again.regions, strict=True):
            assert theirs.box == pytest.approx(ours.box, abs=1e-6)


def test_phrases_or_head_nouns_are_the_classes_of_voc(tmp_path):
    exports.write_mixed(tmp_path / "train")
    for by, classes, dropped in [
        ("phrase", ["tree", "car", "dog", "red car", "blue car"], {}), ("root", ["tree", "car", "dog"], {"no_root": 3})
    ]:  # fmt: skip
        job = ExportLabels(dirs=[str(tmp_path / "train")], out=tmp_path / by, to="voc", class_names=by)
        done = job.run()
        assert (tmp_path / by / "labels.txt").read_text().splitlines() == classes
        assert done.report.tallies["regions"].dropped == dropped and done.report.numbers["lost_score"] == 2
    found = read_set(load_format("voc"), SetFiles("set", str(tmp_path / "phrase" / "Annotations")))
    red = next(r for image in found.images for r in image.regions if r.phrase == "red car" and not r.ignore)
    assert red.box == exports.RED.box


@given(boxes())
def test_boxes_keep_every_bit(box):
    row = xywh(box)
    x, y, w, h = row["bbox"]
    assert abs(x + w - box[2]) < 1e-9 and abs(y + h - box[3]) < 1e-9
    assert xywh_box(row["bbox"], exports.SIZE, {}, row.get("xyxy")) == box


def test_corners_of_another_box_are_passed_over():
    """Someone has moved the box since, in a tool that knows bbox only."""
    assert xywh_box([10, 10, 5, 5], None, {}, [1.0, 1.0, 2.0, 2.0]) == (10, 10, 15, 15)


@pytest.mark.parametrize("to", ["coco", "odvg"])
def test_ingested_sets_come_back_as_the_same_bytes(to, tmp_path):
    """COCO with crowds, LVIS with verified absence, MDETR with several spans; images and cards too."""
    manifest = write_sets(tmp_path)
    for name in ("391895", "5"):
        shutil.copy(tmp_path / "det" / "1.jpg", tmp_path / "det" / f"000000{name:0>6}.jpg")
    rows = json.loads(json.dumps(layouts.LVIS).replace("train2017/", "").replace("val2017/", ""))
    for row in rows["images"]:
        row["file_name"] = row["coco_url"].rsplit("/", 1)[-1]
    layouts.put(tmp_path / "lvis.json", rows)
    with open(manifest, "a") as file:
        file.write("  lvis: {kind: detection, format: lvis, annotations: lvis.json, images_folder: det}\n")
    first, out, again = tmp_path / "first", tmp_path / "out", tmp_path / "again"
    Ingest(settings=CONFIG, manifest=manifest, out=first).run()
    done = ExportLabels(dirs=[str(first)], out=out, to=to).run()
    assert done.report.tallies["samples"].kept == 5 and done.report.numbers["images_copied"] == 5
    Ingest(settings=IngestConfig(max_failed_share=0), manifest=out / "manifest.yaml", out=again).run()

    def content(folder: Path) -> dict[str, dict[str, bytes]]:
        return {f"{p.stem[:4]} {s.key}": s.files for p in sorted(folder.glob("*.tar")) for s in read_tar(p)}

    assert content(again) == content(first)
    assert done.report.numbers.get("lost_frequency", 0) == (0 if to == "coco" else len(layouts.LVIS["categories"]))
    for card in first.glob("*.dataset.json"):
        kept = json.loads(card.read_text())
        if to != "coco":
            kept.pop("frequency", None)
        assert json.loads((again / card.name).read_text()) == kept


def test_glip_records_lose_what_is_told_and_no_span(tmp_path):
    exports.write_mixed(tmp_path / "train")
    done = ExportLabels(dirs=[str(tmp_path / "train")], out=tmp_path / "out", to="glip").run()
    assert done.report.tallies["samples"].dropped == {"detection_record": 2}
    assert done.report.tallies["regions"].dropped == {"detection_record": 2, "ignore_region": 1}
    assert done.report.numbers == {
        "images_copied": 3, "lost_annotator": 1, "lost_root": 1, "lost_uncertain": 1, "made_score_1": 2,
        "renamed_duplicate_keys": 1,
    }  # fmt: skip
    assert len((tmp_path / "out" / "gr.img.tsv").read_text().splitlines()) == 3
    again = exports.ingest_again(tmp_path / "out", tmp_path / "again")
    assert set(again) == {("gr", "a"), ("gr", "b"), ("gr", "a~2")}
    red, blue = again["gr", "a"].regions
    assert (red.box, red.score, red.tokens_positive) == (exports.RED.box, 0.75, ((2, 9),))
    assert (blue.box, blue.score, blue.phrase) == (exports.BLUE.box, 1.0, "blue car")  # its reader joins word pieces
    assert again["gr", "b"].regions == ()


@pytest.mark.parametrize("name", ["coco", "mdetr", "odvg_grounding"])
def test_two_images_of_one_key_are_refused(name, tmp_path):
    image = {"file_name": "a.jpg", "caption": "a dog", "key": "k"}
    rows = {"images": [{"id": 1, **image}, {"id": 2, **image}], "annotations": [], "categories": []}
    lines = [{"filename": "a.jpg", "key": "k", "grounding": {"caption": "a dog", "regions": []}}] * 2
    path = layouts.put(tmp_path / "a", layouts.lines(lines) if name.startswith("odvg") else rows)
    with pytest.raises(InputError, match="two images have the key 'k'"):
        read_set(load_format(name), SetFiles("set", str(path)))


def test_keys_that_no_tar_can_have_are_made_fit(tmp_path):
    rows = {"images": [{"id": 1, "file_name": "a.jpg", "key": "../a b.c"}], "annotations": [], "categories": []}
    (image,) = layouts.read("coco", layouts.put(tmp_path / "a.json", rows)).images
    assert image.key == "%2E%2E%2Fa%20b%2Ec"
