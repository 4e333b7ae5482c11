"""ingest: its rate relative to copying the same images into tars, and its memory.

    python benchmarks/ingest.py --json ingest.json
    python benchmarks/ingest.py --sizes 1000 10000 --repeats 3 --json ingest.json      # smaller

Keys: ``rate_over_copy`` (images per second of ingest over those of ``tarfile.add`` on the same
files into as many tars, with fsync, without labels; tiny images, median at the middle size),
``rate_over_copy_photos`` (the same with images of a photograph's size), ``rate_over_tar`` (tiny
images, over the ``tar`` command), ``rate_over_copy_cpu`` (by CPU time, which other load and a slow
disk do not change), ``memory_growth`` (peak memory of writing 100 shards over that of one),
``annotations_peak_over_file`` (peak memory added by reading a COCO JSON of 100,000 annotations,
over the file's size).

Everything runs in child processes; their start and imports are not counted.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.stages.jobs import Ingest

SHARD = 1000
BOXES = 3
ANNOTATIONS = 100_000


def write_set(root: Path, images: int, size: tuple[int, int]) -> None:
    """Write a COCO set of distinct JPEGs of size (width, height) with three boxes each."""
    rng = np.random.default_rng(0)
    jpegs = []
    for _ in range(50):
        blocks = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        buffer = io.BytesIO()
        blocks.save(buffer, "JPEG", quality=85)
        jpegs.append(buffer.getvalue())
    (root / "images").mkdir(parents=True)
    rows, boxes = [], []
    for i in range(images):
        (root / "images" / f"{i:07d}.jpg").write_bytes(jpegs[i % 50] + i.to_bytes(4, "big"))
        rows.append({"id": i, "file_name": f"{i:07d}.jpg", "width": size[0], "height": size[1]})
        for _ in range(BOXES):
            x, y = rng.integers(0, size[0] - 9), rng.integers(0, size[1] - 9)
            box = [round(float(v), 2) for v in (x, y, rng.uniform(2, 8), rng.uniform(2, 8))]
            category = int(rng.integers(80))
            row = {"id": len(boxes), "image_id": i, "category_id": category, "bbox": box, "area": 10.0, "iscrowd": 0}
            boxes.append(row)
    names = [{"id": i, "name": f"class {i}"} for i in range(80)]
    (root / "a.json").write_text(json.dumps({"images": rows, "annotations": boxes, "categories": names}))
    entry = "{kind: detection, format: coco, annotations: a.json, images_folder: images}"
    (root / "m.yaml").write_text(f"sets: {{tiny: {entry}}}")


def write_annotations(path: Path, count: int = ANNOTATIONS) -> None:
    """Write a COCO JSON of ``count`` annotations with polygons, without images."""
    rng = np.random.default_rng(1)
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 640, "height": 480} for i in range(count // 7)]
    boxes = [
        {
            "segmentation": [[round(float(v), 2) for v in rng.uniform(0, 640, 24)]], "area": 702.1057, "iscrowd": 0,
            "image_id": int(rng.integers(len(images))), "bbox": [round(float(v), 2) for v in rng.uniform(1, 300, 4)],
            "category_id": 18, "id": i,
        }
        for i in range(count)
    ]  # fmt: skip
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 18, "name": "dog"}]}))


def ingest(root: Path, out: Path) -> None:
    """Run the stage."""
    from pipeline.config import IngestConfig

    report = Ingest(settings=IngestConfig(samples_per_shard=SHARD), manifest=root / "m.yaml", out=out).run()
    assert report.tallies["samples"].dropped == {}, report.tallies


def copy(root: Path, out: Path) -> None:
    """Copy the same files into as many tars."""
    out.mkdir(parents=True)
    files = sorted((root / "images").iterdir())
    for start in range(0, len(files), SHARD):
        with open(out / f"{start // SHARD:06d}.tar", "wb") as raw:
            with tarfile.open(fileobj=raw, mode="w|") as tar:
                for file in files[start : start + SHARD]:
                    tar.add(file, file.name)
            raw.flush()
            os.fsync(raw.fileno())


def tar(root: Path, out: Path) -> None:
    """Copy the same files with the tar command."""
    out.mkdir(parents=True)
    names = sorted(p.name for p in (root / "images").iterdir())
    for start in range(0, len(names), SHARD):
        command = ["tar", "cf", str(out / f"{start}.tar"), "-C", str(root / "images"), "-T", "-"]
        subprocess.run(command, input="\n".join(names[start : start + SHARD]).encode(), check=True)


def index(root: Path, out: Path) -> None:
    """Index the label file only."""
    from pipeline.readers.base import SetFiles, build_index
    from pipeline.readers.registry import load_format

    out.mkdir(parents=True)
    build_index(load_format("coco"), SetFiles("set", str(root / "a.json")), out / "index")


def nothing(root: Path, out: Path) -> None:
    """Index a small label file: the baseline of a process's memory."""
    (root / "small").mkdir(exist_ok=True)
    write_annotations(root / "small" / "a.json", 70)
    index(root / "small", out)


WORK = {"ingest": ingest, "copy": copy, "tar": tar, "index": index, "nothing": nothing}


def peak_kib() -> int:
    """Peak memory of this process; getrusage would include the parent's at the time of the fork."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def child(name: str, root: Path, out: Path) -> None:
    """Do the work of that name; print seconds and peak memory."""
    if name not in ("index", "nothing"):  # warm up with one image, which imports the modules
        warm = out.parent / "warm"
        shutil.rmtree(warm, ignore_errors=True)
        write_set(warm, 1, (96, 72))
        WORK[name](warm, warm / "out")
    started, cpu = time.perf_counter(), time.process_time()
    WORK[name](root, out)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak_kib": peak_kib()}))


def measured(name: str, root: Path) -> dict[str, float]:
    """Seconds and peak memory of a child process; its output is removed."""
    out = root / "out"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, __file__, "--child", name, str(root), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    shutil.rmtree(out, ignore_errors=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def rates_over(root: Path, names: tuple[str, ...], repeats: int) -> dict[str, float]:
    """Median over repeats of ingest's rate over each of ``names``; ``copy_cpu``: by CPU time."""
    ratios: dict[str, list[float]] = {name: [] for name in (*names, "copy_cpu")}
    for i in range(repeats):
        order = [*names, "ingest"]
        runs = {name: measured(name, root) for name in (order if i % 2 == 0 else order[::-1])}
        for name in names:
            ratios[name].append(runs[name]["seconds"] / runs["ingest"]["seconds"])
        ratios["copy_cpu"].append(runs["copy"]["cpu"] / runs["ingest"]["cpu"])
        print("  " + ", ".join(f"{n} {r['seconds']:.2f} s ({r['cpu']:.2f} s CPU)" for n, r in runs.items()))
    return {name: statistics.median(values) for name, values in ratios.items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="images of the sets")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--photos", type=int, default=2000, help="images of a photograph's size")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]), Path(args.child[2]))
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        peaks, seconds = {}, {}
        middle = args.sizes[len(args.sizes) // 2]
        for size in args.sizes:
            write_set(root / str(size), size, (96, 72))
            run = measured("ingest", root / str(size))
            peaks[size], seconds[size] = run["peak_kib"] / 1024, run["seconds"]
            print(f"{size} images: {run['seconds']:.1f} s, peak {peaks[size]:.0f} MiB")
            if size == middle:
                ratios = rates_over(root / str(size), ("copy", "tar"), args.repeats)
                figures |= {
                    "rate_over_copy": ratios["copy"],
                    "rate_over_tar": ratios["tar"],
                    "rate_over_copy_cpu": ratios["copy_cpu"],
                }
            shutil.rmtree(root / str(size))
        figures["memory_growth"] = peaks[max(args.sizes)] / peaks[min(args.sizes)]
        figures["peak_mib"] = {str(k): round(v, 1) for k, v in peaks.items()}
        figures["images_per_second"] = {str(k): round(k / v) for k, v in seconds.items()}
        write_set(root / "photos", args.photos, (640, 480))
        sizes = [p.stat().st_size for p in (root / "photos" / "images").iterdir()]
        figures["photo_bytes"] = round(statistics.mean(sizes))
        figures["rate_over_copy_photos"] = rates_over(root / "photos", ("copy",), args.repeats)["copy"]
        (root / "labels").mkdir()
        write_annotations(root / "labels" / "a.json")
        file = (root / "labels" / "a.json").stat().st_size
        added = measured("index", root / "labels")["peak_kib"] - measured("nothing", root / "labels")["peak_kib"]
        figures |= {"annotations_file_mib": file / 2**20, "annotations_peak_over_file": added * 1024 / file}
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
