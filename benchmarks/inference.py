"""A forward pass of GLIP-T: ours, the literal path (the original's arithmetic), and transformers' GroundingDINO.

    python benchmarks/inference.py --json inference.json
    python benchmarks/inference.py --sizes 480x640 --batches 1 --repeats 1      # a quick look

The literal path pads every caption to 256 tokens, projects every location to 2048 wide in the fusion layers and uses torchvision's
deformable convolution. All three have random weights and one Swin-T. Times are taken turn by turn in one process; peak memory
in a process of each one's own. Key figures: ``speedup_HxW_bN`` and ``memory_ratio_HxW_bN`` (ours over literal), ``speedup_over_grounding_dino``,
``flop_floor_ratio`` (our time over FLOPs divided by the machine's measured matrix-product rate).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TOKENS, PADDED = 20, 256
VARIANTS = ("ours", "literal", "grounding_dino")


def inputs(batch: int, height: int, width: int, tokens: int) -> dict[str, Tensor]:
    """Random pixels and TOKENS real tokens padded to ``tokens``; the same for every variant."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.zeros(batch, tokens, dtype=torch.long)
    ids[:, :TOKENS] = torch.randint(2000, 20000, (batch, TOKENS), generator=generator)
    ids[:, 0], ids[:, TOKENS - 1] = 101, 102
    mask = torch.zeros(batch, tokens, dtype=torch.long)
    mask[:, :TOKENS] = 1
    pixels = torch.randn(batch, 3, height, width, generator=generator)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}


def build(variant: str) -> torch.nn.Module:
    """The network of a variant, with random weights of one seed."""
    torch.manual_seed(0)
    if variant == "grounding_dino":
        from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

        return GroundingDinoForObjectDetection(GroundingDinoConfig(disable_custom_kernels=True)).eval()
    from model import GlipConfig, GlipForObjectDetection

    if variant == "ours":
        return GlipForObjectDetection(GlipConfig.variant("glip-t")).eval()
    config = GlipConfig.variant("glip-t", deform_implementation="torchvision")
    config._attn_implementation = "eager"
    return GlipForObjectDetection(config).eval()


def call(variant: str, network: torch.nn.Module, batch: int, height: int, width: int) -> Callable[[], Any]:
    """One forward pass, ready to be timed."""
    given = inputs(batch, height, width, PADDED if variant == "literal" else TOKENS)
    if variant == "grounding_dino":
        given["token_type_ids"] = torch.zeros_like(given["input_ids"])

    def forward() -> Any:
        with torch.inference_mode():
            return network(**given)

    return forward


def seconds(forward: Callable[[], Any]) -> float:
    began = time.perf_counter()
    forward()
    return time.perf_counter() - began


def matrix_rate(side: int = 2048, repeats: int = 5) -> float:
    """FLOPs a second of a large float32 matrix product, the best of some."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    a @ b
    return 2 * side**3 / min(seconds(lambda: a @ b) for _ in range(repeats))


def flops(forward: Callable[[], Any]) -> int:
    """What torch's counter finds in a forward pass: products and convolutions, no gathers."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops()


def peak_mib(variant: str, batch: int, height: int, width: int, threads: int) -> dict[str, float]:
    """Peak memory of a process that does one forward pass, and how much of it the pass added."""
    command = [
        sys.executable,
        __file__,
        "--peak",
        variant,
        str(batch),
        str(height),
        str(width),
        "--threads",
        str(threads),
    ]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_peak(variant: str, batch: int, height: int, width: int) -> None:
    forward = call(variant, build(variant), batch, height, width)
    before = _status("VmRSS")
    forward()
    peak = _status("VmHWM")
    print(json.dumps({"peak": peak, "added": peak - before}))


def _status(name: str) -> float:
    line = next(v for v in Path("/proc/self/status").read_text().splitlines() if v.startswith(name))
    return int(line.split()[1]) / 1024


def largest_difference(ours: torch.nn.Module, literal: torch.nn.Module) -> float:
    """Between the two paths' outputs at a small size, same weights, relative to the largest value."""
    literal.load_state_dict(ours.state_dict())
    a, b = call("ours", ours, 1, 224, 320)(), call("literal", literal, 1, 224, 320)()
    pairs = [(a.logits, b.logits[..., :TOKENS]), (a.pred_boxes, b.pred_boxes)]
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in pairs)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["800x1333", "480x640"], metavar="HxW")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        variant, *numbers = args.peak
        measure_peak(variant, *map(int, numbers))
        return
    networks = {v: build(v) for v in VARIANTS}
    figures: dict[str, Any] = {"largest_difference": largest_difference(networks["ours"], networks["literal"])}
    rate = matrix_rate()
    figures["matrix_gflops"] = round(rate / 1e9, 1)
    for size in args.sizes:
        height, width = map(int, size.split("x"))
        for batch in args.batches:
            name = f"{size}_b{batch}"
            forwards = {v: call(v, n, batch, height, width) for v, n in networks.items()}
            best = dict.fromkeys(VARIANTS, float("inf"))
            for _ in range(args.repeats):
                for variant, forward in forwards.items():  # turn by turn, so that a slow minute hits all
                    best[variant] = min(best[variant], seconds(forward))
            peaks = {v: peak_mib(v, batch, height, width, args.threads) for v in VARIANTS}
            work = flops(forwards["ours"])
            figures[f"seconds_{name}"] = {v: round(s, 2) for v, s in best.items()}
            figures[f"peak_mib_{name}"] = {v: round(p["peak"]) for v, p in peaks.items()}
            figures[f"speedup_{name}"] = round(best["literal"] / best["ours"], 2)
            figures[f"memory_ratio_{name}"] = round(peaks["ours"]["peak"] / peaks["literal"]["peak"], 3)
            figures[f"added_memory_ratio_{name}"] = round(peaks["ours"]["added"] / peaks["literal"]["added"], 3)
            figures[f"speedup_over_grounding_dino_{name}"] = round(best["grounding_dino"] / best["ours"], 2)
            figures[f"gflop_{name}"] = round(work / 1e9, 1)
            figures[f"flop_floor_ratio_{name}"] = round(best["ours"] * rate / work, 2)
            print(
                name,
                json.dumps({k.removesuffix(f"_{name}"): v for k, v in figures.items() if k.endswith(name)}),
                flush=True,
            )
    first = f"{args.sizes[0]}_b{args.batches[0]}"
    figures["speedup_over_grounding_dino"] = figures[f"speedup_over_grounding_dino_{first}"]
    figures["flop_floor_ratio"] = figures[f"flop_floor_ratio_{first}"]
    figures["machine"] = (
        f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads, torch {torch.__version__}"
    )
    print(json.dumps({k: v for k, v in figures.items() if not isinstance(v, dict)}, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
