"""parse-phrases over shards against ``nlp.pipe`` over the same captions in memory.

    python benchmarks/parse_phrases.py --json parse_phrases.json

Keys: ``rate_over_nlp_pipe`` (one process, model loaded, timed alternately, median of the repeats'
ratios), ``two_processes_speedup`` (``--workers 2`` over 1, between a quarter and three quarters of
the captions, so without starting processes and loading models; ``with_start``: with them). Run it
on an idle machine; ``load_average`` is recorded.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before the libraries read it: one thread per process

import argparse
import io
import itertools
import json
import platform
import shutil
import statistics
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.config import ParsePhrasesConfig
from pipeline.execution.progress import Silent
from pipeline.io import hashing
from pipeline.io.tars import write_tar
from pipeline.phrases.parser import BATCH, model_name, parser
from pipeline.stages.jobs import ParsePhrases

NOUNS = """dog cat man woman car bicycle tree house street table chair plate pizza beach surfboard kitchen bus train
horse umbrella child kite giraffe clock tower laptop phone bench park river boat lamp shelf window door bridge mountain
lake field cake""".split()
ADJECTIVES = """red small old young wooden green large white dirty black tall sunny yellow round striped
shiny""".split()
TEMPLATES = (
    "A {a} {n} standing next to a {a} {n} on the {n} in the afternoon",
    "Two {a} {n}s and a {n} with a {a} {n}",
    "the {n} of a {a} {n} is sitting on top of a {n}, near {n}s and {n}s",
    "{a} {n} for sale - best {a} {n} in town",
    "A photo of a {n} holding a {a} {n} in front of a {a} {n}.",
    "{n} and {n} on a {a} {n} at night",
)


def captions(count: int) -> list[str]:
    """Distinct captions of about seven to twenty words."""
    rng = np.random.default_rng(0)
    texts: dict[str, None] = {}
    while len(texts) < count:
        text = TEMPLATES[rng.integers(len(TEMPLATES))]
        while "{" in text:
            at = text.index("{")
            words = ADJECTIVES if text[at + 1] == "a" else NOUNS
            text = text[:at] + words[rng.integers(len(words))] + text[at + 3 :]
        texts[text] = None
    return list(texts)


def shards(texts: list[str], folder: Path, per_shard: int, side: int) -> list[str]:
    """Write crawl shards of the captions with JPEGs of ``side`` x ``side`` pixels."""
    noise = np.random.default_rng(1).normal(0, 12, (side, side, 3)) + np.linspace(40, 200, side)[None, :, None]
    buffer = io.BytesIO()
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    paths = []
    for i, start in enumerate(range(0, len(texts), per_shard)):
        path = folder / f"{i:05d}.tar"
        rows = enumerate(texts[start : start + per_shard], start)
        write_tar(path, ((f"{k:09d}", {"jpg": buffer.getvalue(), "txt": t.encode(), "json": b"{}"}) for k, t in rows))
        paths.append(str(path))
    print(
        f"{len(texts):,} captions in {len(paths)} shards, JPEGs of {len(buffer.getvalue()) / 1024:.0f} KiB", flush=True
    )
    return paths


def bare(nlp: Any, texts: list[str]) -> float:
    """Seconds of spaCy alone."""
    started = time.perf_counter()
    for _ in nlp.pipe(texts, batch_size=BATCH):
        pass
    return time.perf_counter() - started


class Clock(Silent):
    """Records the number of finished captions over time."""

    def __init__(self) -> None:
        self.times = [(time.perf_counter(), 0)]

    def advance(self, n: int, unit: str = "samples") -> None:
        self.times.append((time.perf_counter(), self.times[-1][1] + n))

    def middle_rate(self) -> float:
        """Captions per second between a quarter and three quarters of them."""
        total = self.times[-1][1]
        first = next(t for t in self.times if t[1] >= total / 4)
        last = next(t for t in self.times if t[1] >= total * 3 / 4)
        return (last[1] - first[1]) / (last[0] - first[0])


def stage(config: ParsePhrasesConfig, paths: list[str], folder: Path, workers: int = 1) -> tuple[float, Clock]:
    """Seconds of the stage into an empty folder, with digests of the shards."""
    shutil.rmtree(folder, ignore_errors=True)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # for cached digests
    hashing._digest_local.cache_clear()
    clock = Clock()
    started = time.perf_counter()
    ParsePhrases(settings=config, shards=paths, out=folder / "out", workers=workers, progress=clock).run()
    return time.perf_counter() - started, clock


def bare_child(name: str, texts: list[str], ready: Any, go: Any, seconds: Any) -> None:
    """A process with spaCy alone: warm up, wait for ``go``, put the seconds of its texts."""
    import spacy

    nlp = spacy.load(name, exclude=["ner"])
    bare(nlp, texts[:500])
    ready.release()
    go.wait()
    seconds.put(bare(nlp, texts))


def bare_processes(name: str, texts: list[str], count: int) -> float:
    """Captions per second of ``count`` processes with spaCy alone: the machine's upper limit."""
    context = get_context("spawn")
    ready, go, seconds = context.Semaphore(0), context.Event(), context.Queue()
    children = [
        context.Process(target=bare_child, args=(name, texts[i::count], ready, go, seconds)) for i in range(count)
    ]
    for child in children:
        child.start()
    for _ in children:
        ready.acquire()
    go.set()
    slowest = max(seconds.get() for _ in children)
    for child in children:
        child.join()
    return len(texts) / slowest


def main() -> None:
    """Measure, print, write."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--captions", type=int, default=8000)
    options.add_argument("--per-shard", type=int, default=2000)
    options.add_argument("--side", type=int, default=256, help="of the JPEGs, in pixels")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--skip-processes", action="store_true", help="only rate_over_nlp_pipe")
    options.add_argument("--method", default="noun_chunks")
    options.add_argument("--json", type=Path)
    args = options.parse_args()
    import spacy

    config = ParsePhrasesConfig(method=args.method)
    load = os.getloadavg()[0]
    texts = captions(args.captions)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        paths = shards(texts, root, args.per_shard, args.side)
        name = model_name(config)
        started = time.perf_counter()
        nlp = spacy.load(name, exclude=["ner"])
        loading = time.perf_counter() - started
        bare(nlp, texts[:500])
        list(parser(config).docs(texts[:500]))
        pairs = []
        for i in range(args.repeats):
            if i % 2:
                ours, theirs = stage(config, paths, root / "run")[0], bare(nlp, texts)
            else:
                theirs, ours = bare(nlp, texts), stage(config, paths, root / "run")[0]
            pairs.append((theirs, ours))
            rates = f"nlp.pipe {len(texts) / theirs:,.0f}/s, stage {len(texts) / ours:,.0f}/s"
            print(f"{rates}: {theirs / ours:.3f}", flush=True)
        figures: dict[str, Any] = {
            "rate_over_nlp_pipe": round(statistics.median(theirs / ours for theirs, ours in pairs), 3),
            "captions_per_second": {
                "nlp_pipe": round(len(texts) / statistics.median(p[0] for p in pairs)),
                "stage": round(len(texts) / statistics.median(p[1] for p in pairs)),
            },
            "model_loading_seconds": round(loading, 2),
        }
        if not args.skip_processes:
            runs: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
            for _, workers in itertools.product(range(max(1, args.repeats // 2)), (1, 2)):
                seconds, clock = stage(config, paths, root / "run", workers)
                rate, with_start = clock.middle_rate(), len(texts) / seconds
                runs[workers].append((rate, with_start))
                print(f"{workers} processes: {rate:,.0f}/s, with start {with_start:,.0f}/s", flush=True)
            medians = {w: [statistics.median(r[i] for r in pairs) for i in (0, 1)] for w, pairs in runs.items()}
            one = bare_processes(name, texts, 1)
            figures |= {
                "two_processes_speedup": round(medians[2][0] / medians[1][0], 2),
                "with_start": round(medians[2][1] / medians[1][1], 2),
                "nlp_pipe_two_processes_speedup": round(bare_processes(name, texts, 2) / one, 2),
            }
    figures |= {
        "method": args.method, "captions": len(texts), "load_average": [round(load, 2), round(os.getloadavg()[0], 2)],
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread per process",
    }  # fmt: skip
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
