"""Every reader against every other format's files, as they are published: one line that says what
was wanted and what was found.

A pair that is left out reads the same layout on purpose: it is named in SAME, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.io.tars import write_tar
from pipeline.readers.registry import READ, load_format
from tests.fixtures.crawl import jpeg
from tests.pipeline.readers import layouts as L
from tests.pipeline.readers import sets
from tests.pipeline.readers.layouts import put, read


def folder_of(name: str, text: str) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        put(root / "Annotations" / name, text)
        return root / "Annotations"

    return write


def file_of(name: str, value: object) -> Callable[[Path], Path]:
    return lambda root: put(root / name, value)


def bytes_of(name: str, data: bytes) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
        return root / name

    return write


def grit_tar(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    write_tar(root / "00000.tar", iter([("000000012", {"jpg": jpeg(1), "json": json.dumps(L.GRIT).encode()})]))
    return root / "00000.tar"


def grit_table(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([{**L.GRIT, "status": "success"}]), root / "00000.parquet")
    return root / "00000.parquet"


def crawl_tar(root: Path) -> Path:
    """A crawl's shard, with no boxes in it."""
    sample = {
        "jpg": jpeg(1),
        "txt": b"a dog",
        "json": json.dumps({"caption": "a dog", "url": "x", "key": "000"}).encode(),
    }
    root.mkdir(parents=True, exist_ok=True)
    write_tar(root / "00000.tar", iter([("000", sample)]))
    return root / "00000.tar"


def empty_folder(root: Path) -> Path:
    (root / "Annotations").mkdir(parents=True)
    return root / "Annotations"


FILES: dict[str, Callable[[Path], Path]] = {
    "coco": file_of("instances_val2017.json", L.COCO),
    "lvis": file_of("lvis_v1_val.json", L.LVIS),
    "mdetr": file_of("final_mixed_train.json", L.MIXED),
    "refcoco": file_of(
        "finetune_refcoco_val.json",
        {**L.MIXED, "images": [{**i, "dataset_name": "refcoco"} for i in L.MIXED["images"]]},
    ),
    "openimages": file_of("validation-annotations-bbox.csv", L.OI_BOXES),
    "visual_genome_objects": file_of("objects.json", L.VG_OBJECTS),
    "visual_genome_regions": file_of("region_descriptions.json", L.VG_REGIONS),
    "voc": folder_of("2007_000027.xml", L.VOC),
    "voc of ImageNet": folder_of("n01440764/n01440764_10040.xml", L.IMAGENET),
    "flickr30k": folder_of("1000092795.xml", L.FLICKR_XML),
    "odvg_detection": file_of("o365v1_train_od.json", L.lines(L.ODVG_DETECTION)),
    "odvg_grounding": file_of("final_mixed_train_no_coco_vg.json", L.lines(L.ODVG_GROUNDING)),
    "grit": grit_tar,
    "grit, a table": grit_table,
    "grit, lines": file_of("grit.jsonl", L.lines([L.GRIT])),
    "glip_captions": file_of("train.label.tsv", L.tsv({"0": L.GLIP_V1})),
    "glip_captions, version 2": file_of("train.label.tsv", L.tsv({"0": L.GLIP_V2})),
    "yolo": lambda root: sets.yolo(root, [(1, 2, 30, 40)])[0],
    "hf_parquet": lambda root: sets.hf_parquet(root, [(1, 2, 30, 40)])[0],
    # companions, handed in as if they were the labels
    "image-level labels": file_of("validation-annotations-human-imagelabels-boxable.csv", L.OI_LABELS),
    "class names": file_of("class-descriptions-boxable.csv", L.OI_CLASSES),
    "hierarchy": file_of("bbox_labels_600_hierarchy.json", L.OI_HIERARCHY),
    "image data": file_of("image_data.json", L.VG_IMAGES),
    "sentences": folder_of("1000092795.txt", L.FLICKR_SENTENCES),
    "image rows": file_of("train.tsv", L.image_tsv(["0", "1"])),
    "label map": file_of("label_map.json", {"0": "person", "1": "dog"}),
    # and what people download by mistake
    "crawl shard": crawl_tar,
    "COCO's captions": file_of(
        "captions_val2017.json",
        {"images": L.COCO["images"], "annotations": [{"id": 1, "image_id": 9, "caption": "a dog"}]},
    ),
    "address list": file_of("cc12m.tsv", "http://a/1.jpg\ta dog\nhttp://a/2.jpg\ta cat\n"),
    "empty folder": empty_folder,
    "web page": file_of("objects.json", "<!DOCTYPE html><html><body>404</body></html>"),
    "one XML file": file_of("2007_000027.xml", L.VOC),
    "image": bytes_of("1.jpg", jpeg(1)),
    "packed": bytes_of("a.json.gz", b"\x1f\x8b\x08\x00rest"),
    "binary": bytes_of("a.bin", bytes(range(128, 256)) * 9),
    "cut off": file_of("a.json", json.dumps(L.COCO)[:700]),
    "numbers": file_of("a.json", [1, 2, 3]),
    "LFS pointer": file_of("a.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
}
"""One file or folder of each format, and of what lies beside them."""
ONE_OF_EACH_CLASS = {
    "coco",  # a JSON object
    "visual_genome_objects",  # a JSON list
    "odvg_grounding",  # JSON lines
    "openimages",  # CSV
    "glip_captions",  # TSV
    "voc",  # a folder of XML
    "sentences",  # a folder of texts
    "empty folder",
    "one XML file",
    "crawl shard",  # a tar archive
    "grit, a table",  # Parquet
    "image",  # binary
    "packed",
    "web page",  # text that is nothing of these
    "cut off",
}
"""A file of each class of content: every reader meets these among the fast tests, and all of FILES
among the slow ones."""
OTHERS = [other if other in ONE_OF_EACH_CLASS else pytest.param(other, marks=pytest.mark.slow) for other in FILES]
SAME = {
    ("coco", "lvis"): "LVIS's JSON is COCO's with `neg_category_ids`: one reader knows both",
    ("mdetr", "refcoco"): "one layout, two names of what is in it",
    ("refcoco", "mdetr"): "one layout, two names of what is in it",
    ("voc", "voc of ImageNet"): "Pascal's XML too; where corners begin is the manifest's `first_pixel`",
    ("glip_captions", "glip_captions, version 2"): "versions are told apart by themselves",
    ("grit", "grit, a table"): "GRIT's rows in a table",
    ("grit", "grit, lines"): "GRIT's rows as lines",
}


def companions(name: str, root: Path) -> dict[str, Path]:
    """Right ones, for what the format must have."""
    right = {
        "classes": put(root / "right" / "classes.csv", L.OI_CLASSES),
        "images": put(root / "right" / "image_data.json", L.VG_IMAGES),
        "sentences": put(root / "right" / "Sentences" / "1000092795.txt", L.FLICKR_SENTENCES).parent,
    }
    return {role: right[role] for role in load_format(name).needed}


@pytest.mark.parametrize("name", READ)
def test_its_own_is_read(tmp_path, name):
    assert read(name, FILES[name](tmp_path), companions(name, tmp_path)).images


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", READ)
def test_any_other_is_refused_in_one_line(tmp_path, name, other):
    path = FILES[other](tmp_path)
    if other == name or (name, other) in SAME:
        assert read(name, path, companions(name, tmp_path)).images
        return
    with pytest.raises(InputError) as error:
        read(name, path, companions(name, tmp_path))
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    assert str(path) in text and "want" in text and "found" in text


@pytest.mark.parametrize("name", READ)
def test_an_empty_file_has_no_rows_or_is_refused(tmp_path, name):
    """Lines may be none; a JSON file must have its lists."""
    path = put(tmp_path / "empty.txt", "")
    if name.startswith(("odvg", "glip", "grit")):
        assert not read(name, path).images
        return
    with pytest.raises(InputError, match=r"want .*; found") as error:
        read(name, path, companions(name, tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(
    ("name", "role"),
    [(name, role) for name in READ for role in load_format(name).companions],
)
def test_a_companion_of_another_kind_is_refused_in_one_line(tmp_path, name, role, other):
    """Each role of each format against each of the files."""
    right = RIGHT_COMPANIONS[name, role]
    given = {**companions(name, tmp_path), role: FILES[other](tmp_path / "other")}
    annotations = FILES[name](tmp_path)
    if other in right:
        read(name, annotations, given)
        return
    with pytest.raises(InputError) as error:
        read(name, annotations, given)
    text = str(error.value)
    assert "\n" not in text and len(text) < 500 and str(tmp_path / "other") in text
    assert ("want" in text and "found" in text) or "no such file" in text


RIGHT_COMPANIONS = {
    ("openimages", "classes"): {"class names"},
    ("openimages", "labels"): {"image-level labels"},
    ("openimages", "hierarchy"): {"hierarchy"},
    ("visual_genome_objects", "images"): {"image data"},
    ("visual_genome_regions", "images"): {"image data"},
    ("voc", "ids"): set(),
    ("voc", "classes"): set(),
    ("flickr30k", "sentences"): {"sentences"},
    ("flickr30k", "ids"): set(),
    ("odvg_detection", "classes"): {"label map"},
    ("glip_captions", "images"): {"image rows"},
    ("yolo", "classes"): set(),  # beside a data.yaml
    ("hf_parquet", "classes"): set(),  # beside names in the table
}
