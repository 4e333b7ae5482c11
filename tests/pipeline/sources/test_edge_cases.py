"""The troubles that published labels have, through every reader: boxes, spans, names and images that are not as they should be."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import IngestConfig
from pipeline.errors import InputError, RunError
from pipeline.io.manifests import read_manifest
from pipeline.io.tars import read_tar, write_tar
from pipeline.records import GroundingRecord
from pipeline.sources import image_store
from pipeline.sources.base import CUT, Labelled, Place, known_of
from pipeline.sources.formats import READ, load_format
from pipeline.sources.keys import fitting_key
from pipeline.stages import export, ingest
from tests.fixtures.crawl import jpeg
from tests.pipeline.sources import layouts as L
from tests.pipeline.sources.layouts import put, read

WIDTH, HEIGHT = 80, 64
CAPTION = "👩‍🚀 a café's café 字 — a café"
SPANS = [(4, 10), (22, 28)]
"""Two that mean one thing, behind a sign of several code points beyond 16 bits."""
BOXES = {
    "good": (10, 4, 30, 12), "beyond the edge": (70, 50, 100, 90), "outside": (90, 4, 99, 12), "no area": (10, 4, 10, 12),
    "turned": (30, 12, 10, 4),
}  # fmt: skip
"""x1, y1, x2, y2 in pixels."""
KEPT = [(10, 4, 30, 12), (70, 50, WIDTH, HEIGHT)]
LOST = {"box_outside_image": 1, "box_without_area": 2}
Set = tuple[Path, dict[str, Path], dict[str, object]]


def xywh(box):
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def xml(name: str, boxes, first: int) -> str:
    """Corners that are both inside."""
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{b[0] + first}</xmin><ymin>{b[1] + first}</ymin>"
        f"<xmax>{b[2] + first - 1}</xmax><ymax>{b[3] + first - 1}</ymax></bndbox></object>"
        for b in boxes
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    return f"<annotation><filename>1.jpg</filename>{size}{objects}</annotation>"


def coco(root: Path, boxes) -> Set:
    rows = [{"id": i, "image_id": 1, "category_id": 1, "bbox": xywh(b)} for i, b in enumerate(boxes)]
    images = [{"id": 1, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}]
    return (
        put(root / "a.json", {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "café 👩‍🚀"}]}),
        {},
        {},
    )


def lvis(root: Path, boxes) -> Set:
    path, companions, options = coco(root, boxes)
    given = json.loads(path.read_text())
    given["images"][0] |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    return put(path, given), companions, options


def mdetr(root: Path, boxes) -> Set:
    rows = [{"id": i, "image_id": 1, "bbox": xywh(b), "tokens_positive": SPANS} for i, b in enumerate(boxes)]
    images = [{"id": 1, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH, "caption": CAPTION}]
    return put(root / "a.json", {"images": images, "annotations": rows}), {}, {}


def openimages(root: Path, boxes) -> Set:
    head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n"
    rows = [f"1,x,/m/1,1,{b[0] / WIDTH},{b[2] / WIDTH},{b[1] / HEIGHT},{b[3] / HEIGHT},0\n" for b in boxes]
    return put(root / "a.csv", head + "".join(rows)), {"classes": put(root / "c.csv", "/m/1,café 👩‍🚀\n")}, {}


def visual_genome(root: Path, rows: str, row: Callable) -> Set:
    images = [{"image_id": 1, "url": "https://x/VG_100K/1.jpg", "width": WIDTH, "height": HEIGHT, "coco_id": None}]
    return put(root / "a.json", [{"image_id": 1, rows: row}]), {"images": put(root / "i.json", images)}, {}


def vg_objects(root: Path, boxes) -> Set:
    rows = [{"names": ["Café 👩‍🚀"], **dict(zip("xywh", xywh(b), strict=True))} for b in boxes]
    return visual_genome(root, "objects", rows)


def vg_regions(root: Path, boxes) -> Set:
    names = ("x", "y", "width", "height")
    return visual_genome(
        root,
        "regions",
        [{"phrase": f"café {i}", **dict(zip(names, xywh(b), strict=True))} for i, b in enumerate(boxes)],
    )


def voc(root: Path, boxes) -> Set:
    put(root / "xml" / "1.xml", xml("café 👩‍🚀", boxes, 1))
    return root / "xml", {}, {}


def flickr30k(root: Path, boxes) -> Set:
    put(root / "xml" / "1.xml", xml("7", boxes, 1))
    (s1, e1), (s2, e2) = SPANS
    marks = [f"[/EN#7/other {CAPTION[s:e]}]" for s, e in SPANS]
    marked = CAPTION[:s1] + marks[0] + CAPTION[e1:s2] + marks[1] + CAPTION[e2:]
    put(root / "txt" / "1.txt", marked + "\n")
    return root / "xml", {"sentences": root / "txt"}, {}


def odvg_detection(root: Path, boxes) -> Set:
    part = {"instances": [{"bbox": b, "category": "café 👩‍🚀", "label": 0} for b in boxes]}
    return (
        put(root / "a.jsonl", L.lines([{"filename": "1.jpg", "height": HEIGHT, "width": WIDTH, "detection": part}])),
        {},
        {},
    )


def odvg_grounding(root: Path, boxes) -> Set:
    part = {"caption": CAPTION, "regions": [{"bbox": b, "phrase": "x", "tokens_positive": SPANS} for b in boxes]}
    return (
        put(root / "a.jsonl", L.lines([{"filename": "1.jpg", "height": HEIGHT, "width": WIDTH, "grounding": part}])),
        {},
        {},
    )


def grit(root: Path, boxes) -> Set:
    chunks = [[*SPANS[0], b[0] / WIDTH, b[1] / HEIGHT, b[2] / WIDTH, b[3] / HEIGHT, 0.9] for b in boxes]
    row = {"key": "000000001", "caption": CAPTION, "noun_chunks": chunks}
    return put(root / "a.jsonl", L.lines([row])), {}, {}


def glip(root: Path, boxes) -> Set:
    record = {
        "img_h": HEIGHT,
        "img_w": WIDTH,
        "caption": CAPTION,
        "bboxes": [list(b) for b in boxes],
        "scores": [0.9] * len(boxes),
    }
    return put(root / "a.tsv", L.tsv({"1": {**record, "tokens_positive": [SPANS] * len(boxes)}})), {}, {}


SETS: dict[str, Callable[[Path, list], Set]] = {
    "coco": coco, "lvis": lvis, "mdetr": mdetr, "refcoco": mdetr, "openimages": openimages, "visual_genome_objects": vg_objects,
    "visual_genome_regions": vg_regions, "voc": voc, "flickr30k": flickr30k, "odvg_detection": odvg_detection,
    "odvg_grounding": odvg_grounding, "grit": grit, "glip_captions": glip,
}  # fmt: skip


def test_every_reader_has_its_set_here():
    assert set(SETS) == set(READ)


@pytest.mark.parametrize("name", READ)
def test_boxes_outside_and_without_area_are_lost_by_name_and_the_others_cut_at_the_edge(tmp_path, name):
    path, companions, options = SETS[name](tmp_path, list(BOXES.values()))
    (image,) = read(name, path, companions, **options).images
    scale = (WIDTH, HEIGHT) * 2 if image.relative else (1, 1, 1, 1)
    assert [tuple(v * s for v, s in zip(r.box, scale, strict=True)) for r in image.regions] == [
        pytest.approx(b) for b in KEPT
    ]
    assert image.lost == {**LOST, CUT: 1}


@pytest.mark.parametrize("name", READ)
def test_an_image_without_boxes_is_an_image(tmp_path, name):
    path, companions, options = SETS[name](tmp_path, [])
    images = read(name, path, companions, **options).images
    if name in (
        "openimages",
        "visual_genome_regions",
    ):  # images are known by their boxes; a caption by its descriptions
        assert not images
    else:
        assert len(images) == 1 and images[0].regions == () and images[0].lost == {}


@pytest.mark.parametrize("name", READ)
def test_spans_and_names_beyond_ascii_are_kept_as_they_stand(tmp_path, name):
    path, companions, options = SETS[name](tmp_path, [BOXES["good"]])
    (image,) = read(name, path, companions, **options).images
    (region,) = image.regions
    if load_format(name).kind == "detection":
        assert region.phrase == "café 👩‍🚀" and image.caption is None
    elif name == "visual_genome_regions":
        assert [image.caption[s:e] for s, e in region.tokens_positive] == ["café 0"]
    else:
        spans = SPANS[:1] if name == "grit" else SPANS  # GRIT's chunks have one span each
        assert image.caption == CAPTION and region.tokens_positive == tuple(spans)
        assert region.phrase == " ".join(CAPTION[s:e] for s, e in spans)


def nameless(name: str, root: Path) -> Set:
    """The set with the class's name empty, and with nothing else changed."""
    path, companions, options = SETS[name](root, [BOXES["good"]])
    for file in [*companions.values(), *(path.glob("*.xml") if path.is_dir() else [path])]:
        file.write_text(file.read_text().replace("café 👩‍🚀", " " if name == "odvg_detection" else ""))
    return path, companions, options


@pytest.mark.parametrize("name", ["coco", "lvis", "voc", "odvg_detection", "openimages"])
def test_a_class_without_a_name_is_none(tmp_path, name):
    """It would be a prompt's word, and the phrase of a box."""
    path, companions, options = nameless(name, tmp_path)
    found = read(name, path, companions, **options)
    (image,) = found.images
    assert found.label_space == () and image.regions == () and image.lost == {"unknown_category": 1}


def test_a_label_maps_class_without_a_name_is_none(tmp_path):
    path, _, _ = odvg_detection(tmp_path, [BOXES["good"]])
    found = read("odvg_detection", path, {"classes": put(tmp_path / "c.json", {"0": "", "1": "dog"})})
    assert found.label_space == ("dog",) and found.images[0].lost == {"unknown_category": 1}


def listed_twice(name: str, root: Path) -> Set:
    path, companions, options = SETS[name](root, [BOXES["good"]])
    if name in ("voc", "flickr30k"):
        return path, {**companions, "ids": put(root / "ids.txt", "1\n1\n")}, options
    data = json.loads(path.read_text())
    if isinstance(data, list):
        return put(path, data * 2), companions, options
    return put(path, {**data, "images": data["images"] * 2}), companions, options


@pytest.mark.parametrize("name", [n for n in READ if not n.startswith(("odvg", "grit", "glip", "openimages"))])
def test_an_image_that_is_there_twice_is_named(tmp_path, name):
    path, companions, options = listed_twice(name, tmp_path)
    with pytest.raises(InputError, match=r"image id \S+ is there twice"):
        read(name, path, companions, **options)


@pytest.mark.parametrize("name", ["coco", "mdetr"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"id": 1, "key": "000000002"}, {"id": 2}),
        ({"id": 1}, {"id": "000000001"}),
        ({"id": "a.b"}, {"id": 3, "key": "a%2Eb"}),
    ],
)
def test_two_images_of_one_key_are_refused_wherever_the_key_is_from(tmp_path, name, first, second):
    """A shard cannot have both: the labels of one would be the other's."""
    path, companions, options = SETS[name](tmp_path, [])
    data = json.loads(path.read_text())
    (image,) = data["images"]
    data["images"] = [image | first, image | second]
    with pytest.raises(InputError, match="two images have the key") as error:
        read(name, put(path, data), companions, **options)
    assert repr(first["id"]) in str(error.value) and repr(second["id"]) in str(error.value)


def test_a_line_called_as_another_line_is_counted_is_refused(tmp_path):
    path, _, _ = odvg_grounding(tmp_path, [])
    line = json.loads(path.read_text())
    numbers = [i.key for i in read("odvg_grounding", put(path, L.lines([line, line]))).images]
    with pytest.raises(InputError, match=f"two images have the key '{numbers[1]}'"):
        read("odvg_grounding", put(path, L.lines([line | {"key": numbers[1]}, line])))


@pytest.mark.parametrize("name", ["coco", "mdetr"])
@pytest.mark.parametrize("side", ["images", "annotations"])
def test_a_whole_float_is_the_number_that_it_was_before_pandas(tmp_path, name, side):
    path, companions, options = SETS[name](tmp_path, [BOXES["good"]])
    data = json.loads(path.read_text())
    data[side][0]["id" if side == "images" else "image_id"] = 1.0
    (image,) = read(name, put(path, data), companions, **options).images
    assert image.key == "000000001" and len(image.regions) == 1


@pytest.mark.parametrize("name", ["coco", "mdetr"])
@pytest.mark.parametrize(("named", "words"), [("1", "'1'"), (2, "2"), (None, "None"), (1.5, "1.5"), (True, "True")])
def test_labels_that_are_all_of_other_images_are_refused_with_an_id_of_each(tmp_path, name, named, words):
    path, companions, options = SETS[name](tmp_path, [BOXES["good"]])
    data = json.loads(path.read_text())
    data["annotations"][0]["image_id"] = named
    with pytest.raises(InputError, match=rf"first annotation's image is {words}, the first image's id 1;") as error:
        run(tmp_path, name, (put(path, data), companions, options))
    assert str(path) in str(error.value) and not list(tmp_path.glob("out/*"))


def test_labels_of_a_whole_set_may_stand_with_the_images_of_a_split_but_not_by_ids_of_another_kind(tmp_path):
    path, _, _ = coco(tmp_path, [BOXES["good"]])
    put(tmp_path / "images" / "1.jpg", "").write_bytes(jpeg(1, (WIDTH, HEIGHT)))
    data = json.loads(path.read_text())
    (row,) = data["annotations"]
    data["annotations"] += [row | {"image_id": n} for n in range(2, 100)]
    report = run(tmp_path, "coco", (put(path, data), {}, {}), config=IngestConfig())
    assert report.tallies["regions"].kept == 1 and report.tallies["regions"].dropped == {"unknown_image": 98}
    data["annotations"] += [row | {"image_id": "1"}]
    with pytest.raises(RunError, match=r"set s: 1 of 2 regions lost \({'bad_image_id': 1}\)"):
        run(tmp_path, "coco", (put(path, data), {}, {}), config=IngestConfig())


CONFIG = IngestConfig(max_failed_share=1.0)


def run(root: Path, name: str, found: Set, config: IngestConfig = CONFIG, **more: object):
    path, companions, options = found
    (root / "images").mkdir(exist_ok=True)
    entry = {
        "kind": load_format(name).kind, "format": name, "annotations": str(path), "options": options, "images_folder": "images",
        "companions": {role: str(p) for role, p in companions.items()}, **more,
    }  # fmt: skip
    return ingest.run(config, put(root / "m.yaml", {"sets": {"s": entry}}), root / "out")


def test_of_crawled_records_of_one_key_the_first_stays_and_the_others_are_counted(tmp_path):
    path, _, _ = glip(tmp_path, [BOXES["good"]])
    path.write_text(path.read_text() + path.read_text().replace("1\t", "2\t", 1))
    images = put(tmp_path / "i.tsv", L.image_tsv(["1", "1", "3"]))  # one twice, one without labels; 2 has no image
    report = run(tmp_path, "glip_captions", (path, {"images": images}, {}))
    assert (
        report.tallies["samples"].dropped == {"duplicate_key": 1, "bad_record": 1}
        and report.tallies["samples"].kept == 1
    )
    assert report.tallies["regions"].dropped == {"unknown_image": 1} and report.tallies["regions"].kept == 1
    first, other = path.read_text().splitlines()
    path.write_text(
        "\n".join([first, other, first.replace("0.9", "0.1"), other, first])
    )  # three of 1, two of 2, which has no image
    report = run(tmp_path, "glip_captions", (path, {"images": put(tmp_path / "i.tsv", L.image_tsv(["1"]))}, {}))
    assert report.tallies["samples"].dropped == {"duplicate_key": 2} and report.tallies["samples"].kept == 1
    assert report.tallies["regions"].dropped == {"unknown_image": 2} and only_record(tmp_path).regions[0].score == 0.9
    sample = {"jpg": jpeg(1), "json": json.dumps(L.GRIT).encode()}
    for n in (0, 1):
        write_tar(tmp_path / "grit" / f"0000{n}.tar", iter([("000000012", sample)]))
    report = run(tmp_path, "grit", (tmp_path / "grit", {}, {}))
    assert report.tallies["samples"].dropped == {"duplicate_key": 1} and report.tallies["samples"].kept == 1


@pytest.mark.parametrize("name", READ)
def test_a_missing_image_costs_itself_and_its_regions_only(tmp_path, name):
    """And every region is kept or lost for one reason: the sums hold."""
    report = run(tmp_path, name, SETS[name](tmp_path / "set", list(BOXES.values())))
    assert report.tallies["samples"].dropped == {"image_missing": 1} and report.tallies["samples"].kept == 0
    regions = report.tallies["regions"]
    assert regions.kept == 0 and Counter(regions.dropped) == Counter({**LOST, "image_lost": len(KEPT)})
    assert regions.seen == len(BOXES) and not report.numbers


def put_images(root: Path) -> None:
    for file in ("1.jpg", "00000/000000001.jpg", "VG_100K/1.jpg"):
        put(root / "images" / file, "").write_bytes(jpeg(1, (WIDTH, HEIGHT)))


def only_record(root: Path) -> GroundingRecord:
    (sample,) = read_tar(root / "out" / "s-000000.tar")
    return GroundingRecord.model_validate_json(sample.files["json"])


GROUNDING = [name for name in READ if load_format(name).kind == "grounding"]


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
    export.run([str(tmp_path / "out")], tmp_path / "exported", to="coco")
    ingest.run(CONFIG, tmp_path / "exported" / "manifest.yaml", tmp_path / "again")
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


def test_categories_may_have_texts_for_numbers(tmp_path):
    images = [{"id": 1, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}]
    rows = [
        {"id": i, "image_id": 1, "category_id": c, "bbox": xywh(BOXES["good"])} for i, c in enumerate(("2", "1", 1))
    ]
    categories = [{"id": "1", "name": "cat"}, {"id": "2", "name": "dog"}]
    found = read("coco", put(tmp_path / "a.json", {"images": images, "annotations": rows, "categories": categories}))
    assert [r.phrase for r in found.images[0].regions] == ["dog", "cat"] and found.label_space == ("cat", "dog")
    assert found.images[0].lost == {"unknown_category": 1}  # a number is no text


def test_categories_may_have_gone_through_pandas_or_have_no_name(tmp_path):
    images = [{"id": 1, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}]
    rows = [{"id": i, "image_id": 1.0, "category_id": c, "bbox": xywh(BOXES["good"])} for i, c in enumerate((1.0, 2.0))]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": None}]
    found = read("coco", put(tmp_path / "a.json", {"images": images, "annotations": rows, "categories": categories}))
    assert [r.phrase for r in found.images[0].regions] == ["cat"] and found.label_space == ("cat",)
    assert found.images[0].lost == {"unknown_category": 1}


def test_ids_of_one_name_are_one_class_and_it_is_told(tmp_path, caplog):
    """As a labelling tool exports its sets: the first class once more, as the parent of all."""
    images = [{"id": 1, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}]
    rows = [{"id": i, "image_id": 1, "category_id": c, "bbox": xywh(BOXES["good"])} for i, c in enumerate((0, 1, 2))]
    categories = [{"id": 0, "name": "fish"}, {"id": 1, "name": "fish"}, {"id": 2, "name": "ray"}]
    found = read("coco", put(tmp_path / "a.json", {"images": images, "annotations": rows, "categories": categories}))
    assert [r.phrase for r in found.images[0].regions] == ["fish", "fish", "ray"]
    assert found.label_space == ("fish", "ray") and "category 'fish' has several ids" in caplog.text
    categories[1] = {"id": 0, "name": "shark"}
    with pytest.raises(InputError, match="category 0 is there twice, as 'fish' and 'shark'"):
        read("coco", put(tmp_path / "a.json", {"images": images, "annotations": rows, "categories": categories}))


DETECTION = [name for name in READ if load_format(name).kind == "detection"]


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("name", DETECTION)
def test_a_class_whose_box_is_outside_the_image_is_not_known_to_be_absent(tmp_path, name, stated):
    """By the size that the labels state, or by the image's own."""
    put_images(tmp_path)
    path, companions, options = SETS[name](tmp_path / "set", [BOXES["outside"]])
    if not stated:
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
    export.run([str(tmp_path / "out")], tmp_path / "exported", to=to)
    ingest.run(CONFIG, tmp_path / "exported" / "manifest.yaml", tmp_path / "again")
    assert (tmp_path / "again" / "s-000000.tar").read_bytes() == (tmp_path / "out" / "s-000000.tar").read_bytes()


def test_a_federated_image_whose_box_was_of_no_use_no_longer_says_that_its_class_is_absent():
    item = Labelled("a", Place("a.jpg"), boxless_names=("dog",), verified_absent=("cat", "dog"))
    assert known_of(item) == (("cat",), None)  # what the set does not say of others stays unsaid
    assert known_of(item._replace(not_exhaustive=("cow",))) == (("cat",), ("cow", "dog"))
    assert known_of(item._replace(boxless_names=())) == (("cat", "dog"), None)


def test_grits_broken_rows_and_tars_cost_themselves(tmp_path):
    good = {"jpg": jpeg(1), "json": json.dumps(L.GRIT).encode()}
    samples = [(f"{i:09d}", dict(good)) for i in range(20)]
    samples[3][1]["json"] = b"{broken"
    samples[4][1]["json"] = json.dumps({**L.GRIT, "noun_chunks": None}).encode()
    del samples[5][1]["jpg"]
    (tmp_path / "grit").mkdir()
    whole = tmp_path / "grit" / "00000.tar"
    write_tar(whole, samples)
    other = tmp_path / "grit" / "00001.tar"
    write_tar(other, [(f"{i:09d}", good) for i in range(100, 110)])
    other.write_bytes(other.read_bytes()[:5000])  # cut off in its first sample or later
    kept = sum(1 for _ in read_tar(other))
    report = run(tmp_path, "grit", (tmp_path / "grit", {}, {}))
    assert report.tallies["samples"].kept == 17 + kept
    assert report.tallies["samples"].dropped == {"bad_labels": 2, "no_image": 1, "truncated_tar": 1}
    for key in ("bad", "worse"):
        write_tar(tmp_path / "none" / f"{key}.tar", [(f"{i:09d}", {**good, "json": b"[]"}) for i in range(3)])
    with pytest.raises(InputError, match=r"bad\.tar: 000000000\.json: want GRIT .* found \[\]"):
        run(tmp_path, "grit", (tmp_path / "none", {}, {}))


@pytest.mark.parametrize("file", ["x" * 300 + ".jpg", "a\0b.jpg", "denied.jpg"])
def test_a_file_that_cannot_be_read_costs_itself(tmp_path, file, monkeypatch):
    put_images(tmp_path)
    images = [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": file}]
    path = put(tmp_path / "a.json", {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]})
    if file == "denied.jpg":
        (tmp_path / "images" / file).write_bytes(b"x")
        real = image_store.read_small

        def read(path: str) -> bytes:
            if path.endswith(file):
                raise PermissionError(13, "Permission denied")
            return real(path)

        monkeypatch.setattr(image_store, "read_small", read)
    report = run(tmp_path, "coco", (path, {}, {}))
    assert report.failed == [] and report.tallies["samples"].kept == 1
    assert report.tallies["samples"].dropped == {"unreadable_file": 1}


def test_descriptions_without_words_are_counted(tmp_path):
    row = {"x": 1, "y": 1, "width": 9, "height": 9}
    rows = [{**row, "phrase": text} for text in ("a cup", "", ".", None)] + ["nonsense"]
    put_images(tmp_path)
    report = run(tmp_path, "visual_genome_regions", visual_genome(tmp_path, "regions", rows))
    assert report.tallies["regions"].kept == 1 and report.tallies["regions"].dropped == {"no_phrase": 4}


def test_openimages_saved_again_with_an_index_is_read(tmp_path):
    path, companions, options = openimages(tmp_path, [BOXES["good"]])
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([f",{head}", *(f"{n},{line}" for n, line in enumerate(lines))]) + "\n")
    assert len(read("openimages", path, companions, **options).images[0].regions) == 1


def test_sets_of_one_name_are_not_mixed(tmp_path):
    for name in ("a", "b"):
        entry = {"kind": "detection", "format": "coco", "annotations": f"{name}.json", "images_folder": "images"}
        put(tmp_path / f"{name}.yaml", {"sets": {"train": entry}})
    shares = [{"manifest": str(tmp_path / f"{name}.yaml"), "set": "train"} for name in ("a", "b")]
    mixed = put(tmp_path / "mixed.yaml", {"mixture": shares})
    with pytest.raises(InputError, match=r"mixed\.yaml: two sets 'train', one of them in .*b\.yaml"):
        read_manifest(mixed)
    put(tmp_path / "mixed.yaml", {"mixture": [shares[0]] * 2})
    assert list(read_manifest(mixed)) == ["train"]


@given(st.lists(st.text("ab/._%~é", min_size=1, max_size=6), unique=True, max_size=6))
def test_keys_that_fit_are_as_many_as_there_were(keys):
    fitting = [fitting_key(key) for key in keys]
    assert len(set(fitting)) == len(keys) and not any({"/", "."} & set(key) for key in fitting)
    assert all(fit == key for fit, key in zip(fitting, keys, strict=True) if not {"/", ".", "%"} & set(key))


def coco_of(root: Path, file: str, **more: object):
    images = [{"id": 1, "file_name": file}]
    data = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    return run(root, "coco", (put(root / "a.json", data), {}, {}), config=IngestConfig(), **more)


def test_a_wrong_path_is_told_with_the_path(tmp_path):
    with pytest.raises(
        RunError, match=r"1 of 1 images lost .*; the first: .*images/wrong/1\.jpg: not there \(more in .*s-000000"
    ):
        coco_of(tmp_path, "wrong/1.jpg")
    with pytest.raises(InputError, match=r"images_folder: .*/imags: no such folder"):
        coco_of(tmp_path, "1.jpg", images_folder="imags")


def test_labels_may_name_where_their_images_lie(tmp_path):
    put(tmp_path / "elsewhere" / "1.jpg", "").write_bytes(jpeg(1))
    assert coco_of(tmp_path, str(tmp_path / "elsewhere" / "1.jpg")).tallies["samples"].kept == 1


def test_a_cut_xml_is_told_as_that(tmp_path):
    path, companions, options = voc(tmp_path, [BOXES["good"]])
    file = path / "1.xml"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(InputError, match=r"1\.xml: want .* found one that is cut off or broken \(.*line 1"):
        read("voc", path, companions, **options)


def test_a_wrong_option_is_named(tmp_path):
    path, companions, _ = coco(tmp_path, [BOXES["good"]])
    with pytest.raises(InputError, match=r"options\.name_parts 'two': want a number"):
        read("coco", path, companions, name_parts="two")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sets:\n  a: {kind: detection}\n  b: {}\n  a: {}\n", r"m\.yaml: line 4: .*'a' is there twice"),
        ("sets:\n  a: [\n", r"m\.yaml: line 3: not YAML"),
        (
            "sets:\n  a: {kind: detection, format: coco, anotations: x}\n",
            r"sets\.a\.anotations: .*did you mean annotations\?",
        ),
    ],
)
def test_slips_in_a_manifest_are_one_line(tmp_path, text, words):
    with pytest.raises(InputError, match=words) as told:
        read_manifest(put(tmp_path / "m.yaml", text))
    assert "\n" not in str(told.value)
