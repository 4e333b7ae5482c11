"""Writers of demo scenes in COCO's, MDETR's and img2dataset's formats, with prompts and gold boxes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.demo.captions import Caption, Phrase
from pipeline.demo.scenes import Box, Scene
from pipeline.io.atomic import write_atomic, write_json
from pipeline.io.tables import required_columns, write_table
from pipeline.io.tars import write_tar

GOLD = pa.schema(
    required_columns(pa.string(), "key", "phrase", "noun")
    + required_columns(pa.bool_(), "novel")
    + required_columns(pa.int32(), "start", "end")
    + required_columns(pa.float32(), "x1", "y1", "x2", "y2")
)
"""``crawl_gold/*.parquet``: one row per phrase of a valid image, in the order of shard and caption.

``[start, end)``: span in the caption, without the article; boxes are absolute xyxy in pixels.
"""

CRAWL_META = pa.schema(
    [pa.field(name, pa.string()) for name in ("caption", "url", "key", "status", "error_message")]
    + [pa.field(name, pa.int32()) for name in ("width", "height", "original_width", "original_height")]
    + [pa.field(name, pa.string()) for name in ("exif", "sha256")]
)
"""Columns of img2dataset's ``00000.parquet`` beside ``00000.tar``."""


@dataclass(frozen=True)
class CrawlSample:
    """A crawled image, possibly with a broken ``jpeg``. width, height: in pixels."""

    jpeg: bytes
    caption: str
    url: str
    width: int
    height: int


def coco_detection(scenes: Sequence[Scene], nouns: Sequence[str], description: str) -> dict[str, Any]:
    """COCO instances JSON. Images are numbered from 1; boxes are xywh in pixels."""
    ids = {noun: i for i, noun in enumerate(nouns, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes, start=1):
        images.append(_image(image_id, scene))
        for thing, box in zip(scene.things, scene.boxes, strict=True):
            annotations.append(_annotation(len(annotations) + 1, image_id, ids[thing.noun], box))
    categories = [{"id": i, "name": noun, "supercategory": "glyph"} for noun, i in ids.items()]
    return _instances(description, categories, images, annotations)


def coco_phrases(scenes: Sequence[Scene], absent: Sequence[Sequence[str]], description: str) -> dict[str, Any]:
    """LVIS' JSON whose categories are phrases ("red umbrella"); ``absent``: those of each scene that it lacks."""
    present = [[f"{thing.colour} {thing.noun}" for thing in scene.things] for scene in scenes]
    ids = {phrase: i for i, phrase in enumerate(sorted({p for of in (*present, *absent) for p in of}), start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (scene, phrases, lacking) in enumerate(zip(scenes, present, absent, strict=True), start=1):
        negative = {"neg_category_ids": [ids[p] for p in lacking], "not_exhaustive_category_ids": []}
        images.append(_image(image_id, scene) | negative)
        for phrase, box in zip(phrases, scene.boxes, strict=True):
            annotations.append(_annotation(len(annotations) + 1, image_id, ids[phrase], box))
    categories = [{"id": i, "name": phrase, "supercategory": "glyph"} for phrase, i in ids.items()]
    return _instances(description, categories, images, annotations)


def mdetr_grounding(scenes: Sequence[Scene], captions: Sequence[Caption], description: str) -> dict[str, Any]:
    """MDETR's JSON: COCO's with a caption per image and ``tokens_positive`` ([start, end)s) per box.

    Things that the caption does not mention have no annotation. ``tokens_negative`` is the whole
    caption, as in MDETR's mixed set.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (scene, caption) in enumerate(zip(scenes, captions, strict=True), start=1):
        extra = {
            "caption": caption.text,
            "data_source": "demo",
            "dataset_name": "demo",
            "original_id": image_id,
            "tokens_negative": [[0, len(caption.text)]],
        }
        images.append(_image(image_id, scene) | extra)
        for phrase in caption.phrases:
            row = _annotation(len(annotations) + 1, image_id, 1, scene.boxes[phrase.thing])
            annotations.append(row | {"tokens_positive": [[phrase.start, phrase.end]]})
    return _instances(description, [{"id": 1, "name": "object", "supercategory": "object"}], images, annotations)


def _instances(description: str, categories: list[Any], images: list[Any], annotations: list[Any]) -> dict[str, Any]:
    return {
        "info": {"description": description, "version": "1"},
        "licenses": [],
        "categories": categories,
        "images": images,
        "annotations": annotations,
    }


def prompts(scenes: Sequence[Scene], nouns: Sequence[str]) -> dict[str, Any]:
    """``prompts.json`` of a held-out set: class names of each image, without attributes."""
    return {
        "annotations": "annotations.json",
        "images": "images",
        "classes": list(nouns),
        "chance_recall_at_1": 0.25,
        "prompts": [
            {"image_id": i, "file_name": image_name(i), "names": sorted({t.noun for t in scene.things})}
            for i, scene in enumerate(scenes, start=1)
        ],
    }


def image_name(image_id: int) -> str:
    """File name of a labelled image: ``000001.jpg``."""
    return f"{image_id:06d}.jpg"


def write_labelled(
    folder: Path, annotations: dict[str, Any], scenes: Sequence[Scene], quality: int, **others: dict[str, Any]
) -> None:
    """Write ``images/``, the other JSON files and last ``annotations.json``: the set is complete."""
    (folder / "images").mkdir(parents=True)
    for image_id, scene in enumerate(scenes, start=1):
        (folder / "images" / image_name(image_id)).write_bytes(scene.jpeg(quality))
    for name, value in others.items():
        write_json(folder / f"{name}.json", value)
    write_json(folder / "annotations.json", annotations)


def write_crawl_shard(folder: Path, shard: int, samples: Sequence[CrawlSample]) -> list[str]:
    """Write ``00000.tar`` (jpg, json, txt), ``00000.parquet`` and ``00000_stats.json`` as img2dataset.

    All times are 0, so that the output is deterministic. Returns the samples' keys, nine digits:
    shard and number.
    """
    keys = [f"{shard:05d}{number:04d}" for number in range(len(samples))]
    rows = [_meta(key, sample) for key, sample in zip(keys, samples, strict=True)]
    files = (
        (key, {"jpg": s.jpeg, "txt": s.caption.encode(), "json": json.dumps(row, indent=4).encode()})
        for key, s, row in zip(keys, samples, rows, strict=True)
    )
    write_tar(folder / f"{shard:05d}.tar", files)
    write_table(folder / f"{shard:05d}.parquet", pa.Table.from_pylist(rows, CRAWL_META), CRAWL_META, {})
    stats = {
        "count": len(samples),
        "successes": len(samples),
        "failed_to_download": 0,
        "failed_to_resize": 0,
        "duration": 0.0,
        "start_time": 0.0,
        "end_time": 0.0,
        "status_dict": {"success": len(samples)},
    }
    write_atomic(folder / f"{shard:05d}_stats.json", json.dumps(stats, indent=4))
    return keys


def write_gold(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the gold boxes of one crawled shard, with the columns of :data:`GOLD`."""
    write_table(path, pa.Table.from_pylist(list(rows), GOLD), GOLD, {})


def gold_row(key: str, caption: Caption, phrase: Phrase, scene: Scene, novel: Collection[str]) -> dict[str, Any]:
    """Row of :data:`GOLD`. ``novel``: nouns without human labels."""
    noun = scene.things[phrase.thing].noun
    words = (key, caption.words(phrase), noun, noun in novel, phrase.start, phrase.end)
    return dict(zip(GOLD.names, words + scene.boxes[phrase.thing], strict=True))


def _image(image_id: int, scene: Scene) -> dict[str, Any]:
    return {"id": image_id, "file_name": image_name(image_id), "height": scene.height, "width": scene.width}


def _annotation(annotation_id: int, image_id: int, category_id: int, box: Box) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
    }


def _meta(key: str, sample: CrawlSample) -> dict[str, Any]:
    return {
        "caption": sample.caption,
        "url": sample.url,
        "key": key,
        "status": "success",
        "error_message": None,
        "width": sample.width,
        "height": sample.height,
        "original_width": sample.width,
        "original_height": sample.height,
        "exif": "{}",
        "sha256": hashlib.sha256(sample.jpeg).hexdigest(),
    }
