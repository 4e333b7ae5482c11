"""Writing and verifying a GLIP-T checkpoint (2.8 GB) against plain writes of the same size.

    python benchmarks/checkpoint.py --json checkpoint.json --folder /disk/of/checkpoints

Each round writes a plain file of the same size in blocks of 4 MiB with fsync, then the checkpoint:
written, hashed, fsynced, renamed (replacing the previous one), read back and verified.

Keys: ``rate_over_plain_write`` (median of the rounds' ratios), ``written_only_over_plain_write``
(without reading back), ``plain_mb_per_second``, ``bytes``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from inference import machine

from model import GlipConfig, GlipForObjectDetection
from pipeline.config import TrainConfig
from pipeline.training import state_dict as state
from pipeline.training.checkpoints import read_state, write_checkpoint
from pipeline.training.optim import make_optimizer

BLOCK = 4 << 20


def plain_write(file: Path, size: int) -> float:
    """Seconds to write ``size`` bytes and fsync them."""
    block = os.urandom(BLOCK)
    began = time.monotonic()
    with open(file, "wb") as opened:
        for start in range(0, size, BLOCK):
            opened.write(block[: size - start])
        opened.flush()
        os.fsync(opened.fileno())
    spent = time.monotonic() - began
    file.unlink()
    return spent


def stepped() -> tuple[GlipForObjectDetection, torch.optim.Optimizer]:
    """GLIP-T and its optimiser after one step."""
    network = GlipForObjectDetection(GlipConfig.variant("glip-t"))
    optimizer = make_optimizer(network, TrainConfig())
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return network, optimizer


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: the temporary folder)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    network, optimizer = stepped()

    def fill(folder: Path) -> None:
        network.save_pretrained(folder / "model", state_dict=state.weights(network))
        state.save_optimizer(state.optimizer_state(optimizer, network), folder)

    ratios, written, rates, size = [], [], [], 0
    root = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=args.folder))
    try:
        folder = root / "step-00000001"
        write_checkpoint(folder, 1, "mark", fill)
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        for _ in range(args.rounds):
            os.sync()
            plain = plain_write(root / "plain", size)
            os.sync()
            began = time.monotonic()
            write_checkpoint(folder, 1, "mark", fill)
            wrote = time.monotonic() - began
            assert read_state(folder) is not None
            spent = time.monotonic() - began
            ratios.append(plain / spent)
            written.append(plain / wrote)
            rates.append(size / plain / 1e6)
            print(f"plain {plain:.1f} s, checkpoint {wrote:.1f} s, and verified {spent:.1f} s")
    finally:
        shutil.rmtree(root)
    figures = {
        "rate_over_plain_write": round(statistics.median(ratios), 2),
        "written_only_over_plain_write": round(statistics.median(written), 2),
        "plain_mb_per_second": round(statistics.median(rates)),
        "bytes": size,
        "machine": machine(args.threads),
    }
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
