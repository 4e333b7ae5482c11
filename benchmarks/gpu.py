"""GLIP on a GPU: what its operations allow, and what is reached.

    python benchmarks/gpu.py --json gpu.json                    # on a CUDA card
    python benchmarks/gpu.py --count-only --json count.json     # no GPU needed
    python benchmarks/gpu.py --device cpu --tiny                # a run in a minute, for a look

Needs no network: weights are random, in the released layouts, and images are crops of photographs
of scikit-image and scikit-learn. First bf16 is held to float32, then images per second are measured.

Keys of ``--count-only``: ``ceiling_CARD_VARIANT`` (images of 800x1344 with texts of 20 tokens per
second, if all that the card did were the counted FLOPs at its peak rate for the type of each; with
the precision that ``auto`` chooses there), ``ceiling_CARD_VARIANT_float32``, ``gflops_VARIANT`` by
type. Of a measurement, too: ``kept_VARIANT`` (share of float32's regions above 0.5 that bf16 finds
with an IoU of 0.95 or more), ``images_per_second_VARIANT_PRECISION_bN`` and ``..._compiled`` (forward
pass and post-processing), ``stage_images_per_second_VARIANT`` (pseudo-label, from shards to Parquet),
``limit_share_VARIANT`` (the best of these over the ceiling, where the card is known),
``peak_gib_VARIANT_PRECISION_bN``, ``training_seconds_PRECISION`` and ``training_seconds_bf16_compiled`` (a step of
GLIP-T with AdamW, 2 images of 800x1333).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inference import TOKENS, inputs, machine
from labelling import Bench, glip_teacher, write_crawl
from torchvision.ops import box_iou
from train_step import labels
from transformers import BertConfig

from model import GlipBackboneConfig, GlipConfig, GlipForObjectDetection
from pipeline.annotators.flops import PEAKS, labelling_flops, least_seconds
from pipeline.annotators.memory import autocast
from pipeline.config import TrainConfig
from pipeline.stages.jobs import PseudoLabel
from pipeline.training.distributed import compile_units
from pipeline.training.optim import make_optimizer

SIZE = (800, 1344)
VARIANTS = ("glip-t", "glip-l")
TINY: dict[str, Any] = {
    "backbone_config": GlipBackboneConfig(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=4),
    "text_config": BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64
    ),
    "hidden_size": 32, "num_blocks": 1, "fusion_embed_dim": 64, "max_text_length": 64,
}  # fmt: skip
"""Changes of a variant by --tiny."""
KEPT_IOU = 0.95
"""IoU from which a region counts as kept."""


def key(variant: str) -> str:
    """A variant's name in keys."""
    return variant.replace("-", "_")


def ceilings() -> dict[str, Any]:
    """Images per second by counted FLOPs alone."""
    figures: dict[str, Any] = {}
    for variant in VARIANTS:
        for precision, suffix in (("bf16", ""), ("float32", "_float32")):
            flops = labelling_flops(GlipConfig.variant(variant), SIZE, TOKENS, precision)
            figures[f"gflops_{key(variant)}{suffix}"] = {kind: round(n / 1e9, 2) for kind, n in flops.items()}
            for card, peaks in PEAKS.items():
                rate = 1 / least_seconds(flops, peaks)
                figures[f"ceiling_{card}_{key(variant)}{suffix}"] = round(rate, 1)
    return figures


class Card:
    """The device that is measured."""

    def __init__(self, device: str) -> None:
        self.device, self.cuda = device, device == "cuda"
        self.name = torch.cuda.get_device_name() if self.cuda else "CPU"

    def seconds(self, run: Callable[[], Any], repeats: int) -> float:
        """Mean seconds of a call after one that is not counted."""
        run()
        self._wait()
        started = time.perf_counter()
        for _ in range(repeats):
            run()
        self._wait()
        return (time.perf_counter() - started) / repeats

    def peak_gib(self) -> float | None:
        """GiB allocated at most since the last call."""
        if not self.cuda:
            return None
        peak = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return round(peak, 2)

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def best_ious(exact: Sequence[Any], near: Sequence[Any], above: float) -> np.ndarray:
    """IoU of each region of ``exact`` that scores above ``above`` with the nearest of its phrase in ``near``, or 0."""
    found = []
    for a, b in zip(exact, near, strict=True):
        rows = np.flatnonzero(a.score > above)
        iou = box_iou(torch.from_numpy(a.boxes[rows]), torch.from_numpy(b.boxes)).numpy()
        found.append(np.max(iou * (a.phrase[rows][:, None] == b.phrase[None]), 1, initial=0.0))
    return np.concatenate(found) if found else np.zeros(0)


def kept(exact: Sequence[Any], near: Sequence[Any], above: float = 0.5) -> float | None:
    """Share of regions of ``exact`` above ``above`` that ``near`` has, same phrase, IoU of KEPT_IOU or more."""
    ious = best_ious(exact, near, above)
    return round(float((ious >= KEPT_IOU).mean()), 4) if len(ious) else None


def measure(card: Card, tiny: bool, compiled: bool) -> dict[str, Any]:
    """Parity, then rates, of each variant; a training step."""
    size, sizes, repeats = ((96, 160), (1, 2), 1) if tiny else (SIZE, (1, 8, 16, 32), 5)
    figures: dict[str, Any] = {"card": card.name}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        crawl = write_crawl(root / "crawl", 1, 8 if tiny else 512, 160 if tiny else 640, mixed=False)
        for variant in VARIANTS[:1] if tiny else VARIANTS:
            figures |= measure_variant(card, root, variant, crawl, size, sizes, repeats, tiny, compiled)
    for precision in ("float32", "bf16"):
        figures[f"training_seconds_{precision}"] = training_step(card, precision, tiny, repeats, compiled=False)
    if compiled:
        figures["training_seconds_bf16_compiled"] = training_step(card, "bf16", tiny, repeats, compiled=True)
    return figures


def measure_variant(
    card: Card, root: Path, variant: str, crawl: list[str], size: tuple[int, int], sizes: tuple[int, ...],
    repeats: int, tiny: bool, compiled: bool,
) -> dict[str, Any]:  # fmt: skip
    """Parity and rates of one variant."""
    name, figures = key(variant), {}
    torch.manual_seed(0)
    path = glip_teacher(root / name, variant, *size, **(TINY if tiny else {}))
    results = {}
    for precision in ("float32", "bf16"):
        bench = Bench(root / f"{name}-{precision}", crawl, path, max(sizes), device=card.device, precision=precision)
        items = [item for window in bench.items() for item in window]
        results[precision] = bench.annotator.predict(bench.ready([items[: min(8, len(items))]])[0])
        for n in sizes:
            (batch,) = bench.ready([items[:n]])
            card.peak_gib()
            took = card.seconds(lambda batch=batch, bench=bench: bench.annotator.predict(batch), repeats)
            rate, peak = round(len(batch.images) / took, 2), card.peak_gib()
            figures[f"images_per_second_{name}_{precision}_b{n}"] = rate
            figures[f"peak_gib_{name}_{precision}_b{n}"] = peak
            print(f"  {variant}, {precision}, {n} at a time: {rate} images/s", flush=True)
        if compiled and precision == "bf16":
            folder = root / f"{name}-compiled"
            fast = Bench(folder, crawl, path, max(sizes), device=card.device, precision=precision, compile="auto")
            (batch,) = fast.ready([items[:n]])
            took = card.seconds(lambda batch=batch, fast=fast: fast.annotator.predict(batch), repeats)
            figures[f"images_per_second_{name}_{precision}_b{n}_compiled"] = round(n / took, 2)
        del bench
    figures[f"kept_{name}"] = kept(results["float32"], results["bf16"], 0.05 if tiny else 0.5)
    started = time.perf_counter()
    report = PseudoLabel(
        shards=tuple(crawl), phrases=str(root / f"{name}-bf16" / "phrases"), teacher=path,
        out=str(root / f"{name}-out"), device=card.device, settings={"batch_size": max(sizes), "score_agg": "max"},
    ).run()  # fmt: skip
    images = report.tallies["samples"].seen
    figures[f"stage_images_per_second_{name}"] = round(images / (time.perf_counter() - started), 2)
    return figures


def limit_shares(figures: dict[str, Any]) -> dict[str, float]:
    """The best measured rate of each variant in bf16 over its ceiling on the card, where both are known."""
    shares = {}
    for name in map(key, VARIANTS):
        rates = [rate for n, rate in figures.items() if n.startswith(f"images_per_second_{name}_bf16_")]
        card = next((card for card in PEAKS if card in figures["card"].lower()), None)
        if rates and f"ceiling_{card}_{name}" in figures:
            shares[f"limit_share_{name}"] = round(max(rates) / figures[f"ceiling_{card}_{name}"], 4)
    return shares


def training_step(card: Card, precision: str, tiny: bool, repeats: int, compiled: bool) -> float:
    """Seconds of a step of GLIP-T on two images: forward and backward pass, clipping, AdamW."""
    torch.manual_seed(0)
    network = GlipForObjectDetection(GlipConfig.variant("glip-t", **(TINY if tiny else {})))
    network.to(card.device).train()
    compile_units(network, "auto" if compiled else "off")
    optimizer = make_optimizer(network, TrainConfig())
    height, width = (96, 160) if tiny else (800, 1333)
    given: dict[str, Any] = {n: v.to(card.device) for n, v in inputs(2, height, width, TOKENS).items()}
    given["labels"] = [{n: v.to(card.device) for n, v in row.items()} for row in labels(2, height, TOKENS)]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(card.device, precision):
            loss = network(**given).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return round(card.seconds(step, repeats), 3)


def main() -> None:
    """Count, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count-only", action="store_true", help="Count FLOPs; measure nothing.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="Small networks, images and batches.")
    parser.add_argument("--no-compile", action="store_true", help="Leave torch.compile out.")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    figures: dict[str, Any] = {"machine": machine(torch.get_num_threads())}
    if args.count_only or not args.tiny:
        figures |= ceilings()
    if not args.count_only:
        if args.device == "cpu" and not args.tiny:
            parser.error("no CUDA card here; want --count-only, or --tiny for a look")
        figures |= measure(Card(args.device), args.tiny, not args.no_compile)
        figures |= limit_shares(figures)
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
