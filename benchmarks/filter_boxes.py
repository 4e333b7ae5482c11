"""filter-boxes: regions per second on one core, and peak memory of filtering 80 million regions.

    python benchmarks/filter_boxes.py --json filter_boxes.json

Measures ``filter_boxes.run`` as a whole, from Parquet files on disk to committed Parquet files
(zstd, fsync, sha256 of the outputs, reports), with GLIP's rule, in one process on one core. A shard
has 10,000 images and about 320,000 regions above a floor of 0.05, of which the rule keeps 9 %.
Stores are hard links to one such shard.

Keys: ``regions_per_second_per_core`` (by CPU time, system time included, with cached digests of the
inputs; best of the repeats), ``by_the_clock`` (the same run by wall-clock time), ``first_time``
(digests of the inputs included), ``rules_alone`` (the rule on columns in memory), ``speedup`` over
the previous implementation on the same files; ``peak_gib_80m``, and ``peak_gib_80m_all_rules`` with
NMS, caps and bounds at threshold 0.1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import FilterConfig
from pipeline.data.records import LABELS, REGIONS, STORE_VERSION
from pipeline.execution.reports import ShardReport, Tally
from pipeline.execution.run import run_shards
from pipeline.execution.worker import ShardJob
from pipeline.filtering.rules import apply_rules
from pipeline.filtering.store import BOX, RegionShard
from pipeline.io.paths import stem
from pipeline.io.tables import write_table
from pipeline.stages.jobs import FilterBoxes

GLIP = FilterConfig()
ALL_RULES = FilterConfig(
    threshold=0.1, best_per_phrase=5, min_box_side=8, min_area_share=0.001, max_area_share=0.95, max_aspect=8.0,
    same_text_iou=0.5, cross_phrase_iou=0.6, near_identical_iou=0.95, image_threshold=0.3, max_per_phrase_text=500,
    ignore_above=0.08,
)  # fmt: skip


def shard_table(images: int, seed: int = 0) -> pa.Table:
    """A random shard: about 4 phrases per image (Zipf), 8 regions each with falling scores."""
    rng = np.random.default_rng(seed)
    phrases = rng.poisson(4, images).clip(1)
    image_of_phrase = np.repeat(np.arange(images), phrases)
    regions = rng.integers(1, 16, len(image_of_phrase))
    row = np.repeat(np.arange(len(image_of_phrase)), regions)
    image, n = image_of_phrase[row], len(row)
    rank = np.arange(n) - np.repeat(np.cumsum(regions) - regions, regions)
    score = np.maximum(0.05, rng.beta(2, 2.5, len(regions))[row] * rng.uniform(0.55, 0.95, n) ** rank)
    text = np.minimum(rng.zipf(1.3, len(regions)), 60000)[row]
    sides = rng.choice([256, 341, 384, 480, 512, 640, 768], (images, 2))[image]
    corner = rng.random((n, 2)) * sides[:, ::-1] * 0.7
    far = corner + rng.random((n, 2)) * sides[:, ::-1] * 0.3 + 1
    start = rng.integers(0, 60, len(regions))[row]
    columns: dict[str, Any] = {
        "key": pc.utf8_lpad(pa.array(image).cast(pa.string()), 9, "0"),
        "phrase_row": row,
        "phrase": pc.binary_join_element_wise("noun phrase", pa.array(text).cast(pa.string()), " "),
        "start": start,
        "end": start + 12,
        **dict(zip(BOX, (*corner.T, *far.T), strict=True)),
        "score": score,
        "token_mean": score * rng.random(n),
        "token_min": score * rng.random(n),
        "token_max": score,
        "centerness": rng.random(n),
        "rank": rank,
        "height": sides[:, 0],
        "width": sides[:, 1],
    }
    return pa.table({f.name: pa.array(columns[f.name]).cast(f.type) for f in REGIONS}, schema=REGIONS)


def make_store(folder: Path, shards: int, images: int) -> int:
    """Make ``shards`` hard links to one shard; returns its number of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    table = shard_table(images)
    first = folder / "00000.parquet"
    write_table(first, table, REGIONS, {"teacher": "glip@0123456789ab"})
    for i in range(1, shards):
        os.link(first, folder / f"{i:05d}.parquet")
    return table.num_rows


def previous(job: ShardJob, out: Path) -> ShardReport:
    """The first implementation: reads whole tables, with a string per region for its status."""
    table = pq.read_table(job.path)
    score = table["score"].to_numpy()
    x1, y1, x2, y2 = (table[c].to_numpy() for c in BOX)
    reasons = np.full(len(score), "keep", dtype="<U24")
    for reason, bad in (
        ("below_threshold", ~(score > GLIP.threshold)),
        ("no_area", ~((x2 - x1 > 0) & (y2 - y1 > 0))),
    ):
        reasons[(reasons == "keep") & bad] = reason
    keys = table["key"].combine_chunks().dictionary_encode().indices.to_numpy()
    per_image = np.bincount(keys[reasons == "keep"], minlength=keys.max() + 1)
    reasons[(reasons == "keep") & (per_image[keys] < 1)] = "too_few_regions"
    counts = {str(r): int((reasons == r).sum()) for r in np.unique(reasons)}
    tally, images = Tally(), Tally()
    tally.keep(counts.pop("keep", 0))
    for reason, n in counts.items():
        tally.drop(reason, n)
    images.keep(pc.count_distinct(table["key"].filter(pa.array(reasons == "keep"))).as_py())
    images.drop("no_label", pc.count_distinct(table["key"]).as_py() - images.kept)
    kept = (reasons == "keep") | (reasons == "ignore")
    status = pa.DictionaryArray.from_arrays(pa.array((reasons[kept] == "ignore").astype(np.int8)), ["keep", "ignore"])
    labels = table.filter(pa.array(kept)).append_column(LABELS.field("status"), status)
    output = write_table(out / f"{job.name}.parquet", labels, LABELS, {"version": str(STORE_VERSION)})
    return job.report("previous", {f"{job.name}.parquet": output}, {"regions": tally, "images": images})


@contextmanager
def timed(times: list[tuple[float, float]]) -> Iterator[None]:
    """Append (wall-clock seconds, CPU seconds) of the block."""
    started, cpu = time.perf_counter(), time.process_time()
    yield
    times.append((time.perf_counter() - started, time.process_time() - cpu))


def rates(store: Path, work: Path, repeats: int) -> dict[str, Any]:
    """Rates of this and the previous implementation and of the rules alone, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    paths = sorted(map(str, store.glob("*.parquet")))
    rows = pq.ParquetFile(paths[0]).metadata.num_rows
    seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "previous": []}
    for i in range(repeats):
        with timed(seconds["ours"]):
            report = FilterBoxes(settings=GLIP, regions=paths, out=work / f"ours-{i}").run()
        jobs, out = [ShardJob(p, stem(p), "previous") for p in paths], work / f"previous-{i}"
        with timed(seconds["previous"]):
            before = run_shards("previous", jobs, out, partial(previous, out=out))
        assert before.tallies == report.tallies
    alone = []
    for _ in range(5):
        shard = RegionShard(paths[0])
        for name in ("key", "score", *BOX):
            shard.column(name)
        started = time.perf_counter()
        shard.restrict(shard.numbers("score") >= GLIP.threshold)
        apply_rules(shard, GLIP)
        alone.append(time.perf_counter() - started)
    total = rows * len(paths)
    (clock, cpu), (old_clock, old_cpu) = (np.min(seconds[k][1:], axis=0).tolist() for k in ("ours", "previous"))
    return {
        "regions_per_second_per_core": round(total / cpu),
        "by_the_clock": round(total / clock),
        "first_time": round(total / seconds["ours"][0][1]),
        "rules_alone": round(rows / min(alone)),
        "previous": round(total / old_cpu),
        "speedup": round(old_cpu / cpu, 2),
        "speedup_by_the_clock": round(old_clock / clock, 2),
        "kept_share": round(report.tallies["regions"].kept / total, 4),
        "regions_a_shard": rows,
        "bytes_a_region": round(os.path.getsize(paths[0]) / rows, 1),
    }


def peak(store: Path, work: Path, config: FilterConfig) -> dict[str, Any]:
    """Peak resident memory of filtering a store in this process."""
    started = time.perf_counter()
    report = FilterBoxes(settings=config, regions=sorted(map(str, store.glob("*.parquet"))), out=work).run()
    return {
        "gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "seconds": round(time.perf_counter() - started, 1),
        "regions": report.tallies["regions"].seen,
        "kept": report.tallies["regions"].kept,
    }


def child(script: str, part: str, store: Path, work: Path, repeats: int) -> dict[str, Any]:
    """Run one part of a script in a new process, with its cache of digests in the temporary folder."""
    command = [sys.executable, script, "--part", part, "--store", str(store), "--work", str(work)]
    command += ["--repeats", str(repeats)]
    environment = os.environ | {"XDG_CACHE_HOME": str(work.parent / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10000, help="images in a shard")
    parser.add_argument("--shards", type=int, default=20, help="shards of the timed store")
    parser.add_argument("--regions", type=int, default=80_000_000, help="regions of the store for peak memory")
    parser.add_argument("--repeats", type=int, default=4, help="with the first, which computes the digests")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", choices=["rates", "peak", "peak_all"], help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        config = ALL_RULES if args.part == "peak_all" else GLIP
        parts = {"rates": lambda: rates(args.store, args.work, args.repeats)}
        print(json.dumps(parts.get(args.part, lambda: peak(args.store, args.work, config))()))
        return
    with tempfile.TemporaryDirectory(prefix="filter-boxes-") as name:
        folder = Path(name)
        rows = make_store(folder / "timed", args.shards, args.images)
        make_store(folder / "large", -(-args.regions // rows), args.images)
        figures = child(__file__, "rates", folder / "timed", folder / "rates", max(args.repeats, 2))
        for part, key in (("peak", "peak_gib_80m"), ("peak_all", "peak_gib_80m_all_rules")):
            run = child(__file__, part, folder / "large", folder / part, 1)
            figures |= {key: run.pop("gib"), f"{key}_run": run}
    processor, python = platform.processor() or platform.machine(), platform.python_version()
    figures["machine"] = {"processor": processor, "python": python, "pyarrow": pa.__version__}
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
