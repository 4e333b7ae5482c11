"""merge-regions: regions per second on one core, against reading both stores, and growth of its memory.

    python benchmarks/merge_regions.py --json merge_regions.json

Measures ``merge_regions.run`` as a whole, from Parquet files to committed Parquet files, of two stores
in one process on one core, by CPU time (system time included), alternately with reading all columns of
both stores. A shard is that of filter_boxes.py; the second store has its boxes and scores a little off.

Keys: ``regions_per_second`` (of both stores), ``read_regions_per_second``, ``ratio`` of the two,
``fusion_regions_per_second`` (matching and fusing arrays in memory alone), ``peak_mib_growth`` (peak
memory of many shards over that of one), ``kept_share``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.records import REGIONS
from pipeline.filtering.fusion import match
from pipeline.filtering.store import BOX, STRINGS
from pipeline.io.tables import read_table, write_table
from pipeline.stages import MergeRegions

try:
    from benchmarks.filter_boxes import child, shard_table
except ModuleNotFoundError:  # started as a script
    from filter_boxes import child, shard_table


def make_stores(folder: Path, shards: int, images: int) -> int:
    """Write two stores, ``a`` and ``b``, of hard links to one shard each; returns a shard's number of regions."""
    table, rng = shard_table(images), np.random.default_rng(1)
    for name, noise in (("a", 0.0), ("b", 1.0)):
        for column, size in [*((c, 3.0) for c in BOX), ("score", 0.02)]:
            values = table[column].to_numpy() + noise * rng.normal(0, size, len(table))
            values = np.clip(values, 0.05, 1) if column == "score" else values
            i = table.column_names.index(column)
            table = table.set_column(i, REGIONS.field(column), pa.array(values.astype(np.float32)))
        (folder / name).mkdir(parents=True)
        first = folder / name / "00000.parquet"
        write_table(first, table, REGIONS, {"teacher": f"{name}@0123456789ab"})
        for shard in range(1, shards):
            os.link(first, folder / name / f"{shard:05d}.parquet")
    return len(table)


def cpu_seconds(action: Callable[[], Any]) -> float:
    """CPU seconds of a call, system time included."""
    started = time.process_time()
    action()
    return time.process_time() - started


def rates(store: Path, work: Path, repeats: int) -> dict[str, Any]:
    """Rates of the stage, of reading and of fusing alone, each the best of some alternate runs on one core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    paths = sorted(map(str, store.glob("*/*.parquet")))
    tables = [read_table(paths[i * len(paths) // 2], REGIONS) for i in (0, 1)]
    whole = pa.concat_tables([t.replace_schema_metadata() for t in tables])
    boxes = np.stack([whole[name].to_numpy() for name in BOX], 1)
    usable = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    arrays = boxes[usable], whole["score"].to_numpy()[usable], whole["phrase_row"].to_numpy()[usable]
    seconds: dict[str, list[float]] = {"stage": [], "read": [], "fusion": []}
    for _ in range(repeats):
        job = MergeRegions(regions=(f"{store}/a", f"{store}/b"), out=work)
        seconds["stage"].append(cpu_seconds(job.run) / len(paths))
        seconds["read"].append(
            cpu_seconds(lambda: [read_table(p, REGIONS, optional=None, strings=STRINGS) for p in paths]) / len(paths)
        )
        seconds["fusion"].append(cpu_seconds(lambda: match(*arrays, 0.55)) / 2)
        regions = job.finished().tallies["regions"]
        shutil.rmtree(work)
    stage, read, fusion = (round(len(whole) / 2 / min(seconds[name])) for name in seconds)
    return {
        "regions_per_second": stage,
        "read_regions_per_second": read,
        "ratio": round(stage / read, 3),
        "fusion_regions_per_second": fusion,
        "kept_share": round(regions.kept / regions.seen, 3),
        "regions_a_shard": len(whole) // 2,
    }


def peak(store: Path, work: Path, repeats: int) -> dict[str, Any]:
    """Peak resident memory, in MiB, of merging two stores in this process."""
    MergeRegions(regions=(f"{store}/a", f"{store}/b"), out=work).run()
    return {"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10000, help="images in a shard")
    parser.add_argument("--shards", type=int, default=20, help="shards of the store for peak memory")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", choices=["rates", "peak"], help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps({"rates": rates, "peak": peak}[args.part](args.store, args.work, args.repeats)))
        return
    with tempfile.TemporaryDirectory(prefix="merge-regions-") as name:
        folder = Path(name)
        for store, shards in (("one", 1), ("few", 3), ("many", args.shards)):
            make_stores(folder / store, shards, args.images)
        figures = child(__file__, "rates", folder / "few", folder / "rates", args.repeats)
        one, many = (
            child(__file__, "peak", folder / store, folder / f"peak-{store}", 1)["mib"] for store in ("one", "many")
        )
        figures |= {"peak_mib": round(many), "peak_mib_growth": round(many - one)}
    processor, python = platform.processor() or platform.machine(), platform.python_version()
    figures["machine"] = {"processor": processor, "python": python, "pyarrow": pa.__version__}
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
