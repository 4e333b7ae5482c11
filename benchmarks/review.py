"""review: time until the first image of a store of 50,000 is shown, and time to turn to the next, in chromium.

    python benchmarks/review.py --json review.json

The store has five shards of 10,000 images with captions and some 32 regions an image above a floor of
0.05, in the order ``uncertain``; its JPEGs have 640 x 480 pixels. Shards are hard links to one.

Keys: ``open_s``: from the start of the command until chromium, which runs already, shows the first
image with its boxes, best of the repeats, of which ``open_all_s`` has all, ``command_cpu_s`` is the
command's CPU time until it printed its address and ``page_s`` the time from then on. ``turn_ms``:
from the key to the next image with its boxes, median of the turns, each half a second after the one
before (``turn_worst_ms``); ``turn_at_once_ms``: median without a pause. ``peak_gib``: of the command.
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
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filter_boxes import shard_table
from PIL import Image

from pipeline.data.records import PHRASES, REGIONS
from pipeline.io.tables import write_table
from pipeline.io.tars import write_tar

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
PAUSE = 0.5
TURN = """async () => {
  const shown = () => document.getElementById("name").textContent, before = shown(), began = performance.now();
  dispatchEvent(new KeyboardEvent("keydown", { key: "n" }));
  for (;;) {
    await new Promise(resolve => setTimeout(resolve, 2));
    const image = document.getElementById("image");
    if (shown() !== before && image.complete && image.naturalWidth && document.querySelector("#boxes g")) break;
  }
  const canvas = new OffscreenCanvas(1, 1).getContext("2d");
  canvas.drawImage(document.getElementById("image"), 0, 0);
  canvas.getImageData(0, 0, 1, 1);
  document.getElementById("boxes").getBoundingClientRect();
  return performance.now() - began;
}"""
SHOWN = """() => {
  const image = document.getElementById("image");
  return Boolean(image && image.complete && image.naturalWidth && document.querySelector("#boxes g"));
}"""


def photo(seed: int) -> bytes:
    """A JPEG of 640 x 480 smooth pixels."""
    rng, buffer = np.random.default_rng(seed), io.BytesIO()
    blocks = Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    blocks.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def make_inputs(root: Path, shards: int, images: int) -> int:
    """``regions``, ``phrases`` and ``crawl`` of equal shards; returns the number of regions."""
    for name in ("regions", "phrases", "crawl"):
        (root / name).mkdir(parents=True)
    table = shard_table(images)
    write_table(root / "regions/00000.parquet", table, REGIONS, {"fingerprint": "0123456789ab"})
    first = np.unique(table["phrase_row"].to_numpy(), return_index=True)[1]
    phrases = table.select(["key", "phrase", "start", "end"]).take(pa.array(first))
    caption = pa.array(["some words of a caption " * 4] * len(first))
    columns = {name: phrases[name] for name in phrases.column_names} | {"caption": caption, "root": phrases["phrase"]}
    named = pa.table({name: columns[name] for name in PHRASES.names})
    write_table(root / "phrases/00000.parquet", named, PHRASES, {})
    photos = [photo(n) for n in range(50)]
    keys = [f"{n:09d}" for n in range(images)]
    write_tar(root / "crawl/00000.tar", ((key, {"jpg": photos[n % 50]}) for n, key in enumerate(keys)))
    for n in range(1, shards):
        for kind in ("regions/{}.parquet", "phrases/{}.parquet", "crawl/{}.tar"):
            os.link(root / kind.format("00000"), root / kind.format(f"{n:05d}"))
    return table.num_rows * shards


def wait_until(page: Any, expression: str) -> None:
    """Wait until a function of the page returns true."""
    while not page.evaluate(expression):
        time.sleep(0.005)


def cpu_and_peak(pid: int) -> tuple[float, float]:
    """(CPU seconds, peak resident memory in GiB) of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM")).split()[1]
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK"), int(peak) / 2**20


def open_once(root: Path, browser: Any, turns: int) -> dict[str, Any]:
    """Start the command, open its page, turn; end it."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    command = [sys.executable, "-m", "pipeline", "review", "--port", "0", "--verdicts", str(root / "verdicts")]
    for name, folder in (("regions", "regions"), ("shards", "crawl"), ("phrases", "phrases")):
        command += [f"--{name}", str(root / folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    try:
        assert process.stdout is not None
        regions = process.stdout.readline().strip()
        address = process.stdout.readline().split()[0]
        ready, (cpu, _) = time.perf_counter(), cpu_and_peak(process.pid)
        page.goto(address)
        wait_until(page, SHOWN)
        ended = time.perf_counter()
        paused, at_once = [], []
        for _ in range(turns):
            time.sleep(PAUSE)
            paused.append(page.evaluate(TURN))
        for _ in range(turns):
            at_once.append(page.evaluate(TURN))
        return {
            "open_s": ended - began, "command_s": ready - began, "command_cpu_s": cpu, "page_s": ended - ready,
            "turns": paused, "at_once": at_once, "peak_gib": cpu_and_peak(process.pid)[1], "what": regions,
        }  # fmt: skip
    finally:
        process.kill()
        process.wait()
        page.close()


def main() -> None:
    """Measure, print, write."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=5)
    parser.add_argument("--images", type=int, default=10000, help="images in a shard")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="review-") as name, sync_playwright() as play:
        rows = make_inputs(Path(name) / "store", args.shards, args.images)
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        runs = [open_once(Path(name) / "store", browser, args.turns) for _ in range(args.repeats)]
        browser.close()
    best = min(runs, key=lambda run: run["open_s"])
    turns = [ms for run in runs for ms in run["turns"]]
    figures = {
        "open_s": round(best["open_s"], 2),
        "open_all_s": [round(run["open_s"], 2) for run in runs],
        "command_s": round(best["command_s"], 2),
        "command_cpu_s": round(min(run["command_cpu_s"] for run in runs), 2),
        "page_s": round(best["page_s"], 2),
        "turn_ms": round(statistics.median(turns), 1),
        "turn_worst_ms": round(max(turns), 1),
        "turn_at_once_ms": round(statistics.median(ms for run in runs for ms in run["at_once"]), 1),
        "peak_gib": round(max(run["peak_gib"] for run in runs), 2),
        "images": args.shards * args.images,
        "regions": rows,
        "reviewed": best["what"],
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
