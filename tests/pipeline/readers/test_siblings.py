"""Further labels as people have them: one file under several names, and the same doubts in other formats."""

from __future__ import annotations

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, RunError
from tests.pipeline.readers.layouts import put
from tests.pipeline.readers.test_doubts import (
    BOTH,
    HEIGHT,
    LAKE,
    SUN,
    WIDTH,
    coco,
    ingest,
    labels_of,
    odvg,
    put_images,
    put_voc,
    xml,
    xywh,
)


@pytest.mark.parametrize("other", ["images/{}", "./x/../{}", "x\\\\..\\\\{}", "%30{}", "{root}/images/{}", "link/{}"])
def test_one_file_under_two_names_is_one_image(tmp_path, caplog, other):
    put_images(tmp_path)
    (tmp_path / "images/x").mkdir()
    os.symlink(tmp_path / "images", tmp_path / "link")
    rows = coco()
    for image in rows["images"][:]:
        plain = image["file_name"][1:] if "%30" in other else image["file_name"]  # %30 is 0
        name = other.replace("\\\\", "\\").format(plain, root=tmp_path)
        rows["images"].append({**image, "id": image["id"] + 100, "file_name": name})
    for annotation in rows["annotations"]:
        annotation["image_id"] += 100 * (annotation["category_id"] == 2)
    _, records = ingest(tmp_path, "coco", put(tmp_path / "a.json", rows), images_folder=["images", "."])
    assert len(records) == 20 and all(labels_of(r) == BOTH for r in records)
    assert "20 images are listed twice" in caplog.text


def test_files_of_the_same_name_in_two_folders_are_two_images(tmp_path):
    put_images(tmp_path, name="a/{:04d}.jpg")
    put_images(tmp_path, name="b/{:04d}.jpg")
    rows = coco(40)
    for n, image in enumerate(rows["images"]):
        image["file_name"] = f"{'ab'[n // 20]}/{n % 20 + 1:04d}.jpg"
    _, records = ingest(tmp_path, "coco", put(tmp_path / "a.json", rows))
    assert len(records) == 40 and all(labels_of(r) == BOTH for r in records)


@pytest.mark.parametrize(
    "fields", [{"difficult": 1}, {"is_crowd": "yes"}, {"isIgnore": True}, {"attributes": {"iscrowd": 1}},
               {"attributes": {"difficult": True}}],
)  # fmt: skip
@pytest.mark.parametrize("form", ["coco", "odvg_detection"])
def test_a_flag_to_ignore_has_several_names(tmp_path, form, fields):
    put_images(tmp_path)
    file = coco(**fields) if form == "coco" else "".join(json.dumps(row) + "\n" for row in odvg(**fields))
    _, records = ingest(tmp_path, form, put(tmp_path / "a.jsonl", file))
    assert all(labels_of(r) == {"sun": (SUN, True), "lake": (LAKE, True)} for r in records)


def test_other_attributes_are_no_flags(tmp_path):
    put_images(tmp_path)
    _, records = ingest(tmp_path, "coco", put(tmp_path / "a.json", coco(attributes={"occluded": True, "track": 7})))
    assert all(labels_of(r) == BOTH for r in records)


def test_a_parent_class_may_be_written_in_another_case(tmp_path):
    put_images(tmp_path)
    rows = coco(classes=("cod", "tuna"))
    rows["categories"] = [{"id": 0, "name": "fish", "supercategory": "none"}] + [
        {**category, "supercategory": "Fish "} for category in rows["categories"]
    ]
    ingest(tmp_path, "coco", put(tmp_path / "a.json", rows))
    assert json.loads((tmp_path / "out/s.dataset.json").read_text())["label_space"] == ["cod", "tuna"]


def test_turned_boxes_of_five_numbers_are_named(tmp_path):
    put_images(tmp_path)
    rows = coco()
    for annotation in rows["annotations"]:
        annotation["bbox"].append(30.0)
    with pytest.raises(RunError, match=r"20, 20, 61, 51, 30.0\]; want four numbers \(of rotated boxes"):
        ingest(tmp_path, "coco", put(tmp_path / "a.json", rows))


@pytest.mark.parametrize("shift, told", [(0, False), (3, True)])
def test_spans_within_words_are_told(tmp_path, caplog, shift, told):
    put_images(tmp_path)
    rows = coco()
    for image in rows["images"]:
        image["caption"] = "a yellow box beside a blue ball in the sun"
    for annotation, start in zip(rows["annotations"], [0, 20] * 20):
        annotation["tokens_positive"] = [[start + shift, start + 11 + shift + (start == 0)]]
    ingest(tmp_path, "mdetr", put(tmp_path / "a.json", rows))
    assert ("begin or end within a word" in caplog.text) == told


def test_a_dangling_link_costs_itself_and_is_counted(tmp_path, caplog):
    put_images(tmp_path, 30)
    labels = put_voc(tmp_path, 30)
    (labels / "0008.xml").unlink()
    os.symlink("/nonexistent", labels / "0008.xml")
    report, records = ingest(tmp_path, "voc", labels)
    assert len(records) == 29 and report.tallies["samples"].dropped == {"bad_labels": 1}
    assert "0008.xml: no such file (a link to /nonexistent)" in caplog.text


def test_a_mark_of_utf8_counts_more_than_a_declared_encoding(tmp_path):
    put_images(tmp_path)
    labels = put_voc(tmp_path)
    for path in labels.iterdir():
        text = xml(f"{path.stem}.jpg", head='<?xml version="1.0" encoding="gb2312"?>', things=(("太阳", SUN),))
        path.write_bytes(text.encode("utf-8-sig"))
    _, records = ingest(tmp_path, "voc", labels)
    assert all(labels_of(r) == {"太阳": (SUN, False)} for r in records)


@pytest.mark.parametrize("encoding, words", [("utf-16", "UTF-16"), ("latin-1", "no UTF-8 at b.*\\\\xfc")])
@pytest.mark.parametrize("form", ["coco", "odvg_detection"])
def test_json_in_another_encoding_is_named(tmp_path, form, encoding, words):
    put_images(tmp_path)
    if form == "coco":
        rows = coco(classes=("s\u00fcn", "lake"))
        text = json.dumps({**rows, "pad": "x" * 3000}, ensure_ascii=False)
    else:
        text = "".join(json.dumps({**row, "by": "s\u00fcn"}, ensure_ascii=False) + "\n" for row in odvg(60))
    (tmp_path / "a.json").write_bytes(text.encode(encoding))
    with pytest.raises(InputError, match=words):
        ingest(tmp_path, form, tmp_path / "a.json")


def test_a_label_map_the_other_way_round_is_named(tmp_path):
    put_images(tmp_path)
    labels = put(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in odvg()))
    with pytest.raises(InputError, match="found 'sun': 0"):
        ingest(tmp_path, "odvg_detection", labels, {"classes": put(tmp_path / "c.json", {"sun": 0, "lake": 1})})


def put_table(root, change=lambda n, row: None, count=30):
    images = [(root / f"images/{n:04d}.jpg").read_bytes() for n in range(1, count + 1)]
    rows = []
    for n, image in enumerate(images):
        things = {"bbox": [xywh(SUN), xywh(LAKE)], "category": [0, 1]}
        rows.append({"image": {"bytes": image}, "width": WIDTH, "height": HEIGHT, "objects": things})
        change(n, rows[-1])
    kind = {"category": {"feature": {"names": ["sun", "lake"], "_type": "ClassLabel"}}}
    meta = {"huggingface": json.dumps({"info": {"features": {"objects": kind}}})}
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(meta), root / "a.parquet")
    return root / "a.parquet"


def test_a_row_without_objects_costs_itself(tmp_path, caplog):
    put_images(tmp_path, 30)
    table = put_table(tmp_path, lambda n, row: row.update(objects=None) if n == 6 else None)
    report, records = ingest(tmp_path, "hf_parquet", table)
    assert len(records) == 29 and all(labels_of(r) == BOTH for r in records)
    assert report.tallies["samples"].dropped == {"bad_labels": 1}
    assert f"s: {table}: row 6: want a list of objects; found none" in caplog.text


def test_lists_of_objects_must_be_of_one_length(tmp_path):
    put_images(tmp_path, 30)
    table = put_table(tmp_path, lambda n, row: row["objects"].update(category=[0]))
    with pytest.raises(InputError, match=r"a\.parquet: row 0: .*found 2 of `bbox`, 1 of `category`"):
        ingest(tmp_path, "hf_parquet", table)


def test_text_for_a_number_of_a_class_is_no_class(tmp_path):
    put_images(tmp_path, 30)
    table = put_table(tmp_path, lambda n, row: row["objects"].update(category=["0", "1"]))
    with pytest.raises(RunError, match=r"`category` '0'; known: 0 \(sun\), 1 \(lake\)"):
        ingest(tmp_path, "hf_parquet", table)


def test_marks_of_other_entities_are_refused(tmp_path):
    put_images(tmp_path)
    for n in range(1, 21):
        put(tmp_path / f"a/{n:04d}.xml", xml(f"{n:04d}.jpg", things=(("101", SUN), ("102", LAKE))))
        put(tmp_path / f"s/{n:04d}.txt", "[/EN#1/other A box] beside [/EN#2/other a ball] .\n")
    with pytest.raises(InputError, match="found marks of the entities 1, 2; want those of the boxes: 101, 102"):
        ingest(tmp_path, "flickr30k", tmp_path / "a", {"sentences": tmp_path / "s"}, kind="grounding")


def test_yolos_labels_are_not_told_as_those_of_no_image(tmp_path, caplog, monkeypatch):
    put_images(tmp_path)
    for n in range(1, 21):
        put(tmp_path / f"labels/{n:04d}.txt", "0 .3 .4 .3 .4\n1 .7 .6 .3 .4\n")
    put(tmp_path / "labels/._0001.txt", "\0")
    put(tmp_path / "data.yaml", {"train": "images", "names": ["sun", "lake"]})
    monkeypatch.chdir(tmp_path)
    report, _ = ingest(tmp_path.relative_to(tmp_path), "yolo", "./data.yaml", images_folder=".")
    assert report.tallies["samples"].kept == 20 and "have no image" not in caplog.text
