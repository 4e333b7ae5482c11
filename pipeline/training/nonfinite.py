"""A batch whose loss is not finite, written out for whoever looks into it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.io.atomic import write_atomic, write_json


def write_batch(
    out: Path, step: int, rank: int, batches: Sequence[dict[str, Any]], what: str, tensors: Sequence[dict[str, Any]]
) -> Path:
    """Write ``out/nonfinite-STEP/rank-R.json`` (what was wrong, shard/key of each record, captions) and ``rank-R.pt``.

    The ``.pt`` file is a list of the micro-batches' inputs as the network got them: ``network(**torch.load(file)[0])``.
    """
    folder = out / f"nonfinite-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    inputs = io.BytesIO()
    torch.save([_on_cpu(t) for t in tensors], inputs)
    write_atomic(folder / f"rank-{rank}.pt", inputs.getvalue())
    write_json(
        folder / f"rank-{rank}.json",
        {
            "step": step,
            "what": what or "finite here; another process's was not",
            "records": [name for batch in batches for name in batch["names"]],
            "captions": [caption for batch in batches for caption in batch["captions"]],
        },
    )
    return folder


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {k: _on_cpu(v) for k, v in value.items()}
    return [_on_cpu(v) for v in value] if isinstance(value, list) else value
