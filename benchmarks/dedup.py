"""dedup: the rate of hashing over that of bare decoding, whether the search is linear in shards, and which copies are found.

    python benchmarks/dedup.py --json dedup.json

Images are photographs of scikit-image and scikit-learn, whole and in parts, as JPEGs of quality 90 with a shorter side of 480 pixels or so (COCO's
size), in a shard. Hashing is the stage's own loop over the shard (read, decode, hash, the table); bare decoding reads the same shard and decodes the
same images at the same reduced size. Each is timed in turn, three times; the best counts.

The search goes over tables of made-up hashes, 1x, 2x, 4x and 8x as many, against as many evaluation images each time.

Keys: ``rate_over_decode`` (images a second of the first over the second), ``images_per_second``, ``seconds_linear_r2`` (of a straight line through
seconds and numbers of hashes), ``hashes_per_second`` searched, ``over_brute_force`` (time of comparing all with all, over ours), ``peak_mib`` of the
search at 1x and 8x, ``found``: change -> share of the photographs' and parts' copies that are found at the default settings.
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
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.data.crawl import image_of
from pipeline.data.images import open_image
from pipeline.dedup.image_sets import shard_set
from pipeline.dedup.perceptual_hash import DECODED_SIDE, HASHES, WORDS, hash_image
from pipeline.dedup.search import Block, MatchRules, words_of
from pipeline.io.paths import join
from pipeline.io.tables import read_table, write_table
from pipeline.io.tars import read_tar, write_tar
from pipeline.stages import hash_images
from tests.fixtures.photos import CHANGES, encoded, photos

SIDE = 480


def pictures() -> list[Image.Image]:
    """The photographs, and their ninths."""
    found = []
    for image in photos().values():
        found.append(image)
        w, h = image.width // 3, image.height // 3
        found += [image.crop((x * w, y * h, x * w + w, y * h + h)) for x in range(3) for y in range(3)]
    return found


def hashing(folder: Path, copies: int, repeats: int) -> dict[str, float]:
    """Images a second: the stage, and bare decoding at the same size."""
    files = []
    for image in pictures():
        scale = SIDE / min(image.size)
        files.append(encoded(image.resize((round(image.width * scale), round(image.height * scale)))))
    shard, n = folder / "00000.tar", copies * len(files)
    write_tar(shard, ((f"{i:09d}", {"jpg": files[i % len(files)], "txt": b"x"}) for i in range(n)))
    ours, bare = [], []
    for i in range(repeats):
        started = time.perf_counter()
        hash_images.run(shard_set("photographs", [str(shard)]), folder / f"hashes-{i}")
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        for sample in read_tar(shard):
            found = image_of(sample)
            assert found is not None
            open_image(found[1], at_least=(DECODED_SIDE, DECODED_SIDE))
        bare.append(time.perf_counter() - started)
    return {
        "rate_over_decode": round(min(bare) / min(ours), 3),
        "images_per_second": round(n / min(ours), 1),
        "decoded_per_second": round(n / min(bare), 1),
    }


def write_hashes(folder: Path, shards: int, rows: int) -> None:
    """Tables of made-up hashes; a thousandth of them are near the wanted ones."""
    folder.mkdir(parents=True)
    near = wanted_words(1000)
    for shard in range(shards):
        rng = np.random.default_rng(shard + 1)
        words = rng.integers(0, 2**64, (rows, WORDS), dtype=np.uint64)
        words[: rows // 1000] = near[rng.integers(0, len(near), rows // 1000)] ^ np.uint64(5)
        columns: dict[str, Any] = {"key": [f"{i:09d}" for i in range(rows)], "offset": [0] * rows, "bytes": [0] * rows}
        columns |= {f"hash_{i}": words[:, i] for i in range(WORDS)} | {"image": np.arange(rows, dtype=np.uint64)}
        write_table(folder / f"{shard:05d}.parquet", pa.table({n: columns[n] for n in HASHES.names}), HASHES, {})


def wanted_words(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**64, (n, WORDS), dtype=np.uint64)


def searching(folder: Path, shards: int, wanted: int) -> dict[str, Any]:
    """Seconds and memory of searching the first so many tables, in a process of its own."""
    block = Block(wanted_words(wanted), 0, MatchRules())
    started, pairs = time.perf_counter(), 0
    for shard in range(shards):
        pairs += len(block.search(words_of(read_table(join(folder, f"{shard:05d}.parquet"), HASHES))).row)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "pairs": pairs, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def brute_force(wanted: int, queries: int) -> float:
    """Seconds of comparing so many hashes with all wanted ones, 64 bits alone."""
    words, some = wanted_words(wanted)[:, 0].copy(), wanted_words(queries)[:, 1].copy()
    started = time.perf_counter()
    for one in some:
        np.flatnonzero(np.bitwise_count(words ^ one) <= MatchRules().distance)
    return time.perf_counter() - started


def found_shares() -> dict[str, float]:
    """Of each change the share of copies that the default settings find."""
    rules, originals = MatchRules(), pictures()
    hashes = [hash_image(open_image(encoded(i, 95), at_least=(DECODED_SIDE,) * 2)) for i in originals]
    shares = {}
    for name, change in CHANGES.items():
        hits = []
        for image, known in zip(originals, hashes, strict=True):
            if not known.flat:
                far = known.words ^ hash_image(open_image(change(image), at_least=(DECODED_SIDE,) * 2)).words
                bits = np.bitwise_count(far)
                hits.append(bits[0] <= rules.distance and bits.sum() <= rules.details)
        shares[name] = round(float(np.mean(hits)), 3)
    return shares


def child(folder: Path, shards: int, wanted: int) -> dict[str, Any]:
    """One search in a fresh process."""
    command = [sys.executable, __file__, "--folder", str(folder), "--search", str(shards), "--wanted", str(wanted)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=10, help="of the 140 images, in the timed shard")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shards", type=int, default=8, help="tables at 1x")
    parser.add_argument("--rows", type=int, default=10_000, help="hashes in a table")
    parser.add_argument("--wanted", type=int, default=50_000, help="evaluation images")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--search", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.search:
        print(json.dumps(searching(args.folder, args.search, args.wanted)))
        return
    with tempfile.TemporaryDirectory(prefix="dedup-") as name:
        folder = Path(name)
        figures: dict[str, Any] = dict(hashing(folder, args.copies, args.repeats))
        write_hashes(folder / "made-up", 8 * args.shards, args.rows)
        runs = {
            times: min((child(folder / "made-up", times * args.shards, args.wanted) for _ in range(args.repeats)),
                       key=lambda run: run["seconds"])
            for times in (1, 2, 4, 8)
        }  # fmt: skip
    x, y = np.array(list(runs), float), np.array([run["seconds"] for run in runs.values()])
    n = args.shards * args.rows
    brute = brute_force(args.wanted, 500) / 500
    figures |= {
        "seconds_linear_r2": round(float(np.corrcoef(x, y)[0, 1] ** 2), 5),
        "seconds": {f"{times * n:,}": round(run["seconds"], 2) for times, run in runs.items()},
        "hashes_per_second": round(8 * n / runs[8]["seconds"]),
        "over_brute_force": round(brute * 8 * n / runs[8]["seconds"], 1),
        "peak_mib": {"1x": round(runs[1]["mib"]), "8x": round(runs[8]["mib"])},
        "pairs": {f"{times}x": run["pairs"] for times, run in runs.items()},
        "found": found_shares(),
        "machine": {"processor": platform.processor() or platform.machine(), "python": platform.python_version()},
    }
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
