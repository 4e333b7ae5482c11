"""A small set in every reader's format, with the same boxes, words and names in each; and ingest of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import IngestConfig
from pipeline.data.records import GroundingRecord
from pipeline.io.tars import read_tar
from pipeline.readers.registry import READ, load_format
from pipeline.stages.jobs import Ingest
from tests.fixtures.crawl import jpeg
from tests.pipeline.readers import layouts as L
from tests.pipeline.readers.layouts import put

WIDTH, HEIGHT = 80, 64
CAPTION = "👩‍🚀 a café's café 字 — a café"
SPANS = [(4, 10), (22, 28)]
"""Two that mean one thing, behind a sign of several code points beyond 16 bits."""
BOXES = {
    "good": (10, 4, 30, 12), "beyond the edge": (70, 50, 100, 90), "outside": (90, 4, 99, 12),
    "no area": (10, 4, 10, 12),
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
        "bboxes": [[x1, y1, x2 - 1, y2 - 1] for x1, y1, x2, y2 in boxes],
        "scores": [0.9] * len(boxes),
    }
    return put(root / "a.tsv", L.tsv({"1": {**record, "tokens_positive": [SPANS] * len(boxes)}})), {}, {}


def yolo(root: Path, boxes) -> Set:
    put(root / "images" / "1.jpg", "").write_bytes(jpeg(1, (WIDTH, HEIGHT)))
    rows = [(b[0] + b[2], b[1] + b[3], 2 * (b[2] - b[0]), 2 * (b[3] - b[1])) for b in boxes]
    sides = (2 * WIDTH, 2 * HEIGHT, 2 * WIDTH, 2 * HEIGHT)
    lines = (" ".join(str(v / side) for v, side in zip(row, sides, strict=True)) for row in rows)
    put(root / "labels" / "1.txt", "".join(f"0 {line}\n" for line in lines))
    return put(root / "data.yaml", {"train": "images", "names": ["café 👩‍🚀"]}), {}, {}


def hf_parquet(root: Path, boxes, data: bytes | None = None) -> Set:
    things = {"bbox": [xywh(b) for b in boxes], "category": [0] * len(boxes)}
    row = {"image": {"bytes": data or jpeg(1, (WIDTH, HEIGHT)), "path": "1.jpg"}, "width": WIDTH, "height": HEIGHT}
    types = pa.struct([("bbox", pa.list_(pa.list_(pa.float64()))), ("category", pa.list_(pa.int64()))])
    table = pa.table({**{n: [v] for n, v in row.items()}, "objects": pa.array([things], types)})
    label = {"names": ["café 👩‍🚀"], "_type": "ClassLabel"}
    features = {"objects": {"feature": {"category": label}, "_type": "Sequence"}}
    root.mkdir(parents=True, exist_ok=True)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), root / "a.parquet")
    return root / "a.parquet", {}, {}


SETS: dict[str, Callable[[Path, list], Set]] = {
    "coco": coco, "lvis": lvis, "mdetr": mdetr, "refcoco": mdetr, "openimages": openimages,
    "visual_genome_objects": vg_objects,
    "visual_genome_regions": vg_regions, "voc": voc, "flickr30k": flickr30k, "odvg_detection": odvg_detection,
    "odvg_grounding": odvg_grounding, "grit": grit, "glip_captions": glip, "yolo": yolo,
    "hf_parquet": hf_parquet,
}  # fmt: skip
CONFIG = IngestConfig(max_failed_share=1.0)


def run(root: Path, name: str, found: Set, config: IngestConfig = CONFIG, **more: object):
    path, companions, options = found
    (root / "images").mkdir(exist_ok=True)
    entry = {
        "kind": load_format(name).kind, "format": name, "annotations": str(path), "options": options,
        "images_folder": "images",
        "companions": {role: str(p) for role, p in companions.items()}, **more,
    }  # fmt: skip
    return Ingest(settings=config, manifest=put(root / "m.yaml", {"sets": {"s": entry}}), out=root / "out").run()


def put_images(root: Path) -> None:
    for file in ("1.jpg", "00000/000000001.jpg", "VG_100K/1.jpg"):
        put(root / "images" / file, "").write_bytes(jpeg(1, (WIDTH, HEIGHT)))


def only_record(root: Path) -> GroundingRecord:
    (sample,) = read_tar(root / "out" / "s-000000.tar")
    return GroundingRecord.model_validate_json(sample.files["json"])


GROUNDING = [name for name in READ if load_format(name).kind == "grounding"]
DETECTION = [name for name in READ if load_format(name).kind == "detection"]
