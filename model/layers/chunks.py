"""Row-wise inference on CPU in pieces that stay in the cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK_BYTES = 4 << 20  # fits a core's cache and still holds many rows


def in_chunks(work: Callable[[Tensor, slice], Tensor], x: Tensor, row_bytes: int, dim: int = 0) -> Tensor:
    """Compute ``work(x[part], part)`` over slices of dimension ``dim``, for row-wise work.

    row_bytes: memory that one row of x needs inside ``work``. In training, on an accelerator and
    where one slice suffices, there is one call.
    """
    count = x.shape[dim]
    step = max(1, CHUNK_BYTES // row_bytes)
    if torch.is_grad_enabled() or x.device.type != "cpu" or step >= count:
        return work(x, slice(0, count))
    out = None
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        made = work(x.narrow(dim, start, part.stop - start), part)
        if out is None:
            out = made.new_empty(*made.shape[:dim], count, *made.shape[dim + 1 :])
        out.narrow(dim, start, part.stop - start).copy_(made)
    assert out is not None
    return out
