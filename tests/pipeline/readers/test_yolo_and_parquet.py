"""YOLO's folders and Hugging Face's tables in the layouts that tools write, and what is wrong with them by name."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import IngestConfig
from pipeline.errors import InputError, RunError
from pipeline.io.tars import read_tar
from pipeline.stages.jobs import Ingest
from tests.fixtures.crawl import jpeg
from tests.pipeline.readers.layouts import put, read
from tests.pipeline.readers.test_doubts import BOTH, HEIGHT, LAKE, SUN, WIDTH, ingest, labels_of, xywh


def shares(box) -> str:
    x1, y1, x2, y2 = box
    values = ((x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT)
    return " ".join(f"{v:.9f}" for v in values)


TEXT = f"0 {shares(SUN)}\n1 {shares(LAKE)}\n"


def put_yolo(root: Path, images="images", labels="labels", text=TEXT, count=20) -> None:
    for n in range(1, count + 1):
        put(root / images / f"{n:04d}.jpg", "").write_bytes(jpeg(n, (WIDTH, HEIGHT)))
        put(root / labels / f"{n:04d}.txt", text)


def near_both(records, count=20) -> bool:
    return len(records) == count and all(
        {p: ([round(v) for v in box], i) for p, (box, i) in labels_of(r).items()} == BOTH for r in records
    )


@pytest.mark.parametrize(
    ("yaml", "images", "labels"),
    [
        ("train: images/train\nval: images/val\nnames: [sun, lake]\nnc: 2\n", "images/train", "labels/train"),
        ("path: data\ntrain: images\nnames: {0: sun, 1: ' lake '}\n", "data/images", "data/labels"),
        ("path: /nowhere/data\ntrain: images\nnames: {'0': sun, '1': lake}\n", "images", "labels"),
        ("train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['sun', 'lake']\n", "train/images",
         "train/labels"),
        ("train: [a/images, b/images]\nnames: [sun, lake]\n", "a/images", "a/labels"),
    ],
)  # fmt: skip
def test_layouts_of_data_yaml(tmp_path, yaml, images, labels):
    put_yolo(tmp_path, images, labels)
    if "b/images" in yaml:
        put_yolo(tmp_path, "b/images", "b/labels", count=4)
    (tmp_path / "images").mkdir(exist_ok=True)
    for given in (put(tmp_path / "data.yaml", yaml), tmp_path):
        _, records = ingest(tmp_path, "yolo", given)
        assert near_both(records, 24 if "b/images" in yaml else 20)


def test_a_list_of_images(tmp_path):
    put_yolo(tmp_path)
    put(tmp_path / "train.txt", "./images/0001.jpg\nimages/0002.jpg\n")
    assert near_both(
        ingest(tmp_path, "yolo", put(tmp_path / "data.yaml", "train: train.txt\nnames: [sun, lake]\n"))[1], 2
    )


@pytest.mark.parametrize("given", [".", "labels"])
def test_folders_with_a_list_of_names(tmp_path, given):
    put_yolo(tmp_path)
    put(tmp_path / "classes.txt", "sun\nlake\n")
    assert near_both(ingest(tmp_path, "yolo", tmp_path / given)[1])
    named = {"classes": put(tmp_path / "names" / "obj.names", "sun\n lake\n")}
    (tmp_path / "classes.txt").unlink()
    assert near_both(ingest(tmp_path, "yolo", tmp_path / given, named)[1])


def test_points_become_the_box_around_them_and_a_sixth_number_is_a_score(tmp_path):
    x1, y1, x2, y2 = (v / side for v, side in zip(SUN, (WIDTH, HEIGHT, WIDTH, HEIGHT)))
    lines = f"0 {x1} {y1} {x2} {y1} {x2} {y2} {x1} {y2}\n0.0 {shares(SUN)} 0.5\n1 {shares(LAKE)}\n"
    put_yolo(tmp_path, text=lines)
    _, records = ingest(tmp_path, "yolo", put(tmp_path / "data.yaml", "train: images\nnames: [sun, lake]\n"))
    assert near_both(records) and [r.score for r in records[0].regions] == [None, 0.5, None]


def test_images_without_a_file_of_labels_are_told_and_a_set_without_any_is_refused(tmp_path, caplog):
    put_yolo(tmp_path)
    path = put(tmp_path / "data.yaml", "train: images\nnames: [sun, lake]\n")
    (tmp_path / "labels" / "0003.txt").unlink()
    put(tmp_path / "labels" / "9999.txt", TEXT)
    _, records = ingest(tmp_path, "yolo", path)
    assert len(records) == 20 and records[2].regions == ()
    assert (
        "1 of 20 images have no label file" in caplog.text and "0003.txt" in caplog.text and "9999.txt" in caplog.text
    )
    (tmp_path / "labels").rename(tmp_path / "Labels")
    with pytest.raises(InputError, match=r"labels/0001\.txt: no such file; there is .*/Labels; want the labels of"):
        ingest(tmp_path, "yolo", path)


@pytest.mark.parametrize(
    ("yaml", "text", "words"),
    [
        ("names: [sun]", TEXT, r"class 1; known: 0 \(sun\)"),
        ("names: [sun, lake]\nnc: 3", TEXT, "`nc` 3 and 2 `names`"),
        ("names: [sun, lake]", "0 20 20 61 51\n", "'20 20 61 51'; want cx, cy, w, h in shares"),
        ("names: [sun, lake]", "0 0.5 0.5 x 0.1\n", "want cx, cy, w, h in shares"),
        ("names: [sun, lake]", "sun 0.5 0.5 0.1 0.1\n", "class sun"), ("nc: 2", TEXT, "want YOLO's data.yaml"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_shown(tmp_path, yaml, text, words):
    put_yolo(tmp_path, text=text)
    with pytest.raises((InputError, RunError), match=words):
        ingest(tmp_path, "yolo", put(tmp_path / "data.yaml", f"train: images\n{yaml}\n"))


def test_a_split_that_is_not_there_is_named_and_folders_too(tmp_path):
    put_yolo(tmp_path)
    path = put(tmp_path / "data.yaml", "train: images\nval: pictures\nnames: [sun, lake]\n")
    with pytest.raises(InputError, match="no split 'test'; it has train, val"):
        ingest(tmp_path, "yolo", path, options={"split": "test"})
    with pytest.raises(InputError, match="pictures: no such folder of images"):
        ingest(tmp_path, "yolo", path, options={"split": "val"})


# ---------------------------------------------------------------- Parquet
def put_table(path: Path, objects, names=("sun", "lake"), count=20, **columns) -> Path:
    rows = [
        {"image": {"bytes": jpeg(n, (WIDTH, HEIGHT)), "path": f"{n}.jpg"}, "objects": objects, **columns}
        for n in range(count)
    ]
    table = pa.Table.from_pylist(rows)
    if names:
        feature = {"category": {"feature": {"names": list(names), "_type": "ClassLabel"}, "_type": "Sequence"}}
        info = {"info": {"features": {"objects": feature}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=7)
    return path


LISTS = {"bbox": [xywh(SUN), xywh(LAKE)], "category": [0, 1]}


@pytest.mark.parametrize(
    ("objects", "names"),
    [
        (LISTS, ("sun", "lake")), (LISTS, (" sun ", "lake")),
        ([{"bbox": xywh(SUN), "category": 0}, {"bbox": xywh(LAKE), "category": 1}], ("sun", "lake")),
        ({"bbox": LISTS["bbox"], "label": ["sun", "lake"]}, None),
        (LISTS | {"iscrowd": ["0", "0"], "area": [61 * 51, 61 * 71]}, ("sun", "lake")),
    ],
)  # fmt: skip
def test_layouts_of_tables(tmp_path, objects, names):
    (tmp_path / "images").mkdir()
    put_table(tmp_path / "data" / "train-00000-of-00002.parquet", objects, names)
    put_table(tmp_path / "data" / "train-00001-of-00002.parquet", objects, names, count=3)
    for given, n in (("data", 23), ("data/train-*.parquet", 23), ("data/train-00001-of-00002.parquet", 3)):
        _, records = ingest(tmp_path, "hf_parquet", tmp_path / given)
        assert len(records) == n and all(labels_of(r) == BOTH for r in records)
    tar = next(iter(sorted((tmp_path / "out").glob("*.tar"))))
    assert [s.files["jpg"] for s in read_tar(tar)] == [jpeg(n, (WIDTH, HEIGHT)) for n in range(3)]


def test_two_workers_read_the_same_images(tmp_path):
    put_table(tmp_path / "a.parquet", LISTS)
    entry = {"kind": "detection", "format": "hf_parquet", "annotations": "a.parquet"}
    manifest = put(tmp_path / "m.yaml", {"sets": {"s": entry}})
    for workers in (1, 2):
        settings = IngestConfig(samples_per_shard=3)
        Ingest(settings=settings, manifest=manifest, out=tmp_path / f"{workers}", workers=workers).run()
    one, two = (sorted((tmp_path / name).glob("*.tar")) for name in ("1", "2"))
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two] and len(one) == 7


def test_corners_are_told_by_their_areas_or_said(tmp_path):
    (tmp_path / "images").mkdir()
    corners = {"bbox": [SUN, LAKE], "category": [0, 1], "area": [61 * 51, 61 * 71]}
    path = put_table(tmp_path / "a.parquet", corners)
    with pytest.raises(
        InputError, match=r"boxes: found xyxy by the stated areas, in 40 of 40 .*options: \{boxes: xyxy\}"
    ):
        ingest(tmp_path, "hf_parquet", path)
    _, records = ingest(tmp_path, "hf_parquet", path, options={"boxes": "xyxy"})
    assert all(labels_of(r) == BOTH for r in records)
    with pytest.raises(InputError, match=r"found xywh by the stated areas"):
        ingest(tmp_path, "hf_parquet", put_table(tmp_path / "b.parquet", LISTS | {"area": corners["area"]}),
               options={"boxes": "xyxy"})  # fmt: skip


def test_numbers_without_names_want_a_list(tmp_path):
    (tmp_path / "images").mkdir()
    path = put_table(tmp_path / "a.parquet", LISTS, None)
    with pytest.raises(InputError, match=r"no names in the table; want `companions: \{classes: FILE\}`"):
        ingest(tmp_path, "hf_parquet", path)
    _, records = ingest(tmp_path, "hf_parquet", path, {"classes": put(tmp_path / "c.txt", "sun\nlake\n")})
    assert all(labels_of(r) == BOTH for r in records)


def test_a_table_of_other_columns_and_a_number_without_name_are_shown(tmp_path):
    (tmp_path / "images").mkdir()
    pq.write_table(pa.table({"image": [b""], "caption": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="found a table with `image`, `caption`"):
        read("hf_parquet", tmp_path / "a.parquet")
    with pytest.raises(RunError, match=r"`category` 1; known: 0 \(sun\)"):
        ingest(tmp_path, "hf_parquet", put_table(tmp_path / "b.parquet", LISTS, ["sun"]))
