"""pseudo-label: the stage against forward passes alone, bucketed batches, class names, and scaling.

    python benchmarks/labelling.py --json labelling.json
    python benchmarks/labelling.py --only memory --json memory.json      # or stage, bucketing, names, prepare

Keys: ``stage_over_bare_loop`` (the stage's images per second over those of a loop of forward passes
on the same decoded batches in memory; the smaller of ``_demo`` and ``_glip_t``, two sizes of
teacher), ``bucketing_speedup`` (our batches over batches in order of arrival, for mixed aspect
ratios and caption lengths), ``names_over_captions`` (images per second of a list of names over those of
captions with the same text and phrases), ``many_names_over_texts`` (seconds of LVIS' 1,203 names, in
several texts a batch of images, over those of the same texts each with an image part of its own),
``backbone_passes_per_image`` (of the stage with these names), ``prepare_ms_per_image`` (see
`prepare_ms`; ``_cpu``: with the pixels' normalisation, which a GPU does itself), ``memory_growth``
(peak memory of labelling 1,000 shards over that of 10), ``linear_fit`` (R² of a linear fit of
seconds to numbers of shards, 10 to 1,000).

The stage reads tar shards of JPEGs and phrases files, decodes, runs the teacher, writes Parquet and
commits. The teacher has ``--threads`` threads, and decoding another one. Images are random crops of
photographs of scikit-image and scikit-learn.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from inference import machine
from PIL import Image
from transformers import AutoTokenizer

from model import GlipConfig, GlipForObjectDetection, GlipImageProcessor, GlipProcessor
from pipeline.annotators.base import Annotator, Batch, TextQuery, each_query, load_annotator
from pipeline.annotators.batches import Item, batches
from pipeline.annotators.padded_shapes import PaddedShapes
from pipeline.config import ModelConfig, ParsePhrasesConfig, PseudoLabelConfig
from pipeline.config.recipes import load_recipe
from pipeline.data.caption_phrases import read_caption_phrases
from pipeline.data.images import open_image
from pipeline.data.name_list import NameList, read_names
from pipeline.data.records import PHRASES
from pipeline.demo.manifest import load_manifest, package_file
from pipeline.execution.inference import run_inference
from pipeline.execution.progress import Silent
from pipeline.execution.scheduler import ShardScheduler
from pipeline.execution.worker import ShardJob
from pipeline.io.model_folder import MINILM_PACKAGE
from pipeline.io.samples import read_samples
from pipeline.io.shard_patterns import expand_shards
from pipeline.io.tables import write_table
from pipeline.io.tars import write_tar
from pipeline.labelling.reader import WINDOW_SAMPLES, read_windows
from pipeline.labelling.region_table import ShardResult
from pipeline.labelling.worker import LabellingShard
from pipeline.stages.jobs import ParsePhrases
from pipeline.training.model_factory import build_model

SHARDS_OF_FIT = (10, 100, 300, 1000)
ASPECTS = (0.5, 0.67, 0.75, 1.0, 1.33, 1.5, 2.0)


def photographs() -> list[tuple[Image.Image, str]]:
    """(image, caption) of every photograph of the demo."""
    photos = []
    for photo in load_manifest().photos:
        with Image.open(package_file(photo.package, photo.file)) as opened:
            photos.append((opened.convert("RGB"), photo.caption))
    return photos


def write_crawl(folder: Path, shards: int, samples: int, side: int, *, mixed: bool, seed: int = 0) -> list[str]:
    """Write crawl shards of crops; ``mixed``: varying aspect ratios, captions of 1-12 sentences."""
    rng = random.Random(seed)
    photos = photographs()
    folder.mkdir(parents=True)
    for shard in range(shards):
        rows = []
        for i in range(samples):
            image, caption = rng.choice(photos)
            aspect = rng.choice(ASPECTS) if mixed else 4 / 3
            width, height = round(side * aspect**0.5), round(side / aspect**0.5)
            scale = rng.uniform(0.6, 1.0) * min(image.width / width, image.height / height)
            w, h = int(width * scale), int(height * scale)
            x, y = rng.randrange(image.width - w + 1), rng.randrange(image.height - h + 1)
            buffer = io.BytesIO()
            image.resize((width, height), box=(x, y, x + w, y + h)).save(buffer, "JPEG", quality=90)
            if mixed:
                caption = ". ".join(rng.choice(photos)[1] for _ in range(rng.randint(1, 12)))
            rows.append((f"{shard:05d}{i:04d}", {"jpg": buffer.getvalue(), "txt": caption.encode()}))
        write_tar(folder / f"{shard:05d}.tar", rows)
    return expand_shards(str(folder))


def demo_teacher(folder: Path) -> str:
    """A model folder of the demo's network with random weights."""
    return saved(folder, *build_model(load_recipe("demo").model, None))


def tiny_teacher(folder: Path) -> str:
    """A model folder of a GLIP network that takes a few milliseconds per image."""
    demo = load_recipe("demo").model
    small = {
        "backbone_config": {"embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 2, 4], "window_size": 4},
        "hidden_size": 16,
        "num_blocks": 1,
        "group_norm_groups": 4,
    }
    settings = {**demo.settings, **small}
    processor = {"size": {"shortest_edge": 64, "longest_edge": 128}}
    model = ModelConfig(text_encoder="minilm", text_layers=1, settings=settings, image_processor=processor)
    return saved(folder, *build_model(model, None))


def glip_teacher(folder: Path, variant: str, shortest: int, longest: int, **settings: Any) -> str:
    """A model folder of a released variant with random weights, for images of the given sides."""
    config = GlipConfig.variant(variant, prior_probability=0.05, **settings)
    tokenizer = AutoTokenizer.from_pretrained(Path(str(resources.files(MINILM_PACKAGE).joinpath("model"))))
    images = GlipImageProcessor(size={"shortest_edge": shortest, "longest_edge": longest})
    processor = GlipProcessor(images, tokenizer, max_text_length=config.max_text_length)
    return saved(folder, GlipForObjectDetection(config), processor)


def saved(folder: Path, network: Any, processor: Any) -> str:
    """Save a model; returns its folder."""
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


class Bench:
    """Shards, their phrases and a teacher, with methods that time the stage and its parts."""

    def __init__(
        self, root: Path, crawl: list[str], teacher: str, batch_size: int, device: str = "cpu", **settings: Any
    ) -> None:
        self.root, self.crawl, self.teacher = root, crawl, teacher
        self.config = PseudoLabelConfig(batch_size=batch_size, score_agg="max", **settings)
        self.phrases = str(root / "phrases")
        ParsePhrases(settings=ParsePhrasesConfig(), shards=crawl, out=self.phrases).run()
        self.annotator: Annotator = load_annotator(teacher, self.config, device)

    def items(self) -> list[list[Item]]:
        """The queries of every window, as the stage reads them."""
        found = []
        for path in self.crawl:
            phrases = read_caption_phrases(f"{self.phrases}/{Path(path).stem}.parquet")
            found += read_windows(path, ShardResult(phrases), self.annotator)
        return found

    def _scheduler(self, out: Path) -> ShardScheduler:
        jobs = [ShardJob(path, Path(path).stem, "benchmark") for path in self.crawl]
        return ShardScheduler("pseudo-label", jobs, out, progress=Silent())

    def ready(self, groups: Sequence[Sequence[Item]]) -> list[Batch]:
        """Decoded and collated batches."""
        ready = []
        for group in groups:
            images = [self.annotator.prepare(open_image(i.data, at_least=i.shape), i.size) for i in group]
            ready.append(self.annotator.collate(images, [i.query for i in group]))
        return ready

    def bare(self, ready: Sequence[Batch]) -> float:
        """Seconds of the forward passes alone."""
        started = time.perf_counter()
        for batch in ready:
            self.annotator.predict(batch)
        return time.perf_counter() - started

    def stage(self, names: NameList | None = None) -> tuple[float, dict[str, float]]:
        """Seconds of the stage with a loaded teacher, in total and by part; ``names``: in place of the phrases."""
        with tempfile.TemporaryDirectory() as out:
            scheduler = self._scheduler(Path(out))
            started = time.perf_counter()
            open_shard = partial(LabellingShard, self.config, names or self.phrases, out, self.annotator)
            run_inference(scheduler, iter(scheduler.take, None), open_shard, decoders=1)
            report = scheduler.close(devices=1, price=None, max_failed=0)
            seconds = time.perf_counter() - started
        assert report.done == len(self.crawl) and report.rates is not None
        return seconds, report.rates.parts


def stage_over_bare_loop(bench: Bench, repeats: int) -> dict[str, Any]:
    """Rate of the stage over that of its forward passes, timed alternately."""
    size = bench.config.batch_size
    ready = bench.ready([group for window in bench.items() for group in batches(window, size)])
    images = sum(len(batch.images) for batch in ready)
    bench.bare(ready[:1])
    ratios, parts = [], {}
    for i in range(repeats):
        runs: list[Callable[[], Any]] = [lambda: bench.bare(ready), bench.stage]
        first, second = (run() for run in (runs if i % 2 == 0 else runs[::-1]))
        bare, (stage, parts) = (first, second) if i % 2 == 0 else (second, first)
        ratios.append(bare / stage)
        print(f"  bare {images / bare:.2f} images/s, stage {images / stage:.2f} images/s, ratio {bare / stage:.3f}")
    shares = {part: round(seconds / stage, 3) for part, seconds in parts.items()}
    return {"ratio": statistics.median(ratios), "images": images, "images_per_second": images / stage, "shares": shares}


def names_over_captions(bench: Bench, names: NameList, repeats: int) -> dict[str, Any]:
    """Rate of the stage with names over that with captions that are the names' prompt, timed alternately."""
    for path in bench.crawl:
        rows = [
            {"key": s.key, "caption": names.prompt, "phrase": text, "root": text, "start": start, "end": end}
            for s in read_samples(path)
            for (text, _), (start, end) in zip(names.phrases, names.spans, strict=True)
        ]
        phrases = pa.Table.from_pylist(rows, schema=PHRASES)
        write_table(f"{bench.phrases}/{Path(path).stem}.parquet", phrases, PHRASES, {})
    items = [item for window in bench.items() for item in window]
    size, images = bench.config.batch_size, len(items)
    texts = {item.query.text for item in items}
    assert texts == {q.text for q in bench.annotator.class_queries(names.names)} and len(texts) == 1
    ratios = []
    for i in range(repeats + 1):
        order: list[NameList | None] = [names, None] if i % 2 == 0 else [None, names]
        seconds = {given is not None: bench.stage(given)[0] for given in order}
        if i:  # the first warms up
            ratios.append(seconds[False] / seconds[True])
            rates = [f"{kind} {images / seconds[named]:.2f}" for named, kind in ((True, "names"), (False, "captions"))]
            print(f"  {', '.join(rates)} images/s in batches of {size}, ratio {ratios[-1]:.3f}")
    return {"names_over_captions": statistics.median(ratios), "names_images": images}


def many_names(bench: Bench, names: NameList, repeats: int) -> dict[str, Any]:
    """Cost of many names over that of their texts one by one, on batches in memory; passes of the stage's backbone."""
    annotator: Any = bench.annotator
    queries = annotator.class_queries([text for text, _ in names.phrases])
    groups = [group for window in bench.items() for group in batches(window, bench.config.batch_size)]
    pictures = [[annotator.prepare(open_image(i.data), i.size) for i in group] for group in groups]

    def collated(query: TextQuery) -> list[Batch]:
        return [annotator.collate(images, [query] * len(images)) for images in pictures]

    def together() -> float:
        started = time.perf_counter()
        for batch in collated(queries[0]):
            for one in each_query(annotator, batch, queries):
                annotator.predict(one)
        return time.perf_counter() - started

    def one_by_one() -> float:
        started = time.perf_counter()
        for query in queries:
            for batch in collated(query):
                annotator.predict(batch)
        return time.perf_counter() - started

    ratios = []
    for i in range(repeats):
        first, second = (run() for run in ((together, one_by_one) if i % 2 == 0 else (one_by_one, together)))
        many, single = (first, second) if i % 2 == 0 else (second, first)
        ratios.append(many / single)
        print(f"  {len(queries)} texts together {many:.1f} s, one by one {single:.1f} s, ratio {ratios[-1]:.3f}")
    seen = 0

    def count(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal seen
        seen += len(inputs[0])

    hook = annotator._model.backbone.register_forward_pre_hook(count)
    bench.stage(names)
    hook.remove()
    images = sum(len(group) for group in groups)
    return {
        "many_names_over_texts": statistics.median(ratios), "many_names": len(names.names),
        "many_names_texts": len(queries), "backbone_passes_per_image": seen / images,
    }  # fmt: skip


def bucketing_speedup(bench: Bench, repeats: int) -> float:
    """Speed of our batches over batches in order of arrival, of the same decoded samples."""
    size = bench.config.batch_size
    ours, arrival = [], []
    for window in bench.items():
        ours += list(batches(window, size))
        arrival += [window[start : start + size] for start in range(0, len(window), size)]
    ready = {"ours": bench.ready(ours), "arrival": bench.ready(arrival)}
    bench.bare(ready["ours"][:1])
    ratios = []
    for i in range(repeats):
        order = list(ready) if i % 2 == 0 else list(ready)[::-1]
        seconds = {name: bench.bare(ready[name]) for name in order}
        ratios.append(seconds["arrival"] / seconds["ours"])
        print(f"  arrival order {seconds['arrival']:.1f} s, ours {seconds['ours']:.1f} s, ratio {ratios[-1]:.2f}")
    return statistics.median(ratios)


def prepare_ms(folder: Path, repeats: int) -> dict[str, float]:
    """Milliseconds of a thread that decodes a JPEG of 640x480, resizes it to 800x1066 and collates eight for a GPU."""
    crawl = write_crawl(folder / "crawl", 1, 16, 554, mixed=False)  # 640 x 480
    teacher = glip_teacher(folder / "teacher", "glip-t", 800, 1333, num_blocks=1)
    bench = Bench(folder, crawl, teacher, 8)
    annotator: Any = bench.annotator
    figures = {}
    for name, as_bytes in (("prepare_ms_per_image", True), ("prepare_ms_per_image_cpu", False)):
        annotator.as_bytes = as_bytes  # what the device decides
        groups = [group for window in bench.items() for group in batches(window, bench.config.batch_size)]
        best = float("inf")
        for _ in range(repeats + 1):
            started = time.perf_counter()
            bench.ready(groups)
            best = min(best, time.perf_counter() - started)
        figures[name] = round(1e3 * best / sum(map(len, groups)), 2)
        print(f"  {name}: {figures[name]}")
    return figures


def padding(folder: Path) -> dict[str, Any]:
    """Padded shapes of a mixed crawl's batches as on a GPU, and padded over real pixels and tokens.

    Images are of many aspect ratios, most often those of cameras; texts of 1 to 12 sentences.
    """
    rng = random.Random(0)
    teacher = glip_teacher(folder / "teacher", "glip-t", 800, 1333, num_blocks=1)
    annotator: Any = load_annotator(teacher, PseudoLabelConfig(score_agg="max"))
    limit = annotator._limit
    shapes = PaddedShapes.of(800, 1333, limit)
    captions = [caption for _, caption in photographs()]
    items = []
    for index in range(4096):
        aspect = rng.choice(ASPECTS) if rng.random() < 0.5 else 2 ** rng.uniform(-1.2, 1.2)
        caption = ". ".join(rng.choice(captions) for _ in range(rng.randint(1, 12)))
        size = (round(600 / aspect**0.5), round(600 * aspect**0.5))
        queries, _ = annotator.queries(caption, [(0, 3)])
        items.append(Item(index, str(index), b"", size, annotator.shape(*reversed(size)), queries[0]))
    used, pixels, tokens = set(), [0, 0], [0, 0]
    for start in range(0, len(items), WINDOW_SAMPLES):
        for group in batches(items[start : start + WINDOW_SAMPLES], 16, shapes):
            height, width, length = (
                max(n) for n in zip(*((*i.shape, min(limit, i.query.tokens)) for i in group), strict=True)
            )
            shape = shapes.holding(height, width, length)
            assert shape is not None
            used.add(shape)
            pixels[0] += len(group) * shape[0] * shape[1]
            tokens[0] += len(group) * shape[2]
        pixels[1] += sum(i.shape[0] * i.shape[1] for i in items[start : start + WINDOW_SAMPLES])
        tokens[1] += sum(min(limit, i.query.tokens) for i in items[start : start + WINDOW_SAMPLES])
    figures = {
        "padded_shapes": len(used), "padded_shapes_at_most": len(shapes.shapes),
        "padding_waste": round(pixels[0] / pixels[1], 4), "text_padding_waste": round(tokens[0] / tokens[1], 4),
    }  # fmt: skip
    print(f"  {figures}")
    return figures


def memory(root: Path) -> dict[str, Any]:
    """Peak memory and seconds of the command by number of shards, in separate processes."""
    crawl = write_crawl(root / "crawl", max(SHARDS_OF_FIT), 4, 96, mixed=False)
    teacher, phrases = tiny_teacher(root / "teacher"), str(root / "phrases")
    ParsePhrases(settings=ParsePhrasesConfig(), shards=crawl, out=phrases).run()
    peaks, seconds = {}, {}
    for count in SHARDS_OF_FIT:
        pattern = f"{root}/crawl/{{00000..{count - 1:05d}}}.tar"
        command = [
            sys.executable, "-m", "pipeline", "pseudo-label", "--shards", pattern, "--phrases", phrases,
            "--teacher", teacher, "--out", str(root / f"regions-{count}"), "--workers", "1",
        ]  # fmt: skip
        started = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        assert status == 0, f"the command exited with {status}"
        seconds[count], peaks[count] = time.perf_counter() - started, usage.ru_maxrss / 1024
        print(f"  {count} shards: {seconds[count]:.1f} s, peak {peaks[count]:.0f} MiB")
    x, y = np.array(list(seconds)), np.array(list(seconds.values()))
    slope, start = np.polyfit(x, y, 1)
    fit = 1 - ((y - (slope * x + start)) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    few, many = min(SHARDS_OF_FIT), max(SHARDS_OF_FIT)
    return {
        "memory_growth": peaks[many] / peaks[few],
        "peak_mib": {str(k): round(v, 1) for k, v in peaks.items()},
        "seconds_of_shards": {str(k): round(v, 2) for k, v in seconds.items()},
        "seconds_per_shard": slope,
        "linear_fit": fit,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["stage", "bucketing", "names", "prepare", "padding", "memory"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--glip-t-side", type=int, default=320, help="shorter side of GLIP-T's images, in pixels")
    parser.add_argument("--glip-t-images", type=int, default=32)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    figures: dict[str, Any] = {"machine": machine(args.threads)}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if args.only in (None, "stage"):
            parts = {
                "demo": (
                    write_crawl(root / "a", 2, 300, 384, mixed=False), demo_teacher(root / "demo"), 25, args.repeats,
                ),
                "glip_t": (
                    write_crawl(root / "b", 1, args.glip_t_images, 512, mixed=False),
                    glip_teacher(root / "glip_t", "glip-t", args.glip_t_side, args.glip_t_side * 5 // 3),
                    4, min(2, args.repeats),
                ),
            }  # fmt: skip
            for name, (crawl, teacher, size, repeats) in parts.items():
                print(f"stage over bare loop, {name}")
                result = stage_over_bare_loop(Bench(root / f"stage_{name}", crawl, teacher, size), repeats)
                figures |= {f"stage_over_bare_loop_{name}": result.pop("ratio"), f"stage_{name}": result}
            figures["stage_over_bare_loop"] = min(figures[f"stage_over_bare_loop_{name}"] for name in parts)
        if args.only in (None, "bucketing"):
            print("bucketing")
            crawl = write_crawl(root / "c", 1, 400, 256, mixed=True)
            bench = Bench(root / "bucketing", crawl, demo_teacher(root / "demo2"), 16)
            figures["bucketing_speedup"] = bucketing_speedup(bench, args.repeats)
        if args.only in (None, "names"):
            print("names")
            teacher, settings = demo_teacher(root / "demo3"), {"max_regions_per_phrase": 10}
            bench = Bench(root / "names", write_crawl(root / "d", 1, 300, 384, mixed=False), teacher, 25, **settings)
            figures |= names_over_captions(bench, NameList(names=read_names("coco").names[:25]), args.repeats)
            bench = Bench(root / "many", write_crawl(root / "e", 1, 16, 384, mixed=False), teacher, 8, **settings)
            figures |= many_names(bench, read_names("lvis"), args.repeats)
        if args.only in (None, "prepare"):
            print("prepare")
            figures |= prepare_ms(root / "prepare", args.repeats)
        if args.only in (None, "padding"):
            print("padding")
            figures |= padding(root / "padding")
        if args.only in (None, "memory"):
            print("memory")
            figures |= memory(root / "memory")
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
