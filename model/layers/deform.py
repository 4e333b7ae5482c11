"""Modulated deformable 3x3 sampling over a flattened feature pyramid.

The pyramid is one tensor (B, N, C): all levels row-major, one after another. A branch is one gather
and one matrix product for all levels, instead of a small operator per level. Bilinear rule as
torchvision's: a neighbour outside its map counts as zero (GLIP spec section 6.3).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

TAPS = 9
# Columns of one chunk: larger ones leave the cache (24 MiB: 1.4 times slower in training) and, at
# 800x1333, would be the peak of memory
CHUNK_BYTES = 4 << 20
# A GPU has no such cache, and each chunk costs it launches
GPU_CHUNK_BYTES = 256 << 20


def branch_geometry(inputs: tuple[tuple[int, int, int, int, int], ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the sampling grid of the M output locations of several level pairs.

    inputs: for each pair (start, in_height, in_width, out_height, out_width); the stride is 1 when
    both sizes agree, else 2. Returns base (M, 9, 2) float y, x of the undeformed taps; size (M, 1,
    2, 1) the input's height, width; width (M, 1) and start (M, 1), int.
    """
    bases, sizes, starts = [], [], []
    for start, in_h, in_w, out_h, out_w in inputs:
        stride = 1 if (in_h, in_w) == (out_h, out_w) else 2
        y, x = torch.meshgrid(torch.arange(out_h) * stride, torch.arange(out_w) * stride, indexing="ij")
        taps = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"), -1).view(1, TAPS, 2) - 1
        bases.append(torch.stack([y, x], -1).view(-1, 1, 2) + taps)
        sizes.append(torch.tensor([in_h, in_w]).expand(out_h * out_w, 2))
        starts.append(torch.full((out_h * out_w, 1), start))
    size = torch.cat(sizes)
    return torch.cat(bases).float(), size.view(-1, 1, 2, 1), size[:, 1:], torch.cat(starts)


def sampling_plan(
    offsets: Tensor, masks: Tensor, geometry: tuple[Tensor, ...], rows_per_image: int
) -> tuple[Tensor, Tensor]:
    """Find each tap's four neighbours: rows in the (B * rows_per_image, C) table, and weights.

    offsets: (B, M, 18) interleaved dy, dx; masks: (B, M, 9); geometry: see `branch_geometry`.
    Returns rows and weights, both (B, M, 9, 4).
    """
    base, size, width, start = geometry
    b, m, _ = masks.shape
    position = offsets.view(b, m, TAPS, 2) + base
    low = position.detach().floor()
    part = position - low
    corner = torch.stack([low, low + 1], -1).to(size.dtype)  # (B, M, 9, yx, low/high)
    weight = torch.stack([1 - part, part], -1) * ((corner >= 0) & (corner < size))
    corner = torch.minimum(corner.clamp_(min=0), size - 1)
    images = torch.arange(b, device=masks.device).view(b, 1, 1) * rows_per_image + start
    rows = (corner[:, :, :, 0] * width[:, :, None] + images[..., None])[..., None] + corner[:, :, :, 1, None]
    weights = (weight[:, :, :, 0] * masks[..., None])[..., None] * weight[:, :, :, 1, None]
    return rows.view(b, m, TAPS, 4), weights.view(b, m, TAPS, 4)


class _SampledProduct(torch.autograd.Function):
    """Product of columns (weighted sums of four table rows per tap) with a matrix.

    The backward pass computes the columns again instead of keeping them.
    """

    @staticmethod
    def forward(ctx, table: Tensor, rows: Tensor, sample_weights: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(table, rows, sample_weights, weight)
        count = rows.shape[0] // TAPS
        out = table.new_empty(count, weight.shape[1])
        for part, columns in _chunks(table, rows, sample_weights, count):
            if torch.is_grad_enabled():  # an export runs this without the class around it
                out[part] = columns @ weight
            else:
                torch.mm(columns, weight, out=out[part])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        table, rows, sample_weights, weight = ctx.saved_tensors
        count, c = grad.shape[0], table.shape[1]
        grad = grad.contiguous()
        # products in the table's type; sums of many in float32
        grad_table, grad_samples = torch.zeros_like(table, dtype=torch.float32), torch.empty_like(sample_weights)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for part, columns in _chunks(table, rows, sample_weights, count):
            taps = slice(part.start * TAPS, part.stop * TAPS)
            if table.dtype == torch.float32:
                grad_weight.addmm_(columns.t(), grad[part])
            else:
                grad_weight += columns.t() @ grad[part]
            spread = (grad[part] @ weight.t()).view(-1, c)
            chunk_rows, chunk_weights = rows[taps], sample_weights[taps]
            grad_samples[taps] = _sample_gradients(spread, table, chunk_rows)
            weighted = torch.empty_like(spread, dtype=torch.float32)
            for j in range(4):
                torch.mul(spread, chunk_weights[:, j, None], out=weighted)
                grad_table.index_add_(0, chunk_rows[:, j], weighted)
        return grad_table.to(table.dtype), None, grad_samples, grad_weight.to(weight.dtype)


def _sample_gradients(spread: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """Compute dot products (T, 4) of gradients (T, C) with table rows (T, 4), without a gather."""
    taps = torch.arange(rows.shape[0], device=rows.device)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        spread, table, rows.reshape(-1), 4 * taps, taps.repeat_interleave(4), 0
    ).view(-1, 4)


def _chunks(table: Tensor, rows: Tensor, sample_weights: Tensor, count: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of the output rows, each with its columns; export has one, whose size stays open."""
    budget = CHUNK_BYTES if table.device.type == "cpu" else GPU_CHUNK_BYTES
    step = max(1, budget // (TAPS * table.shape[1] * table.element_size()))
    starts = [0] if torch.compiler.is_exporting() else range(0, count, step)
    for start in starts:
        part = slice(start, count if len(starts) == 1 else min(count, start + step))
        taps = slice(part.start * TAPS, part.stop * TAPS)
        columns = F.embedding_bag(rows[taps], table, mode="sum", per_sample_weights=sample_weights[taps])
        yield part, columns.view(part.stop - part.start, -1)


def sampled_convolution(table: Tensor, rows: Tensor, weights: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Convolve sampled rows of a table (R, C): (B, M, O), computed in the table's type.

    rows, weights (B, M, 9, 4): see `sampling_plan`; kernel (O, C, 3, 3), bias (O).
    """
    b, m = rows.shape[:2]
    kind = table.dtype
    matrix = kernel.permute(2, 3, 1, 0).reshape(-1, kernel.shape[0]).to(kind)
    out = _SampledProduct.apply(table, rows.reshape(-1, 4), weights.reshape(-1, 4).to(kind), matrix)
    return out.view(b, m, -1) + bias.to(kind)
