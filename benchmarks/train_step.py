"""A training step of GLIP-T (forward and backward): ours against the original's arithmetic.

    python benchmarks/train_step.py --json train_step.json
    python benchmarks/train_step.py --only checkpointing --side 256 --json checkpointing.json

By default two images of 640x640 and a caption of 20 tokens. Times are measured alternately in one
process, peak memory in separate processes. Keys: ``speedup``, ``memory_ratio`` (weights, gradients
and step, without the imported libraries), ``added_memory_ratio`` (the step only),
``process_memory_ratio`` (everything); with over without gradient checkpointing:
``checkpointing_seconds_ratio`` and ``checkpointing_memory_ratio`` (of an image's activations, with
256 tokens, by the estimate of `pipeline.annotators.memory`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from inference import PADDED, TOKENS, build, inputs, machine, measure_peak, memory_figures, peaks_of, seconds

from pipeline.annotators.memory import estimate

VARIANTS = ("ours", "literal")


def labels(batch: int, side: int, tokens: int) -> list[dict[str, torch.Tensor]]:
    """Labels of five boxes per image, each with two positive tokens."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(batch):
        corner = torch.rand(5, 2, generator=generator) * side * 0.6
        size = (0.1 + 0.3 * torch.rand(5, 2, generator=generator)) * side
        positive = torch.zeros(5, tokens)
        for i in range(5):
            positive[i, 1 + 3 * i : 3 + 3 * i] = 0.5
        rows.append({"boxes": torch.cat([corner, corner + size], 1), "positive_map": positive})
    return rows


def step(variant: str, network: torch.nn.Module, batch: int, side: int) -> Any:
    """One step, ready to be timed."""
    tokens = PADDED if variant == "literal" else TOKENS
    given = inputs(batch, side, side, tokens) | {"labels": labels(batch, side, tokens)}
    network.train()

    def run() -> None:
        network.zero_grad(set_to_none=True)
        network(**given).loss.backward()

    return run


def checkpointing(batch: int, side: int, repeats: int) -> dict[str, Any]:
    """Price of gradient checkpointing: seconds timed alternately, memory by the estimate."""
    networks = {on: build("ours") for on in (False, True)}
    networks[True].gradient_checkpointing_enable({"use_reentrant": False})
    steps = {on: step("ours", network, batch, side) for on, network in networks.items()}
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(repeats + 1):  # the first call also fills caches
        for on, run in steps.items():
            best[on] = min(best[on], seconds(run))
    bytes_of = {
        on: estimate(networks[on].config, (side, side), training=True, precision="float32", checkpointing=on).per_image
        for on in steps
    }
    return {
        "checkpointing_seconds_ratio": round(best[True] / best[False], 3),
        "checkpointing_memory_ratio": round(bytes_of[True] / bytes_of[False], 3),
    }


def against_the_original(args: argparse.Namespace) -> dict[str, Any]:
    """Speed and memory, ours over the original's arithmetic."""
    # memory first: the literal step takes over 10 GiB, and this process will hold two networks later
    peaks = peaks_of(VARIANTS, __file__, "--side", args.side, "--batch", args.batch, "--threads", args.threads)
    steps = {v: step(v, build(v), args.batch, args.side) for v in VARIANTS}
    best = dict.fromkeys(VARIANTS, float("inf"))
    for _ in range(args.repeats):
        for variant, run in steps.items():
            best[variant] = min(best[variant], seconds(run))
    return {
        "speedup": round(best["literal"] / best["ours"], 2),
        **memory_figures(peaks),
        "seconds": {v: round(s, 2) for v, s in best.items()},
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["checkpointing"], help="Only the price of gradient checkpointing.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        measure_peak(lambda: step(args.peak, build(args.peak), args.batch, args.side))
        return
    figures = {} if args.only else against_the_original(args)
    figures |= checkpointing(args.batch, args.side, args.repeats)
    figures["machine"] = machine(args.threads)
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
