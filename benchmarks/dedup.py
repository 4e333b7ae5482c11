"""dedup: rate of hashing relative to decoding, scaling of the search, and recall of altered copies.

    python benchmarks/dedup.py --json dedup.json

Images are photographs of scikit-image and scikit-learn and their ninths, as JPEGs of quality 90
with a shorter side of 480 pixels (COCO's size). Hashing is the stage's own loop over a shard (read,
decode, hash, write the table); decoding reads the same shard and decodes the images at the same
reduced size. They are timed alternately; the best of the repeats counts.

The search runs over 1x, 2x, 4x and 8x as many random hashes, against the same number of evaluation
images.

Keys: ``rate_over_decode`` (images per second of hashing over decoding), ``images_per_second``,
``seconds_linear_r2`` (of a linear fit of seconds to numbers of hashes), ``hashes_per_second``
searched, ``over_brute_force`` (time of an all-pairs comparison over ours), ``peak_mib`` of the
search at 1x and 8x, ``found``: change -> share of the copies found with the default settings.
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


def images() -> list[Image.Image]:
    """The photographs and their ninths."""
    crops = []
    for image in photos().values():
        crops.append(image)
        w, h = image.width // 3, image.height // 3
        crops += [image.crop((x * w, y * h, x * w + w, y * h + h)) for x in range(3) for y in range(3)]
    return crops


def hashing(folder: Path, copies: int, repeats: int) -> dict[str, float]:
    """Images per second of the stage, and of decoding at the same size."""
    files = []
    for image in images():
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
            member = image_of(sample)
            assert member is not None
            open_image(member[1], at_least=(DECODED_SIDE, DECODED_SIDE))
        bare.append(time.perf_counter() - started)
    return {
        "rate_over_decode": round(min(bare) / min(ours), 3),
        "images_per_second": round(n / min(ours), 1),
        "decoded_per_second": round(n / min(bare), 1),
    }


def write_hashes(folder: Path, shards: int, rows: int) -> None:
    """Write tables of random hashes; a thousandth of them nearly match evaluation images."""
    folder.mkdir(parents=True)
    near = evaluation_words(1000)
    for shard in range(shards):
        rng = np.random.default_rng(shard + 1)
        words = rng.integers(0, 2**64, (rows, WORDS), dtype=np.uint64)
        words[: rows // 1000] = near[rng.integers(0, len(near), rows // 1000)] ^ np.uint64(5)
        columns: dict[str, Any] = {"key": [f"{i:09d}" for i in range(rows)], "offset": [0] * rows, "bytes": [0] * rows}
        columns |= {f"hash_{i}": words[:, i] for i in range(WORDS)} | {"image": np.arange(rows, dtype=np.uint64)}
        write_table(folder / f"{shard:05d}.parquet", pa.table({n: columns[n] for n in HASHES.names}), HASHES, {})


def evaluation_words(n: int) -> np.ndarray:
    """(n, WORDS) random hashes of evaluation images."""
    return np.random.default_rng(0).integers(0, 2**64, (n, WORDS), dtype=np.uint64)


def searching(folder: Path, shards: int, wanted: int) -> dict[str, Any]:
    """Seconds and memory of searching the first ``shards`` tables in this process."""
    block = Block(evaluation_words(wanted), 0, MatchRules())
    started, pairs = time.perf_counter(), 0
    for shard in range(shards):
        pairs += len(block.search(words_of(read_table(join(folder, f"{shard:05d}.parquet"), HASHES))).row)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "pairs": pairs, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def brute_force(wanted: int, queries: int) -> float:
    """Seconds of comparing the first 64 bits of ``queries`` hashes with ``wanted`` others."""
    words, query_words = evaluation_words(wanted)[:, 0].copy(), evaluation_words(queries)[:, 1].copy()
    started = time.perf_counter()
    for query in query_words:
        np.flatnonzero(np.bitwise_count(words ^ query) <= MatchRules().distance)
    return time.perf_counter() - started


def found_shares() -> dict[str, float]:
    """Change -> share of the changed copies found with the default settings."""
    rules, originals = MatchRules(), images()
    hashes = [hash_image(open_image(encoded(i, 95), at_least=(DECODED_SIDE,) * 2)) for i in originals]
    shares = {}
    for name, change in CHANGES.items():
        found = []
        for image, known in zip(originals, hashes, strict=True):
            if not known.flat:
                changed = hash_image(open_image(change(image), at_least=(DECODED_SIDE,) * 2))
                bits = np.bitwise_count(known.words ^ changed.words)
                found.append(bits[0] <= rules.distance and bits.sum() <= rules.details)
        shares[name] = round(float(np.mean(found)), 3)
    return shares


def child(folder: Path, shards: int, wanted: int) -> dict[str, Any]:
    """:func:`searching` in a new process."""
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
        write_hashes(folder / "random", 8 * args.shards, args.rows)
        runs = {
            times: min((child(folder / "random", times * args.shards, args.wanted) for _ in range(args.repeats)),
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
