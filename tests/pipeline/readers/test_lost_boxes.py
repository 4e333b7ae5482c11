"""What a lost box or image leaves behind, through every reader: its words and its class are never taught as absent."""

from __future__ import annotations

import re
from collections import Counter

import pyarrow.parquet as pq
import pytest

from pipeline.readers.absence import presence_of
from pipeline.readers.base import ImageLocation, LabelledImage
from pipeline.readers.registry import READ
from pipeline.stages.jobs import ExportLabels, Ingest
from tests.pipeline.readers import layouts as L
from tests.pipeline.readers.layouts import put
from tests.pipeline.readers.sets import (
    BOXES,
    CAPTION,
    CONFIG,
    DETECTION,
    GROUNDING,
    HEIGHT,
    KEPT,
    LOST,
    SETS,
    SPANS,
    WIDTH,
    only_record,
    put_images,
    run,
)


@pytest.mark.parametrize("name", [n for n in READ if n not in ("yolo", "hf_parquet")])  # those have their images
def test_a_missing_image_costs_itself_and_its_regions_only(tmp_path, name):
    """And every region is kept or lost for one reason: the sums hold."""
    report = run(tmp_path, name, SETS[name](tmp_path / "set", list(BOXES.values())))
    assert report.tallies["samples"].dropped == {"image_missing": 1} and report.tallies["samples"].kept == 0
    regions = report.tallies["regions"]
    assert regions.kept == 0 and Counter(regions.dropped) == Counter({**LOST, "image_lost": len(KEPT)})
    assert regions.seen == len(BOXES) and not report.numbers


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("name", GROUNDING)
def test_words_whose_box_is_outside_the_image_are_uncertain_not_absent(tmp_path, name, stated):
    """By the size that the labels state, or by the image's own."""
    put_images(tmp_path)
    path, companions, options = SETS[name](tmp_path / "set", [BOXES["outside"]])
    if not stated and name in ("mdetr", "refcoco", "odvg_grounding", "glip_captions"):
        path.write_text(re.sub(r'"(height|width|img_h|img_w)": \d+, ?', "", path.read_text()))
    report = run(tmp_path, name, (path, companions, options))
    assert report.tallies["regions"].dropped == {"box_outside_image": 1}
    record = only_record(tmp_path)
    spans = SPANS[:1] if name == "grit" else [(0, 6)] if name == "visual_genome_regions" else SPANS
    assert record.regions == () and record.uncertain == tuple(spans)


@pytest.mark.parametrize(
    "name", [n for n in GROUNDING if n != "visual_genome_regions"]
)  # whose boxes have words of their own
def test_words_that_another_box_teaches_are_not_uncertain(tmp_path, name):
    put_images(tmp_path)
    run(tmp_path, name, SETS[name](tmp_path / "set", list(BOXES.values())))
    record = only_record(tmp_path)
    assert len(record.regions) == len(KEPT) and record.uncertain == ()


@pytest.mark.parametrize("bbox", [[1, 1, 0, 9], [1, None, 9, 9], "none", [WIDTH, 0, 9, 9]])
def test_a_lost_box_leaves_its_words_uncertain_beside_those_that_are(tmp_path, bbox):
    put_images(tmp_path)
    rows = [
        {"image_id": 1, "bbox": [1, 2, 10, 10], "tokens_positive": [[4, 10]]},
        {"image_id": 1, "bbox": bbox, "tokens_positive": [[4, 10], [22, 28]]},  # its first words have a box
        {"image_id": 1, "bbox": bbox, "tokens_positive": [[11, 15]]},  # uncertain already
        {"image_id": 1, "bbox": bbox, "tokens_positive": [[0, 999]]},  # no words, and so none that are uncertain
        {"image_id": 1, "bbox": [1, 2, 10, 10], "tokens_positive": [[11, 17]], "iscrowd": 1},
        {"image_id": 1, "bbox": bbox, "tokens_positive": [[11, 17]]},  # a crowd teaches no word
    ]
    image = {"id": 1, "file_name": "1.jpg", "caption": CAPTION, "uncertain": [[11, 15]]}
    path = put(tmp_path / "a.json", {"images": [image], "annotations": rows})
    run(tmp_path, "mdetr", (path, {}, {}))
    record = only_record(tmp_path)
    assert len(record.regions) == 2 and record.uncertain == ((11, 15), (22, 28), (11, 17))
    ExportLabels(dirs=[str(tmp_path / "out")], out=tmp_path / "exported", to="coco").run()
    Ingest(settings=CONFIG, manifest=tmp_path / "exported" / "manifest.yaml", out=tmp_path / "again").run()
    assert (tmp_path / "again" / "s-000000.tar").read_bytes() == (tmp_path / "out" / "s-000000.tar").read_bytes()


@pytest.mark.parametrize(
    "chunk", [[*SPANS[0], None, 0.1, 0.5, 0.5, 0.9], [*SPANS[0], 0.1, 0.1], [*SPANS[0], 0.5, 0.5, 0.1, 0.1, 0.9]]
)
def test_chunks_without_a_box_leave_their_words_uncertain(tmp_path, chunk):
    put_images(tmp_path)
    chunks = [[*SPANS[1], 0.1, 0.1, 0.5, 0.5, 0.9], chunk, ["x"], []]
    row = {"key": "000000001", "caption": CAPTION, "noun_chunks": chunks}
    report = run(tmp_path, "grit", (put(tmp_path / "a.jsonl", L.lines([row])), {}, {}))
    assert report.tallies["regions"].seen == 4 and only_record(tmp_path).uncertain == (SPANS[0],)


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("name", DETECTION)
def test_a_class_whose_box_is_outside_the_image_is_not_known_to_be_absent(tmp_path, name, stated):
    """By the size that the labels state, or by the image's own."""
    put_images(tmp_path)
    path, companions, options = SETS[name](tmp_path / "set", [BOXES["outside"]])
    if not stated and name == "hf_parquet":
        pq.write_table(pq.read_table(path).drop(["width", "height"]), path)
    elif not stated and name != "yolo":
        for file in path.glob("*.xml") if path.is_dir() else [path]:
            text = re.sub(r'"(height|width)": \d+, ?|<size>.*</size>', "", file.read_text())
            file.write_text(text)
    report = run(tmp_path, name, (path, companions, options))
    assert report.tallies["regions"].dropped == {"box_outside_image": 1}
    record = only_record(tmp_path)
    assert record.regions == () and record.not_exhaustive == ("café 👩‍🚀",)
    assert record.verified_absent == (() if name == "lvis" else None)


@pytest.mark.parametrize("to", ["coco", "odvg"])
def test_what_lost_its_box_comes_back_from_an_export(tmp_path, to):
    put_images(tmp_path)
    images = [{"id": 1, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}]
    rows = [{"image_id": 1, "category_id": n, "bbox": box} for n, box in ((1, [1, 2, 10, 10]), (2, [5, 5, 0, 9]))]
    names = [{"id": n, "name": name} for n, name in enumerate(("cat", "dog", "bird"), start=1)]
    path = put(tmp_path / "a.json", {"images": images, "annotations": rows, "categories": names})
    run(tmp_path, "coco", (path, {}, {}))
    record = only_record(tmp_path)
    assert [r.phrase for r in record.regions] == ["cat"] and record.not_exhaustive == ("dog",)
    ExportLabels(dirs=[str(tmp_path / "out")], out=tmp_path / "exported", to=to).run()
    Ingest(settings=CONFIG, manifest=tmp_path / "exported" / "manifest.yaml", out=tmp_path / "again").run()
    assert (tmp_path / "again" / "s-000000.tar").read_bytes() == (tmp_path / "out" / "s-000000.tar").read_bytes()


def test_a_federated_image_whose_box_was_of_no_use_no_longer_says_that_its_class_is_absent():
    item = LabelledImage("a", ImageLocation("a.jpg"), boxless_names=("dog",), verified_absent=("cat", "dog"))
    assert presence_of(item) == (("cat",), None)  # what the set does not say of others stays unsaid
    assert presence_of(item._replace(not_exhaustive=("cow",))) == (("cat",), ("cow", "dog"))
    assert presence_of(item._replace(boxless_names=())) == (("cat", "dog"), None)
