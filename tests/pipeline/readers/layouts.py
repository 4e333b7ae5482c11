"""Small sets in the layouts that their owners publish, with the troubles that such files have."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from pipeline.readers.base import SetFiles
from pipeline.readers.registry import load_format
from tests.fixtures.crawl import jpeg
from tests.fixtures.labelled_sets import LabelledSet, read_set


def read(name: str, path: Path, companions: dict[str, Path] | None = None, **options: Any) -> LabelledSet:
    """A set with its format's reader."""
    roles = {role: str(p) for role, p in (companions or {}).items()}
    return read_set(load_format(name), SetFiles("set", str(path), roles, options))


def put(path: Path, value: Any) -> Path:
    """Write text, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


COCO = {
    "info": {"year": 2017, "nested": {"a": [1, {"b": []}]}},
    "licenses": [{"id": 1}],
    "annotations": [
        {
            "id": 1, "image_id": 9, "category_id": 18, "bbox": [10.5, 20, 30, 40.25], "area": 1207.5, "iscrowd": 0,
            "segmentation": [[10.5, 20, 40, 20, 40, 60]],
        },
        {"id": 2, "image_id": 9, "category_id": 18, "bbox": [0, 0, 100, 50], "iscrowd": 1,
         "segmentation": {"counts": [1, 2], "size": [64, 80]}},
        {"id": 3, "image_id": 7, "category_id": 1, "bbox": [200, 0, 5, 5], "iscrowd": 0},
        {"id": 4, "image_id": 7, "category_id": 1, "bbox": [3, 3, 0, 5], "iscrowd": 0},
        {"id": 5, "image_id": 7, "category_id": 1, "bbox": [3, None, 1, 5], "iscrowd": 0},
        {"id": 6, "image_id": 7, "category_id": 99, "bbox": [3, 3, 1, 5], "iscrowd": 0},
        {"id": 7, "image_id": 12345, "category_id": 1, "bbox": [3, 3, 1, 5], "iscrowd": 0},
        {"id": 8, "image_id": 7, "category_id": 1, "bbox": [-5, -5, 10, 10], "iscrowd": 0},
    ],
    "images": [
        {"id": 9, "file_name": "000000000009.jpg", "height": 64, "width": 80, "license": 1},
        {"id": 7, "file_name": "träume/7.jpg", "height": 64, "width": 80},
        {"id": 8, "file_name": "8.jpg", "height": 64, "width": 80},
    ],
    "categories": [
        {"id": 18, "name": "dog", "supercategory": "animal"},
        {"id": 1, "name": "person", "supercategory": "person"},
    ],
}  # fmt: skip

LVIS = {
    "images": [
        {
            "id": 391895, "coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg", "height": 64,
            "width": 80,
            "neg_category_ids": [2, 3], "not_exhaustive_category_ids": [1],
        },
        {"id": 5, "coco_url": "http://images.cocodataset.org/val2017/000000000005.jpg", "height": 64, "width": 80,
         "neg_category_ids": [], "not_exhaustive_category_ids": []},
    ],
    "annotations": [{"id": 1, "image_id": 391895, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12}],
    "categories": [
        {"id": 1, "name": "aerosol_can", "frequency": "c", "synset": "aerosol.n.02"},
        {"id": 2, "name": "baseball_bat", "frequency": "f"},
        {"id": 3, "name": "bow_(weapon)", "frequency": "r"},
        {"id": 4, "name": "zebra", "frequency": "f"},
    ],
}  # fmt: skip

MIXED_CAPTION = "the café's man 👨‍👩‍👧 left of the man on the left"
MIXED = {
    "info": [],
    "licenses": [],
    "images": [
        {
            "id": 0, "file_name": "2377985.jpg", "height": 64, "width": 80, "caption": MIXED_CAPTION,
            "data_source": "vg",
            "dataset_name": "mixed", "tokens_negative": [[0, len(MIXED_CAPTION)]],
        },
        {"id": 1, "file_name": "COCO_train2014_000000581857.jpg", "height": 64, "width": 80, "caption": "a dog",
         "data_source": "coco", "dataset_name": "mixed"},
    ],
    "annotations": [
        {"id": 0, "image_id": 0, "bbox": [1, 1, 10, 10], "iscrowd": 0, "category_id": 1, "area": 100,
         "tokens_positive": [[0, 14], [31, 38]]},
        {"id": 1, "image_id": 0, "bbox": [20, 1, 10, 10], "iscrowd": 0, "category_id": 1, "area": 100,
         "tokens_positive": [[0, 999]]},
    ],
    "categories": [{"supercategory": "object", "id": 1, "name": "object"}],
}  # fmt: skip

OI_BOXES = """\
ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside
000026e7ee790996,freeform,/m/07j7r,1,0.071905,0.145346,0.206591,0.391306,0,1,1,0,0
0000c64e1253d68f,xclick,/m/0bt9lr,1,0.000000,0.973850,0.000000,0.043342,0,1,0,0,0
0000c64e1253d68f,xclick,/m/unknown,1,0.1,0.2,0.1,0.2,0,0,0,0,0
0000c64e1253d68f,xclick,/m/0bt9lr,1,0.5,0.5,0.1,0.2,0,0,0,0,0
000026e7ee790996,freeform,/m/07j7r,1,oops,0.572466,0.264153,0.435122,0,1,0,0,0
"""
OI_CLASSES = '/m/0jbk,Animal\n/m/0bt9lr,Dog\n/m/01yrx,Cat\n/m/07j7r,Tree\n/m/0k4j,Car\n/m/01x,"Tap, or faucet"\n'
OI_LABELS = """ImageID,Source,LabelName,Confidence
000026e7ee790996,verification,/m/0jbk,0
000026e7ee790996,crowdsource-verification,/m/0k4j,1
0000c64e1253d68f,verification,/m/0jbk,0
0000c64e1253d68f,verification,/m/01yrx,0
ffffffffffffffff,verification,/m/0k4j,0
"""
OI_HIERARCHY = {
    "LabelName": "/m/0bl9f",
    "Subcategory": [
        {"LabelName": "/m/0jbk", "Subcategory": [{"LabelName": "/m/0bt9lr"}, {"LabelName": "/m/01yrx"}]},
        {"LabelName": "/m/0k4j", "Part": [{"LabelName": "/m/01x"}]},
    ],
}

VG_IMAGES = [
    {"image_id": 1, "width": 80, "height": 64, "coco_id": None, "flickr_id": None,
     "url": "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg"},
    {"image_id": 2, "width": 80, "height": 64, "coco_id": 42, "flickr_id": 3,
     "url": "https://cs.stanford.edu/people/rak248/VG_100K/2.jpg"},
]  # fmt: skip
VG_OBJECTS = [
    {
        "image_id": 1, "image_url": "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg",
        "objects": [
            {"synsets": ["tree.n.01"], "h": 40, "object_id": 1058549, "merged_object_ids": [], "names": ["trees"],
             "w": 70, "y": 0, "x": 0},
            {"synsets": [], "h": 40, "object_id": 5, "names": ["Street  Lamp", "lamp"], "w": 90, "y": 0, "x": 10},
            {"synsets": [], "h": 0, "object_id": 6, "names": ["trees"], "w": 90, "y": 0, "x": 10},
            {"synsets": [], "h": 4, "object_id": 7, "names": [], "w": 9, "y": 0, "x": 10},
        ],
    },
    {"image_id": 2, "objects": [], "image_url": "https://cs.stanford.edu/people/rak248/VG_100K/2.jpg"},
]  # fmt: skip
VG_REGIONS = [
    {
        "id": 1,
        "regions": [
            {"region_id": 1382, "width": 42, "height": 39, "image_id": 1, "phrase": "the clock is green in colour.",
             "y": 7, "x": 21},
            {"region_id": 1383, "width": 40, "height": 20, "image_id": 1, "phrase": "shade is along the street ",
             "y": 30, "x": 5},
            {"region_id": 1384, "width": 4, "height": 2, "image_id": 1, "phrase": " ", "y": 30, "x": 5},
        ],
    }
]  # fmt: skip

VOC = """<annotation>
  <folder>VOC2012</folder>
  <filename>2007_000027.jpg</filename>
  <size><width>80</width><height>64</height><depth>3</depth></size>
  <segmented>0</segmented>
  <object>
    <name>person</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
    <bndbox><xmin>1</xmin><ymin>11</ymin><xmax>80</xmax><ymax>40</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
  </object>
  <object>
    <name>dog</name><difficult>1</difficult>
    <bndbox><xmin>45.5</xmin><ymin>2</ymin><xmax>50</xmax><ymax>9</ymax></bndbox>
  </object>
  <object><name>cat</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>x</xmax><ymax>9</ymax></bndbox></object>
</annotation>
"""
IMAGENET = """<annotation><folder>n01440764</folder><filename>n01440764_10040</filename>
<size><width>80</width><height>64</height><depth>3</depth></size>
<object><name>n01440764</name><difficult>0</difficult>
<bndbox><xmin>0</xmin><ymin>9</ymin><xmax>79</xmax><ymax>63</ymax></bndbox></object></annotation>
"""

FLICKR_SENTENCES = (
    "[/EN#283585/people Two young guys] with [/EN#0/notvisual shaggy hair] look at "
    "[/EN#283587/bodyparts their hands] .\n"
    "[/EN#283585/people/clothing Guys] in [/EN#283590/scene the garden] , and "
    "[/EN#283585/people the same guys] again .\n"
)
FLICKR_XML = """<annotation><filename>1000092795.jpg</filename>
<size><width>80</width><height>64</height><depth>3</depth></size>
<object><name>283585</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>60</ymax></bndbox></object>
<object><name>283587</name><name>283588</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
<object><name>283590</name><scene>1</scene><nobndbox>0</nobndbox></object>
<object><name>283591</name><scene>0</scene><nobndbox>1</nobndbox></object>
</annotation>
"""

ODVG_DETECTION = [
    {"filename": "a.jpg", "height": 64, "width": 80,
     "detection": {"instances": [{"bbox": [1, 2, 30, 40], "label": 1, "category": "dog"},
                                 {"bbox": [9, 9, 9, 40], "label": 0, "category": "person"},
                                 {"bbox": [9, 9, 19, 40], "label": 7}]}},
    {"filename": "b.jpg", "height": 64, "width": 80, "detection": {"instances": []}},
]  # fmt: skip
ODVG_GROUNDING = [
    {"filename": "a.jpg", "height": 64, "width": 80, "grounding": {
        "caption": "A dog beside a dog",
        "regions": [
            {"bbox": [[1, 2, 30, 40], [40, 2, 60, 30]], "phrase": "a dog", "tokens_positive": [[13, 18]]},
            {"bbox": [1, 2, 30, 40], "phrase": "A dog", "tokens_positive": [[0, 5]]},
            {"bbox": [1, 2, 30, 40], "phrase": "dog"},
        ]}},
    {"filename": "a.jpg", "height": 64, "width": 80, "grounding": {"caption": "the same picture again", "regions": []}},
]  # fmt: skip

GRIT = {
    "key": "000000012", "clip_similarity_vitb32": 0.27, "clip_similarity_vitl14": 0.22, "id": 2017, "height": 64,
    "width": 80,
    "url": "somewhere", "caption": "a wire hanger with a paper cover that reads we ♥ our customers", "sha256": "x",
    "noun_chunks": [[19, 32, 0.019, 0.31, 0.965, 0.998, 0.797], [0, 13, 0.019, 0.03, 0.965, 0.998, 0.81]],
    "ref_exps": [[19, 62, 0.0, 0.31, 1.2, 0.998, 0.797], [0, 99, 0.1, 0.1, 0.2, 0.2, 0.9]],
}  # fmt: skip

GLIP_V1 = {
    "img_h": 64, "img_w": 80, "caption": "a red car", "scores": [0.79, 0.99],
    "bboxes": [[1.0, 2.0, 30.0, 40.0], [5.0, 5.0, 200.0, 20.0]],
    "tokens_positive": [[[0, 1], [2, 5], [6, 7], [7, 9]], [[6, 7], [7, 9]]],
}  # fmt: skip
GLIP_V2 = {
    "img_h": 64, "img_w": 80, "caption": "a red car and a dog", "scores": [[0.8, 0.6], []],
    "bboxes": [[[1.0, 2.0, 30.0, 40.0], [40.0, 2.0, 60.0, 40.0]], []],
    "tokens_positive": [[[2, 5], [6, 9]], [[16, 19]]],
}  # fmt: skip


def lines(rows: list[Any]) -> str:
    """JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def tsv(rows: dict[str, Any]) -> str:
    """A key and JSON a line."""
    return "".join(f"{key}\t{json.dumps(row)}\n" for key, row in rows.items())


def image_tsv(keys: list[str]) -> str:
    """A key and an image a line."""
    return "".join(f"{key}\t{base64.b64encode(jpeg(i)).decode()}\n" for i, key in enumerate(keys))


def coco_of(root: Path, images: dict[str, bytes], size=(64, 80), box=(10, 4, 20, 8), **more: str) -> Path:
    """A COCO set of named images, a box in each, with its manifest."""
    (root / "images").mkdir(parents=True)
    rows = []
    for i, (name, data) in enumerate(images.items(), 1):
        (root / "images" / name).write_bytes(data)
        stated = {} if size is None else {"height": size[0], "width": size[1]}
        rows.append({"id": i, "file_name": name, **stated})
    boxes = [{"id": r["id"], "image_id": r["id"], "category_id": 1, "bbox": list(box)} for r in rows]
    put(root / "a.json", {"images": rows, "annotations": boxes, "categories": [{"id": 1, "name": "x"}]})
    entry = {"kind": "detection", "format": "coco", "annotations": "a.json", "images_folder": "images", **more}
    return put(root / "m.yaml", {"sets": {"s": entry}})
