"""Training's data loader against a plain webdataset loop with the same shards and workers.

    python benchmarks/loader.py --json loader.json

Shards hold photographs of 480x640 with a caption and boxes.

Keys, medians of alternating rounds: ``rate_over_bare_webdataset`` (our batches at the stored size,
with order, prompts, tokens and uint8 images; over webdataset that reads, decodes and returns images
as arrays), ``rate_over_bare_cpu`` (the same by CPU time of the workers and the consuming process,
which other load does not change), ``multi_scale_over_bare_webdataset`` (with the five released
image sizes, most of which upscale), ``multi_scale_over_same_work`` (over webdataset with the same
processing), ``data_wait_share`` (share of time spent waiting for data with steps of ``--step-ms``),
``index_bytes_per_record`` (memory of the shard index), ``index_us_per_record`` (building it from
headers), ``index_warm_over_cold`` (time of loading the cached index over building it), ``draw_us``
(drawing one of 24 million records for negatives).
"""

from __future__ import annotations

import argparse
import gc
import io
import itertools
import json
import os
import random
import resource
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from inference import machine
from labelling import photographs
from PIL import Image
from transformers import AutoTokenizer

from model import GlipImageProcessor, GlipProcessor
from model.image_processing_glip import resized_size
from pipeline.config import TrainConfig
from pipeline.data.records import GroundingRecord, Region
from pipeline.data.shard_index import index_shard
from pipeline.io.model_folder import text_encoder_folder
from pipeline.io.tars import write_tar
from pipeline.training.dataset import TrainingData
from pipeline.training.sampling import SourceOrder, generator

SIZES = (480, 560, 640, 720, 800)


def write_shards(folder: Path, shards: int, records: int) -> list[str]:
    """Write training shards of crops of photographs, 480x640, with three boxes each."""
    rng, photos, paths = random.Random(0), photographs(), []
    for shard in range(shards):
        rows = []
        for i in range(records):
            image, caption = rng.choice(photos)
            scale = min(image.width / 640, image.height / 480)
            x, y = (rng.randrange(int(side - n * scale) + 1) for side, n in ((image.width, 640), (image.height, 480)))
            buffer = io.BytesIO()
            image.resize((640, 480), box=(x, y, x + 640 * scale, y + 480 * scale)).save(buffer, "JPEG", quality=90)
            key = f"{shard:03d}{i:04d}"
            span = (0, len(caption.split()[0]))
            regions = tuple(
                Region(box=(20 + n, 20, 200 + n, 300), phrase=caption[: span[1]], tokens_positive=(span,))
                for n in range(3)
            )
            record = GroundingRecord(
                key=key, dataset="photos", kind="grounding", image_size=(480, 640), caption=caption, regions=regions
            )
            rows.append((key, {"jpg": buffer.getvalue(), "json": record.to_json()}))
        paths.append(str(folder / f"photos-{shard:06d}.tar"))
        write_tar(Path(paths[-1]), rows)
    return paths


class Bare:
    """Webdataset loop that reads and decodes; with ``processor``, also makes the inputs."""

    def __init__(self, processor: GlipProcessor | None, batch: int) -> None:
        self._processor, self._batch = processor, batch

    def _sample(self, sample: tuple[Image.Image, dict[str, Any]]) -> tuple[Any, str]:
        image, record = sample
        if self._processor is None:
            return np.asarray(image), record["caption"]
        height, width = resized_size(*image.size, random.choice(SIZES), 1333)
        return image.resize((width, height), Image.Resampling.BILINEAR), record["caption"]

    def _collate(self, samples: list[tuple[Any, str]]) -> Any:
        images, captions = [s[0] for s in samples], [s[1] for s in samples]
        if self._processor is None:
            return torch.from_numpy(np.stack(images)), captions
        return dict(self._processor(images=images, text=captions, do_resize=False))

    def batches(self, shards: list[str], workers: int) -> Iterator[Any]:
        data = wds.WebDataset(shards, shardshuffle=False, resampled=True).decode("pil").to_tuple("jpg", "json")
        data = data.map(self._sample).batched(self._batch, collation_fn=self._collate)
        return iter(torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=4))


def ours(
    shards: list[str], processor: GlipProcessor, batch: int, sizes: tuple[int, ...], workers: int
) -> Iterator[Any]:
    """Training's own loader."""
    config = TrainConfig(steps=1_000_000, batch_size=batch, image_sizes=sizes)
    return TrainingData(config, {"photos": shards}, processor).loader(first=0, workers=workers)


def spent() -> float:
    """CPU seconds of this process and its finished children."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def rate(make: Callable[[], Iterable[Any]], batches: int, batch: int) -> tuple[float, float]:
    """Images per second when warm; images per CPU second, with start and end of the workers."""
    before = spent()
    stream = iter(make())
    for _ in range(8):  # prefetched batches
        next(stream)
    began = time.monotonic()
    for _ in itertools.islice(stream, batches):
        pass
    seconds = time.monotonic() - began
    del stream  # stops the workers
    gc.collect()
    return batches * batch / seconds, batches * batch / (spent() - before)


def wait_share(stream: Iterator[Any], batches: int, step: float) -> float:
    """Share of time spent waiting for batches when a step takes ``step`` seconds off this CPU."""
    next(stream)
    waited, began = 0.0, time.monotonic()
    for _ in range(batches):
        time.sleep(step)
        requested = time.monotonic()
        next(stream)
        waited += time.monotonic() - requested
    return waited / (time.monotonic() - began)


def index_figures(folder: Path, records: int = 20_000, rounds: int = 5) -> dict[str, float]:
    """Time and memory of indexing a shard, and time of drawing one of many records."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    shard = folder / "many.tar"
    write_tar(shard, ((f"{i:09d}", {"jpg": b"x" * 400, "json": b"{}"}) for i in range(records)))
    os.utime(shard, (0, 0))  # indexes of files modified in the last two seconds are not cached
    times: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(rounds):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        for seconds in times.values():
            began = time.perf_counter()
            index = index_shard(str(shard))
            seconds.append(time.perf_counter() - began)
    order, rng = SourceOrder([10_000] * 2_400, seed=0, name="pseudo"), generator(0, "draws")
    began = time.perf_counter()
    for _ in range(10_000):
        order.draw(rng)
    drawing = time.perf_counter() - began
    cold, warm = (statistics.median(seconds) for seconds in times.values())
    return {
        "index_bytes_per_record": round(index.nbytes / records, 1),
        "index_us_per_record": round(cold / records * 1e6, 1),
        "index_warm_over_cold": round(warm / cold, 5),
        "draw_us": round(drawing / 10_000 * 1e6, 1),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2, help="images per process and step; the released recipes: 2, 1")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step-ms", type=float, default=50.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    warnings.simplefilter("ignore")
    tokenizer = AutoTokenizer.from_pretrained(text_encoder_folder("minilm"))
    processor = GlipProcessor(GlipImageProcessor(), tokenizer, max_text_length=256)
    with tempfile.TemporaryDirectory() as folder:
        index = index_figures(Path(folder))
        print(index, flush=True)
        shards = write_shards(Path(folder), 4, 100)
        variants: dict[str, Callable[[], Iterator[Any]]] = {
            "bare": lambda: Bare(None, args.batch).batches(shards, args.workers),
            "ours": lambda: ours(shards, processor, args.batch, (480,), args.workers),
            "bare_same_work": lambda: Bare(processor, args.batch).batches(shards, args.workers),
            "ours_multi_scale": lambda: ours(shards, processor, args.batch, SIZES, args.workers),
        }
        rates: dict[str, list[float]] = {name: [] for name in variants}
        by_cpu: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(args.rounds):
            for name, make in variants.items():
                for values, value in zip((rates, by_cpu), rate(make, args.batches, args.batch), strict=True):
                    values[name].append(value)
            print({name: round(r[-1], 1) for name, r in rates.items()}, flush=True)
        waits = [
            wait_share(variants["ours_multi_scale"](), args.batches, args.step_ms / 1000) for _ in range(args.rounds)
        ]

    def over(a: str, b: str, of: dict[str, list[float]] = rates) -> float:
        return round(statistics.median(x / y for x, y in zip(of[a], of[b], strict=True)), 3)

    figures = {
        "rate_over_bare_webdataset": over("ours", "bare"),
        "rate_over_bare_cpu": over("ours", "bare", by_cpu),
        "multi_scale_over_bare_webdataset": over("ours_multi_scale", "bare"),
        "multi_scale_over_same_work": over("ours_multi_scale", "bare_same_work"),
        "data_wait_share": round(statistics.median(waits), 3),
        **index,
        "images_per_second": {name: round(statistics.median(r), 1) for name, r in rates.items()},
        "workers": args.workers,
        "machine": machine(1),
    }
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
