"""Long row-wise work in pieces that stay in the cache, where nothing has to be kept for a backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# As for the deformable columns (deform.py): the pieces must fit a core's cache, and be many rows all the same
CHUNK_BYTES = 4 << 20


def in_chunks(work: Callable[[Tensor, slice], Tensor], x: Tensor, row_bytes: int, dim: int = 0) -> Tensor:
    """``work(x[part], part)`` over slices of dimension ``dim``; every row's result depends on that row alone.

    row_bytes: what one row of x takes inside ``work``. In training, on an accelerator and where one slice does, it is
    one call.
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
