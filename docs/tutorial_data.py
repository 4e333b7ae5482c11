"""Write the tutorial's data: 48 captioned photographs as a crawl, and two small COCO sets of the same things.

    python docs/tutorial_data.py my-data

Every image is a crop of one of nine photographs that scikit-image and scikit-learn carry under free licences
(data_manifests/demo.yaml names authors and licences). Needs no network.
"""

from __future__ import annotations

import io
import json
import random
import sys
import tarfile
from pathlib import Path

from PIL import Image

from pipeline.demo.manifest import PhotoEntry, load_manifest, package_file

Crop = tuple[bytes, str, tuple[int, int], list[tuple[str, list[float]]]]
"""JPEG, caption, (width, height), and boxes xyxy by name."""

BOXES = {
    "astronaut": {"person": (0.05, 0.03, 0.80, 1.0), "space shuttle": (0.68, 0.0, 0.86, 0.55)},
    "coffee": {"cup": (0.29, 0.05, 0.70, 0.56), "saucer": (0.14, 0.30, 0.79, 0.96)},
    "chelsea": {"cat": (0.10, 0.0, 0.86, 1.0)},
    "rocket": {"rocket": (0.48, 0.30, 0.53, 0.95)},
    "motorcycle_left": {"motorcycle": (0.17, 0.29, 0.91, 0.88)},
    "camera": {"person": (0.0, 0.13, 0.58, 1.0), "tripod": (0.46, 0.40, 0.82, 1.0)},
    "china": {"temple": (0.12, 0.06, 0.55, 0.85)},
    "flower": {"flower": (0.27, 0.20, 0.70, 0.83)},
    "horse": {"horse": (0.045, 0.03, 0.97, 0.95)},
}
"""Photograph -> name of a thing -> its box, drawn by hand: x1, y1, x2, y2 in shares of width and height."""
NAMES = sorted({name for boxes in BOXES.values() for name in boxes})


def main(out: Path, crawled: int = 48, side: int = 256) -> None:
    """Write ``out/crawl``, ``out/coco`` and ``out/sets.yaml``."""
    rng = random.Random(0)
    photos = {Path(p.file).stem: p for p in load_manifest().photos if Path(p.file).stem in BOXES}
    crawl = [crop(photos[name], rng, side) for name in sorted(photos) for _ in range(crawled // len(photos) + 1)]
    rng.shuffle(crawl)
    (out / "crawl").mkdir(parents=True, exist_ok=True)
    for shard in range(3):
        with tarfile.open(out / "crawl" / f"{shard:05}.tar", "w") as tar:
            for number in range(shard, crawled, 3):
                jpeg, caption, _, _ = crawl[number]
                for ending, content in ("jpg", jpeg), ("txt", caption.encode()):
                    member = tarfile.TarInfo(f"{number:09}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    for split, each in ("train", 3), ("val", 2):
        write_coco(out / "coco", split, [crop(photos[name], rng, side) for name in sorted(photos) for _ in range(each)])
    (out / "sets.yaml").write_text(MANIFEST)


def crop(photo: PhotoEntry, rng: random.Random, side: int) -> Crop:
    """Return a random crop of a photograph."""
    with Image.open(package_file(photo.package, photo.file)) as opened:
        image = opened.convert("RGB")
    left, top, right, bottom = (rng.uniform(0, 0.08) for _ in range(4))
    frame = (left * image.width, top * image.height, (1 - right) * image.width, (1 - bottom) * image.height)
    x0, y0, x1, y1 = (round(value) for value in frame)
    boxes = [
        (name, [b[0] * image.width - x0, b[1] * image.height - y0, b[2] * image.width - x0, b[3] * image.height - y0])
        for name, b in BOXES[Path(photo.file).stem].items()
    ]
    image = image.crop((x0, y0, x1, y1))
    scale = side / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    limits = (image.width, image.height) * 2
    clipped = [(name, [min(max(v * scale, 0.0), m) for v, m in zip(box, limits)]) for name, box in boxes]
    return buffer.getvalue(), photo.caption, image.size, clipped


def write_coco(folder: Path, split: str, samples: list[Crop]) -> None:
    """Write ``folder/SPLIT.json`` and the images of ``folder/SPLIT``."""
    images, annotations = list[dict[str, object]](), list[dict[str, object]]()
    (folder / split).mkdir(parents=True, exist_ok=True)
    for number, (jpeg, _, (width, height), boxes) in enumerate(samples, 1):
        (folder / split / f"{number:04}.jpg").write_bytes(jpeg)
        images.append({"id": number, "file_name": f"{number:04}.jpg", "width": width, "height": height})
        for name, (x1, y1, x2, y2) in boxes:
            box = {"image_id": number, "category_id": NAMES.index(name) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            annotations.append({"id": len(annotations) + 1, **box, "area": (x2 - x1) * (y2 - y1), "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{split}.json").write_text(json.dumps(content))


MANIFEST = """\
sets:
  things:
    {kind: detection, format: coco,
     annotations: coco/train.json, images_folder: coco/train}
  things_val:
    {kind: evaluation, format: coco,
     annotations: coco/val.json, images_folder: coco/val}
"""

if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "my-data"))
