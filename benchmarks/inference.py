"""A forward pass of GLIP-T: ours, the literal path, and transformers' GroundingDINO.

    python benchmarks/inference.py --json inference.json
    python benchmarks/inference.py --sizes 480x640 --batches 1 --repeats 1      # a quick run

The literal path has the original's arithmetic: it pads every caption to 256 tokens, projects every
location to 2048 channels in the fusion layers and uses torchvision's deformable convolution. All
three have random weights and a Swin-T. Times are measured alternately in one process, peak memory
in separate processes.

Keys: ``speedup_HxW_bN`` and ``memory_ratio_HxW_bN`` (ours over literal: weights and forward pass,
without the imported libraries; ``added_``: the pass only, ``process_``: everything),
``speedup_over_grounding_dino``, ``flop_floor_ratio`` (our time over the FLOPs divided by the
machine's measured rate of matrix products), ``head_share_HxW_bN`` (share of our time spent after
both encoders).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
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


def encoders(network: Any, batch: int, height: int, width: int) -> Callable[[], Any]:
    """Backbone, pyramid and text encoder of ours alone."""
    given = inputs(batch, height, width, TOKENS)

    def forward() -> None:
        with torch.inference_mode():
            network.encode_image(given["pixel_values"])
            network.encode_text(given["input_ids"], given["attention_mask"])

    return forward


def seconds(forward: Callable[[], Any]) -> float:
    began = time.perf_counter()
    forward()
    return time.perf_counter() - began


def matrix_rate(side: int = 2048, repeats: int = 5) -> float:
    """FLOPs per second of a large float32 matrix product, best of ``repeats``."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    a @ b
    return 2 * side**3 / min(seconds(lambda: a @ b) for _ in range(repeats))


def flops(forward: Callable[[], Any]) -> int:
    """FLOPs of a forward pass by torch's counter: matrix products and convolutions, no gathers."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops()


def measure_peak(make: Callable[[], Callable[[], Any]]) -> None:
    """Print peak memory in MiB: ``peak`` without the libraries, ``added`` by the pass, ``process``:
    all.

    make: builds the network and returns the pass.
    """
    from transformers import BertModel, GroundingDinoForObjectDetection  # noqa: F401

    import model  # noqa: F401 - imported first, to measure the libraries' memory separately

    libraries = _status("VmRSS")
    run = make()
    loaded = _status("VmRSS")
    run()
    peak = _status("VmHWM")
    print(json.dumps({"peak": peak - libraries, "added": peak - loaded, "process": peak}))


def peaks_of(variants: Sequence[str], script: str, *arguments: Any) -> dict[str, dict[str, float]]:
    """Output of ``measure_peak`` for each variant, in separate processes."""
    peaks = {}
    for variant in variants:
        command = [sys.executable, script, "--peak", variant, *map(str, arguments)]
        peaks[variant] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return peaks


def memory_figures(peaks: dict[str, dict[str, float]], suffix: str = "") -> dict[str, Any]:
    """Ratios of ours to the literal path, and both in MiB."""
    ours, literal = peaks["ours"], peaks["literal"]
    return {
        f"memory_ratio{suffix}": round(ours["peak"] / literal["peak"], 3),
        f"added_memory_ratio{suffix}": round(ours["added"] / literal["added"], 3),
        f"process_memory_ratio{suffix}": round(ours["process"] / literal["process"], 3),
        f"peak_mib{suffix}": {v: {k: round(n) for k, n in p.items()} for v, p in peaks.items()},
    }


def machine(threads: int) -> str:
    """Description of the machine."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}"


def _status(name: str) -> float:
    line = next(v for v in Path("/proc/self/status").read_text().splitlines() if v.startswith(name))
    return int(line.split()[1]) / 1024


def largest_difference(ours: torch.nn.Module, literal: torch.nn.Module) -> float:
    """Largest relative difference of the two paths' outputs at a small size."""
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
        measure_peak(lambda: call(variant, build(variant), *map(int, numbers)))
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
            forwards["encoders"] = encoders(networks["ours"], batch, height, width)
            best = dict.fromkeys(forwards, float("inf"))
            for _ in range(args.repeats):
                for variant, forward in forwards.items():  # alternately, so that other load affects all of them
                    best[variant] = min(best[variant], seconds(forward))
            work = flops(forwards["ours"])
            measured = {
                f"seconds_{name}": {v: round(s, 2) for v, s in best.items()},
                f"speedup_{name}": round(best["literal"] / best["ours"], 2),
                f"speedup_over_grounding_dino_{name}": round(best["grounding_dino"] / best["ours"], 2),
                f"head_share_{name}": round(1 - best["encoders"] / best["ours"], 3),
                f"gflop_{name}": round(work / 1e9, 1),
                f"flop_floor_ratio_{name}": round(best["ours"] * rate / work, 2),
                f"share_of_matrix_rate_{name}": round(work / best["ours"] / rate, 3),
                **memory_figures(
                    peaks_of(VARIANTS, __file__, batch, height, width, "--threads", args.threads), f"_{name}"
                ),
            }
            print(name, json.dumps({k.removesuffix(f"_{name}"): v for k, v in measured.items()}), flush=True)
            figures |= measured
    first = f"{args.sizes[0]}_b{args.batches[0]}"
    figures["speedup_over_grounding_dino"] = figures[f"speedup_over_grounding_dino_{first}"]
    figures["flop_floor_ratio"] = figures[f"flop_floor_ratio_{first}"]
    figures["machine"] = machine(args.threads)
    print(json.dumps({k: v for k, v in figures.items() if not isinstance(v, dict)}, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
