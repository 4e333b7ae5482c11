"""Labels as people have them: units and flags in other words, statements that contradict each other, files that are
named otherwise, and rows that are broken. The right value is read, or a line names what is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from pipeline.config import IngestConfig
from pipeline.data.records import GroundingRecord
from pipeline.errors import InputError, RunError
from pipeline.io.tars import read_tar
from pipeline.stages.jobs import Ingest
from tests.fixtures.crawl import jpeg
from tests.pipeline.readers import layouts as L
from tests.pipeline.readers.layouts import put

WIDTH, HEIGHT = 160, 120
SUN, LAKE = [20, 20, 81, 71], [90, 40, 151, 111]


def xywh(box):
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def coco(count=20, classes=("sun", "lake"), name="{:04d}.jpg", **fields) -> dict:
    """Two boxes an image; ``fields`` of every annotation."""
    images = [{"id": n, "file_name": name.format(n), "width": WIDTH, "height": HEIGHT} for n in range(1, count + 1)]
    rows = [
        {"id": 2 * n + i, "image_id": n, "category_id": i, "bbox": xywh(box), "iscrowd": 0, **fields}
        for n in range(1, count + 1)
        for i, box in enumerate((SUN, LAKE), 1)
    ]
    categories = [{"id": i, "name": c} for i, c in enumerate(classes, 1)]
    return {"images": images, "annotations": rows, "categories": categories}


def odvg(count=20, **fields) -> list[dict]:
    boxes = ((SUN, 0, "sun"), (LAKE, 1, "lake"))
    things = [{"bbox": b, "label": i, "category": c, **fields} for b, i, c in boxes]
    return [
        {"filename": f"{n:04d}.jpg", "height": HEIGHT, "width": WIDTH, "detection": {"instances": things}}
        for n in range(1, count + 1)
    ]


def grounding(caption: str, *regions: dict, count=20) -> list[dict]:
    part = {"caption": caption, "regions": list(regions)}
    return [
        {"filename": f"{n:04d}.jpg", "height": HEIGHT, "width": WIDTH, "grounding": part} for n in range(1, count + 1)
    ]


def xml(name: str, more: str = "", head: str = "", things=(("sun", SUN), ("lake", LAKE))) -> str:
    objects = "".join(
        f"<object><name>{label}</name>{more}<bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x2}</xmax>"
        f"<ymax>{y2}</ymax></bndbox></object>"
        for label, (x, y, x2, y2) in things
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    return f"{head}<annotation><filename>{name}</filename>{size}{objects}</annotation>"


def put_voc(root: Path, count=20, name="{:04d}.jpg", **more) -> Path:
    for n in range(1, count + 1):
        put(root / "xml" / f"{n:04d}.xml", xml(name.format(n), **more))
    return root / "xml"


def put_images(root: Path, count=20, name="{:04d}.jpg") -> None:
    for n in range(1, count + 1):
        path = root / "images" / name.format(n)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(n, (WIDTH, HEIGHT)))


def ingest(root: Path, form: str, labels: Path, companions: dict | None = None, **entry):
    """(report, records) of a set."""
    roles = {role: str(p) for role, p in (companions or {}).items()}
    kind = "grounding" if form in ("odvg_grounding", "mdetr", "grit", "glip_captions") else "detection"
    row = {"kind": kind, "format": form, "annotations": str(labels), "companions": roles, "images_folder": "images"}
    manifest = put(root / "m.yaml", {"sets": {"s": {**row, **entry}}})
    report = Ingest(settings=IngestConfig(), manifest=manifest, out=root / "out").run()
    tars = sorted((root / "out").glob("*.tar"))
    return report, [GroundingRecord.model_validate_json(s.files["json"]) for p in tars for s in read_tar(p)]


def labels_of(record: GroundingRecord) -> dict:
    return {r.phrase: (list(r.box), r.ignore) for r in record.regions}


BOTH = {"sun": (SUN, False), "lake": (LAKE, False)}


# ---------------------------------------------------------------- flags
@pytest.mark.parametrize("word", ["0", "false", "False", "no", 0.0, None, False, "", " 0 "])
@pytest.mark.parametrize("field", ["iscrowd", "ignore"])
def test_a_flag_that_is_not_set_is_not_whatever_its_type(tmp_path, field, word):
    put_images(tmp_path)
    _, records = ingest(tmp_path, "coco", put(tmp_path / "a.json", coco(**{field: word})))
    assert all(labels_of(r) == BOTH for r in records)


@pytest.mark.parametrize("word", ["1", "true", "Yes", 1.0, True])
@pytest.mark.parametrize("field", ["iscrowd", "ignore"])
def test_a_flag_that_is_set_is_and_a_set_of_nothing_else_is_told(tmp_path, caplog, field, word):
    put_images(tmp_path)
    _, records = ingest(tmp_path, "coco", put(tmp_path / "a.json", coco(**{field: word})))
    assert all(r.ignore for record in records for r in record.regions)
    assert "40 of 40 boxes are ignore regions" in caplog.text


def test_a_flag_that_is_none_is_named(tmp_path):
    put_images(tmp_path)
    with pytest.raises(RunError, match=r"'bad_flag': 40.*`iscrowd` 'perhaps'; want 0 or 1"):
        ingest(tmp_path, "coco", put(tmp_path / "a.json", coco(iscrowd="perhaps")))


@pytest.mark.parametrize(
    ("word", "ignored"), [("true", True), ("Yes", True), ("1", True), ("false", False), ("Unspecified", False)]
)
def test_flags_of_other_formats_are_words_too(tmp_path, word, ignored):
    put_images(tmp_path)
    _, records = ingest(tmp_path, "voc", put_voc(tmp_path, more=f"<difficult>{word}</difficult>"))
    assert all(r.ignore == ignored for record in records for r in record.regions) and len(records) == 20
    head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n"
    rows = "".join(f"{n:04d},x,/m/1,1,0.2,0.9,0.2,0.9,{word}\n" for n in range(1, 21))
    path = put(tmp_path / "b.csv", head + rows)
    _, records = ingest(tmp_path, "openimages", path, {"classes": put(tmp_path / "c.csv", "/m/1, sun \n")})
    assert {r.phrase for record in records for r in record.regions} == {"sun"}
    assert all(r.ignore == ignored for record in records for r in record.regions)
    _, records = ingest(tmp_path, "odvg_detection", put(tmp_path / "d.jsonl", L.lines(odvg(ignore=word))))
    assert all(r.ignore == ignored for record in records for r in record.regions)


def test_an_option_that_is_a_word_is_read_as_one(tmp_path):
    images = put(tmp_path / "i.json", L.VG_IMAGES)
    put(tmp_path / "images" / "VG_100K_2" / "1.jpg", "").write_bytes(jpeg(1, (80, 64)))
    put(tmp_path / "images" / "VG_100K" / "2.jpg", "").write_bytes(jpeg(2, (80, 64)))
    objects = [{"image_id": n, "objects": [{"names": ["a"], "x": 1, "y": 1, "w": 60, "h": 60}]} for n in (1, 2)]
    path, roles = put(tmp_path / "o.json", objects), {"images": images}
    for word, kept in (("false", 2), ("true", 1)):
        _, records = ingest(tmp_path, "visual_genome_objects", path, roles, options={"without_coco": word})
        assert len(records) == kept
    with pytest.raises(InputError, match=r"options\.without_coco: found 'maybe'; want true or false"):
        ingest(tmp_path, "visual_genome_objects", path, roles, options={"without_coco": "maybe"})


# ---------------------------------------------------------------- units and angles
@pytest.mark.parametrize(("across", "down"), [(1 / WIDTH, 1 / HEIGHT), (100 / WIDTH, 100 / HEIGHT)])
@pytest.mark.parametrize("form", ["coco", "odvg_detection", "voc"])
def test_boxes_in_shares_or_percent_are_told(tmp_path, caplog, form, across, down):
    put_images(tmp_path)
    scale = (across, down, across, down)
    sun, lake = ([v * s for v, s in zip(box, scale)] for box in (SUN, LAKE))
    if form == "coco":
        rows = coco()
        for n, row in enumerate(rows["annotations"]):
            row["bbox"] = xywh((sun, lake)[n % 2])
        path = put(tmp_path / "a.json", rows)
    elif form == "odvg_detection":
        lines = odvg()
        for line in lines:
            for thing, box in zip(line["detection"]["instances"], (sun, lake)):
                thing["bbox"] = box
        path = put(tmp_path / "a.jsonl", L.lines(lines))
    else:
        path = put_voc(tmp_path, things=(("sun", [v - 1 for v in sun[:2]] + sun[2:]), ("lake", lake)))
    ingest(tmp_path, form, path)
    assert "shares of the image" in caplog.text or "percent" in caplog.text


def test_pixels_where_shares_belong_are_refused(tmp_path):
    put_images(tmp_path, name="00000/00000{:04d}.jpg")
    rows = [{"key": f"00000{n:04d}", "caption": "a sun", "noun_chunks": [[0, 5, *SUN, 0.9]]} for n in range(1, 21)]
    words = r"box_outside_image: the corners \[20, 20, 81, 71\]; want them in 0 to 1, shares of the image"
    with pytest.raises(RunError, match=words):
        ingest(tmp_path, "grit", put(tmp_path / "a.jsonl", L.lines(rows)))


def test_boxes_of_larger_images_are_refused_or_told(tmp_path, caplog):
    put_images(tmp_path)
    rows = coco()
    for row in rows["annotations"]:
        row["bbox"] = [v * 10 for v in row["bbox"]]
    with pytest.raises(RunError, match=r"box_outside_image: the corners \[200, 200, 810, 710\]; want them in an image"):
        ingest(tmp_path, "coco", put(tmp_path / "a.json", rows))
    for row in rows["annotations"]:
        row["bbox"] = [v / 10 * 1.7 for v in row["bbox"]]
    ingest(tmp_path, "coco", put(tmp_path / "a.json", rows))
    assert "boxes reached outside their image by more than a tenth" in caplog.text


def test_corners_are_told_by_their_areas(tmp_path):
    put_images(tmp_path)
    rows = coco()
    for row in rows["annotations"]:
        box = SUN if row["category_id"] == 1 else LAKE
        row |= {"bbox": box, "area": (box[2] - box[0]) * (box[3] - box[1])}
    with pytest.raises(InputError, match=r"`bbox`: found corners .* \(bbox \[20, 20, 81, 71\], area 3111\); want x, y"):
        ingest(tmp_path, "coco", put(tmp_path / "a.json", rows))


def test_boxes_that_are_not_around_their_outlines_are_told(tmp_path, caplog):
    put_images(tmp_path)
    outline = {"segmentation": [[40, 40, 162, 40, 162, 142, 40, 142]]}
    ingest(tmp_path, "coco", put(tmp_path / "a.json", coco(**outline)))
    assert "not around their `segmentation` (bbox [20, 20, 61, 51], corners of the outline [40, 40, 162, 142])" in (
        caplog.text
    )


@pytest.mark.parametrize("degrees", [90, 90.0, "90.0", -90, 270])
def test_a_turned_box_is_the_box_around_it(tmp_path, degrees):
    put_images(tmp_path)
    rows = coco(attributes={"occluded": False, "rotation": degrees}, bbox=[40, 50, 80, 10])
    _, records = ingest(tmp_path, "coco", put(tmp_path / "a.json", rows))
    assert {r.box for record in records for r in record.regions} == {(75, 15, 85, 95)}
    turn = f"<attributes><attribute><name>rotation</name><value>{degrees}</value></attribute></attributes>"
    _, records = ingest(tmp_path, "voc", put_voc(tmp_path, more=turn, things=[("sun", [40, 50, 120, 60])]))
    assert {r.box for record in records for r in record.regions} == {(75, 15, 85, 95)}


def test_roboxes_are_in_radians(tmp_path):
    put_images(tmp_path, 1)
    box = "<cx>80</cx><cy>55</cy><w>80</w><h>10</h><angle>1.570796</angle>"
    text = f"<annotation><object><name>sun</name><robndbox>{box}</robndbox></object></annotation>"
    _, (record,) = ingest(tmp_path, "voc", put(tmp_path / "xml" / "0001.xml", text).parent)
    assert record.regions[0].box == pytest.approx((75, 15, 85, 95), abs=1e-3)


# ---------------------------------------------------------------- what is absent
@pytest.mark.parametrize("form", ["coco", "odvg_detection", "voc"])
def test_a_set_without_a_box_is_told(tmp_path, caplog, form):
    put_images(tmp_path)
    if form == "coco":
        path = put(tmp_path / "a.json", coco() | {"annotations": []})
    elif form == "voc":
        path = put_voc(tmp_path, things=())
    else:
        path = put(tmp_path / "a.jsonl", L.lines([r | {"detection": {"instances": []}} for r in odvg()]))
    ingest(tmp_path, form, path)
    assert "no box in all of 20 images (none is in the labels): every class would be taught as absent" in caplog.text


def test_a_class_that_only_stands_above_others_is_none(tmp_path, caplog):
    put_images(tmp_path)
    rows = coco()
    rows["categories"] = [{"id": 0, "name": "things"}, *(c | {"supercategory": "things"} for c in rows["categories"])]
    ingest(tmp_path, "coco", put(tmp_path / "a.json", rows))
    assert json.loads((tmp_path / "out" / "s.dataset.json").read_text())["label_space"] == ["sun", "lake"]
    assert "['things']: no box, and only above other classes" in caplog.text


@pytest.mark.parametrize("form", ["coco", "odvg_detection"])
def test_classes_that_have_no_box_at_all_are_told(tmp_path, caplog, form):
    """A file may list what nobody looked for."""
    put_images(tmp_path)
    roles = {}
    if form == "coco":
        path = put(tmp_path / "a.json", coco(classes=("sun", "lake", "moon")))
    else:
        path = put(tmp_path / "a.jsonl", L.lines(odvg()))
        roles = {"classes": put(tmp_path / "c.json", {"0": "sun", "1": "lake", "2": "moon"})}
    ingest(tmp_path, form, path, roles)
    assert "1 of 3 classes have no box (moon): each is taken as looked for and absent in all images" in caplog.text


@pytest.mark.parametrize("field", ["neg_category_ids", "not_exhaustive_category_ids"])
def test_ids_of_absent_classes_that_no_class_has_are_named(tmp_path, field):
    put_images(tmp_path)
    rows = coco()
    for image in rows["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": [], field: ["1"]}
    with pytest.raises(RunError, match=rf"`{field}` \['1'\]: no class has such an id; known: 1 \(sun\)"):
        ingest(tmp_path, "lvis", put(tmp_path / "a.json", rows))


def test_classes_above_and_below_one_that_is_there_are_not_absent(tmp_path):
    """A cod is a fish; a fish may be a cod."""
    put_images(tmp_path)
    rows = coco(classes=("fish", "cod", "crab"))
    rows["categories"][1]["supercategory"] = "fish"
    rows["annotations"] = [a for a in rows["annotations"] if a["category_id"] == 1 + a["image_id"] % 2]
    _, records = ingest(tmp_path, "coco", put(tmp_path / "a.json", rows))
    assert {(r.regions[0].phrase, r.not_exhaustive) for r in records} == {("fish", ("cod",)), ("cod", ("fish",))}


@pytest.mark.parametrize("form", ["coco", "odvg_detection", "voc"])
def test_labels_of_one_file_in_two_rows_are_merged_and_it_is_told(tmp_path, caplog, form):
    put_images(tmp_path)
    if form == "coco":
        rows = coco()
        rows["images"] += [i | {"id": i["id"] + 100} for i in rows["images"]]
        for row in rows["annotations"]:
            row["image_id"] += 100 * (row["category_id"] == 2)
        path = put(tmp_path / "a.json", rows)
    elif form == "voc":
        for n in range(1, 21):
            put(tmp_path / "xml" / f"{n:04d}.xml", xml(f"{n:04d}.jpg", things=[("sun", SUN)]))
            put(tmp_path / "xml" / f"x{n:04d}.xml", xml(f"{n:04d}.jpg", things=[("lake", LAKE)]))
        path = tmp_path / "xml"
    else:
        lines = [json.loads(json.dumps(line)) for line in odvg() * 2]
        for n, line in enumerate(lines):
            del line["detection"]["instances"][n // 20]
        path = put(tmp_path / "a.jsonl", L.lines(lines))
    report, records = ingest(tmp_path, form, path)
    assert len(records) == 20 and all(labels_of(r) == BOTH for r in records)
    assert report.tallies["samples"].dropped == {"listed_twice": 20} and "listed twice, such as 0001.jpg" in caplog.text


@pytest.mark.parametrize("form", ["coco", "odvg_detection", "voc"])
def test_a_box_that_is_there_again_is_one(tmp_path, form):
    put_images(tmp_path)
    if form == "coco":
        rows = coco()
        path = put(tmp_path / "a.json", rows | {"annotations": rows["annotations"] * 3})
    elif form == "voc":
        path = put_voc(tmp_path, things=[("sun", SUN), ("lake", LAKE)] * 3)
    else:
        lines = odvg()
        for line in lines:
            line["detection"] = {"instances": line["detection"]["instances"] * 3}
        path = put(tmp_path / "a.jsonl", L.lines(lines))
    report, records = ingest(tmp_path, form, path)
    assert all(len(r.regions) == 2 and labels_of(r) == BOTH for r in records)
    assert report.tallies["regions"].dropped == {"same_box_again": 80}


@pytest.mark.parametrize("name", [" sun ", "\tsun", "sun\u200b", "\ufeffsun", "sun\xa0"])
def test_a_class_has_no_spaces_around_it(tmp_path, name):
    put_images(tmp_path)
    _, records = ingest(tmp_path, "coco", put(tmp_path / "a.json", coco(classes=(name, "lake"))))
    assert all(labels_of(r) == BOTH for r in records)
    lines = json.loads(json.dumps(odvg()).replace('"sun"', json.dumps(name)))
    _, records = ingest(tmp_path, "odvg_detection", put(tmp_path / "a.jsonl", L.lines(lines)))
    assert all(labels_of(r) == BOTH for r in records)


def test_classes_that_differ_in_case_alone_are_told(tmp_path, caplog):
    put_images(tmp_path)
    ingest(tmp_path, "coco", put(tmp_path / "a.json", coco(classes=("Sun", "sun"))))
    assert "differ in case alone" in caplog.text


# ---------------------------------------------------------------- two statements
@pytest.mark.parametrize("names", [{"0": "lake", "1": "sun"}, {"1": "sun", "2": "lake", "0": "lake"}])
def test_a_label_map_that_contradicts_the_categories_is_refused(tmp_path, names):
    put_images(tmp_path)
    roles = {"classes": put(tmp_path / "c.json", names)}
    words = r"label_contradicts.*label 0 is 'lake' in the label map, and `category` says 'sun'"
    with pytest.raises(RunError, match=words):
        ingest(tmp_path, "odvg_detection", put(tmp_path / "a.jsonl", L.lines(odvg())), roles)


def test_a_label_map_may_rename_and_it_is_told(tmp_path, caplog):
    put_images(tmp_path)
    lines = put(tmp_path / "a.jsonl", L.lines(odvg()))
    _, records = ingest(
        tmp_path, "odvg_detection", lines, {"classes": put(tmp_path / "c.json", {"0": "SUN", "1": "pond"})}
    )
    assert set(labels_of(records[0])) == {"SUN", "pond"} and "says 'pond' where `category` says 'lake'" in caplog.text


def test_a_phrase_has_the_span_where_it_stands_once(tmp_path):
    put_images(tmp_path)
    caption = "A yellow box beside a blue ball and a box"
    regions = ({"bbox": SUN, "phrase": "a yellow  box"}, {"bbox": LAKE, "phrase": "blue ball"})
    _, records = ingest(tmp_path, "odvg_grounding", put(tmp_path / "a.jsonl", L.lines(grounding(caption, *regions))))
    assert {r.tokens_positive for record in records for r in record.regions} == {((0, 12),), ((22, 31),)}
    assert {r.phrase for record in records for r in record.regions} == {"A yellow box", "blue ball"}
    several = {"bbox": LAKE, "phrase": "box"}
    lines = grounding(caption, *regions, count=19) + grounding(caption, regions[0], several)[19:]
    report, records = ingest(tmp_path, "odvg_grounding", put(tmp_path / "a.jsonl", L.lines(lines)))
    assert report.tallies["regions"].dropped == {"no_span": 1} and records[-1].uncertain == ((38, 41),)
    lines = grounding(caption, several)
    with pytest.raises(RunError, match="the phrase 'box' without `tokens_positive` occurs 2 times"):
        ingest(tmp_path, "odvg_grounding", put(tmp_path / "a.jsonl", L.lines(lines)))


def test_spans_that_mark_other_words_than_the_phrase_are_told(tmp_path, caplog):
    put_images(tmp_path)
    caption = "ein größerer Hund läuft"
    span = [len(part.encode()) for part in ("ein größerer ", "ein größerer Hund")]  # bytes, not characters
    region = {"bbox": SUN, "phrase": "Hund", "tokens_positive": [span]}
    ingest(tmp_path, "odvg_grounding", put(tmp_path / "a.jsonl", L.lines(grounding(caption, region))))
    assert "phrase 'Hund', span 'nd l'" in caplog.text


# ---------------------------------------------------------------- names of files
@pytest.mark.parametrize(
    ("named", "real"),
    [
        ("sub\\{:04d}.jpg", "sub/{:04d}.jpg"), ("my%20photo%20{:04d}.jpg", "my photo {:04d}.jpg"),
        ("sub\\my%20{:04d}.jpg", "sub/my {:04d}.jpg"), (".\\{:04d}.jpg", "{:04d}.jpg"),
    ],
)  # fmt: skip
def test_names_of_windows_and_of_addresses_are_found(tmp_path, named, real):
    put_images(tmp_path, name=real)
    _, records = ingest(tmp_path, "coco", put(tmp_path / "a.json", coco(name=named)))
    assert len(records) == 20
    _, records = ingest(tmp_path, "voc", put_voc(tmp_path, name=named))
    assert len(records) == 20


@pytest.mark.parametrize(
    ("named", "real"),
    [
        ("{:04d}.jpg", "{:04d}.JPG"), ("{:04d}", "{:04d}.jpg"), ("{:04d}.jpg", "{:04d}.png"),
        ("my+photo+{:04d}.jpg", "my photo {:04d}.jpg"), ("a&amp;b {:04d}.jpg", "a&b {:04d}.jpg"),
        ("IMG_{:04d}.jpg", "img_{:04d}.jpg"), ("train/{:04d}.jpg", "{:04d}.jpg"),
        ("{:04d}.jpg", "train/{:04d}.jpg"), ("train/{:04d}.jpg", "val/{:04d}.jpg"),
        ("C:\\data\\{:04d}.jpg", "{:04d}.jpg"), ("e\u0301{:04d}.jpg", "\xe9{:04d}.jpg"),
    ],
)  # fmt: skip
def test_the_file_that_is_there_in_its_place_is_named(tmp_path, named, real):
    put_images(tmp_path, name=real)
    with pytest.raises(RunError) as error:
        ingest(tmp_path, "coco", put(tmp_path / "a.json", coco(name=named)))
    assert f"there is {tmp_path / 'images' / real.format(1)}" in str(error.value)


def test_files_that_an_archive_of_macos_adds_are_no_labels(tmp_path):
    put_images(tmp_path)
    folder = put_voc(tmp_path)
    for name in ("._0001.xml", "__MACOSX/._0001.xml", ".ipynb_checkpoints/0001.xml"):
        put(folder / name, "").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X" + bytes(60))
    assert len(ingest(tmp_path, "voc", folder)[1]) == 20


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("gb2312", "太阳"), ("GBK", "太阳"), ("big5", "太陽"), ("shift_jis", "太陽"), ("euc-kr", "태양"),
     ("windows-1251", "солнце"), ("iso-8859-1", "été"), ("utf-16", "太阳")],
)  # fmt: skip
def test_xml_is_read_in_the_encoding_that_it_declares(tmp_path, encoding, name):
    put_images(tmp_path, 1)
    text = xml("0001.jpg", head=f'<?xml version="1.0" encoding="{encoding}"?>\n', things=[(name, SUN)])
    put(tmp_path / "xml" / "0001.xml", "").write_bytes(text.encode(encoding))
    _, (record,) = ingest(tmp_path, "voc", tmp_path / "xml")
    assert record.regions[0].phrase == name


def test_an_encoding_that_is_not_the_files_is_named(tmp_path):
    put_images(tmp_path)
    text = xml("0001.jpg", things=[("太阳", SUN)])
    put(tmp_path / "xml" / "0001.xml", "").write_bytes(text.encode("gb2312"))
    with pytest.raises(InputError, match="bytes that are not UTF-8, and no other encoding declared"):
        ingest(tmp_path, "voc", tmp_path / "xml")
    head = '<?xml version="1.0" encoding="klingon"?>'
    put(tmp_path / "xml" / "0001.xml", head + text)
    with pytest.raises(InputError, match="encoding klingon"):
        ingest(tmp_path, "voc", tmp_path / "xml")


@pytest.mark.parametrize(
    ("ids", "kept"),
    [("scan (1)\nscan (2)\n", 2), ("scan (1) 1\nscan (2) -1\n", 1), ("scan (1).xml\n", 1), ("scan 1\nscan 2\n", 2)],
)
def test_lists_of_names_may_have_spaces(tmp_path, ids, kept):
    for n, name in enumerate(("scan (1)", "scan (2)", "scan 1", "scan 2")):
        put(tmp_path / "xml" / f"{name}.xml", xml(f"{n + 1:04d}.jpg"))
    put_images(tmp_path, 4)
    _, records = ingest(tmp_path, "voc", tmp_path / "xml", {"ids": put(tmp_path / "ids.txt", ids)})
    assert len(records) == kept


# ---------------------------------------------------------------- rows
def test_a_bad_row_costs_itself_in_every_format(tmp_path):
    put_images(tmp_path, 40)
    rows = coco(40)
    del rows["images"][7]["file_name"]
    report, records = ingest(tmp_path, "coco", put(tmp_path / "a.json", rows))
    assert len(records) == 39 and report.tallies["samples"].dropped == {"bad_labels": 1}
    for bad in (
        '{"filename": "0001',
        "[]",
        '{"filename": 3, "detection": {}}',
        '{"filename": "a", "detection": {"instances": [3]}}',
    ):
        lines = L.lines(odvg(40)).splitlines()
        lines[9] = bad
        report, records = ingest(tmp_path, "odvg_detection", put(tmp_path / "a.jsonl", "\n".join(lines)))
        assert len(records) == 39 and report.tallies["samples"].dropped == {"bad_labels": 1}
        lines = [line.replace("detection", "grounding") for line in lines]
        lines = L.lines(grounding("a sun", {"bbox": SUN, "phrase": "sun"}, count=40)).splitlines()
        lines[9] = bad.replace("detection", "grounding")
        report, records = ingest(tmp_path, "odvg_grounding", put(tmp_path / "b.jsonl", "\n".join(lines)))
        assert len(records) == 39 and report.tallies["samples"].dropped == {"bad_labels": 1}
    folder = put_voc(tmp_path, 40)
    put(folder / "0003.xml", xml("0003.jpg")[:-30])
    report, records = ingest(tmp_path, "voc", folder)
    assert len(records) == 39 and report.tallies["samples"].dropped == {"bad_labels": 1}
    head = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n"
    rows = [f"{n:04d},/m/1,0.1,0.9,0.1,0.9,0" for n in range(1, 41)]
    path = put(tmp_path / "b.csv", head + "\n".join([*rows[:20], "0001,/m/1,0.1", *rows[20:]]))
    report, records = ingest(tmp_path, "openimages", path, {"classes": put(tmp_path / "c.csv", "/m/1,sun\n")})
    assert len(records) == 40 and report.tallies["regions"].dropped == {"bad_row": 1}
    record = {"img_h": HEIGHT, "img_w": WIDTH, "caption": "a sun", "bboxes": [SUN], "scores": [1.0]}
    lines = L.tsv({f"{n:04d}": {**record, "tokens_positive": [[[2, 5]]]} for n in range(1, 41)}).splitlines()
    path = put(tmp_path / "g.tsv", "\n".join([*lines[:20], lines[20][:50], *lines[21:]]))
    report, records = ingest(tmp_path, "glip_captions", path)
    assert len(records) == 39 and report.tallies["samples"].dropped == {"bad_labels": 1}


def test_more_bad_rows_than_may_be_are_refused_with_the_first(tmp_path):
    put_images(tmp_path)
    rows = coco()
    del rows["images"][2]["file_name"], rows["images"][3]["file_name"]
    with pytest.raises(
        RunError, match=r"2 of 20 images lost.*image 3: want `file_name`; found `id`, `width`, `height`"
    ):
        ingest(tmp_path, "coco", put(tmp_path / "a.json", rows))


# ---------------------------------------------------------------- messages
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("category_id", "1", r"`category_id` '1'; known: 1 \(sun\), 2 \(lake\)"),
        ("category_id", 7, r"`category_id` 7; known: 1 \(sun\), 2 \(lake\)"),
        ("bbox", ["20", "20", "61", "51"], r"bad_box: \['20', '20', '61', '51'\]; want four numbers"),
        ("bbox", "[20, 20, 61, 51]", r"bad_box: '\[20, 20, 61, 51\]'; want four numbers"),
        ("bbox", [20, 20, 61], r"bad_box: \[20, 20, 61\]; want four numbers"),
        ("bbox", [20, 20, 0, 51], r"box_without_area: the corners \[20, 20, 20, 71\]"),
    ],
)
def test_the_label_that_cannot_be_used_is_shown(tmp_path, field, value, words):
    put_images(tmp_path)
    with pytest.raises(RunError, match=words):
        ingest(tmp_path, "coco", put(tmp_path / "a.json", coco(**{field: value})))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (gzip.compress(json.dumps(coco()).encode()), "gzip"),
        (b"PAR1" + bytes(200) + b"\xff" * 9, "Parquet.*hf_parquet"),
        (json.dumps(coco(), indent=1).encode("utf-16"), "UTF-16"),
        ('{"images": [{"file_name": "\xe9.jpg"}]}'.encode("latin-1"), "no UTF-8 at"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["coco", "odvg_detection", "mdetr"])
def test_what_a_file_is_is_named(tmp_path, form, data, words):
    (tmp_path / "images").mkdir()
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(InputError, match=words):
        ingest(tmp_path, form, tmp_path / "a.json")


def test_a_label_file_that_is_there_under_another_name_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    put(tmp_path / "Labels.JSON", coco())
    with pytest.raises(InputError, match=r"labels\.json: no such file; there is .*Labels\.JSON"):
        ingest(tmp_path, "coco", tmp_path / "labels.json")


def test_a_list_of_images_in_place_of_names_shows_the_xml(tmp_path):
    put_images(tmp_path)
    ids = put(tmp_path / "ids.txt", "0001.jpg\n0002.jpg\n")
    with pytest.raises(InputError, match=r"0001\.jpg\.xml: no such file; there is .*xml/0001\.xml"):
        ingest(tmp_path, "voc", put_voc(tmp_path), {"ids": ids})
