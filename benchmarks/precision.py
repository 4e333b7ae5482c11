"""A teacher's regions in bfloat16 against those in float32.

    python benchmarks/precision.py --model runs/demo/checkpoints/round-0/student/final --json precision.json

Labels ``--images`` crops of the demo's photographs (or ``--shards``, crawl shards) at both precisions.
Keys: ``regions`` (of float32, with scores above ``--above``), ``kept_share`` (of these, found in
bfloat16 with the same phrase and an IoU of 0.95 or more), ``median_iou`` (with the best region of the
same phrase), ``highest_score`` (of float32).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu import KEPT_IOU, best_ious
from inference import machine
from labelling import Bench, write_crawl


def compare(model: str, shards: Sequence[str], above: float, images: int, device: str = "cpu") -> dict[str, Any]:
    """Figures of a model folder on the first ``images`` of crawl shards."""
    results: dict[str, list[Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("float32", "bf16"):
            bench = Bench(Path(folder) / precision, list(shards), model, 4, device=device, precision=precision)
            items = [item for window in bench.items() for item in window][:images]
            batches = bench.ready([items[i : i + 4] for i in range(0, len(items), 4)])
            results[precision] = [regions for batch in batches for regions in bench.annotator.predict(batch)]
    ious = best_ious(results["float32"], results["bf16"], above)
    return {
        "regions": len(ious),
        "kept_share": round(float((ious >= KEPT_IOU).mean()), 4) if len(ious) else None,
        "median_iou": round(float(np.median(ious)), 4) if len(ious) else None,
        "highest_score": round(max((float(r.score.max()) for r in results["float32"] if len(r.score)), default=0.0), 3),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Model folder.")
    parser.add_argument("--shards", nargs="+", help="Crawl shards. Default: crops of the demo's photographs.")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--side", type=int, default=640, help="Size of a crop: the root of its area in pixels.")
    parser.add_argument("--above", type=float, default=0.5, help="Only regions with higher scores are compared.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        shards = args.shards or write_crawl(Path(folder) / "crawl", 1, args.images, args.side, mixed=False)
        figures = compare(args.model, shards, args.above, args.images, args.device)
    figures["machine"] = machine(args.threads)
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
