"""Dumps a batch whose loss or gradients are not finite, for debugging."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import recursively_apply

from pipeline.io.atomic import write_atomic, write_json


def write_batch(
    out: Path, step: int, rank: int, batches: Sequence[dict[str, Any]], reason: str, inputs: Sequence[dict[str, Any]]
) -> Path:
    """Write ``out/nonfinite-STEP/rank-R.json`` (reason, records, captions) and ``rank-R.pt``.

    The ``.pt`` file is the list of the micro-batches' inputs to the network, so that
    ``network(**torch.load(file)[0])`` repeats the first forward pass. Returns the folder.
    """
    folder = out / f"nonfinite-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    torch.save(recursively_apply(lambda tensor: tensor.detach().cpu(), list(inputs)), file)
    write_atomic(folder / f"rank-{rank}.pt", file.getvalue())
    write_json(
        folder / f"rank-{rank}.json",
        {
            "step": step,
            "what": reason or "finite here; another process's was not",
            "records": [name for batch in batches for name in batch["names"]],
            "captions": [caption for batch in batches for caption in batch["captions"]],
        },
    )
    return folder
