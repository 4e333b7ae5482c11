"""Swin backbone as GLIP runs it (GLIP spec section 2).

Windows never shrink and odd blocks always shift, also on maps smaller than a window (GLIP spec
0.4); the implementations of transformers and torchvision differ there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ..configuration_glip import GlipBackboneConfig
from .constants import device_constant

CHUNK_BYTES = 4 << 20  # fits a core's cache and still holds many rows


def in_chunks(work: Callable[[Tensor, slice], Tensor], x: Tensor, row_bytes: int, dim: int = 0) -> Tensor:
    """Compute ``work(x[part], part)`` over slices of dimension ``dim``, for row-wise work.

    On the CPU in inference, slices stay in the cache; elsewhere there is one call. row_bytes:
    memory that one row of x needs inside ``work``.
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


def relative_position_index(window: int) -> Tensor:
    """Compute the (w*w, w*w) int64 index into the bias table: (dy+w-1)*(2w-1) + (dx+w-1)."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return (y[:, None] - y[None] + window - 1) * (2 * window - 1) + (x[:, None] - x[None] + window - 1)


def shift_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """Compute the (windows, w*w, w*w) float32 mask of a shifted map: -100 between regions, else 0.

    height, width: the padded size. The checkpoints were trained with -100, not -inf (GLIP spec
    0.4).
    """
    region = torch.zeros(height, width)
    slices = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(slices):
        for j, cols in enumerate(slices):
            region[rows, cols] = i * 3 + j
    flat = region.view(height // window, window, width // window, window).transpose(1, 2).reshape(-1, window * window)
    return torch.where(flat[:, None] == flat[:, :, None], 0.0, -100.0)


class SwinAttention(nn.Module):
    """Multi-head attention inside windows with a learned relative position bias."""

    def __init__(self, dim: int, window: int, heads: int):
        super().__init__()
        self.window, self.heads, self.scale = window, heads, (dim // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within windows x (B, windows, w*w, C), same shape; mask (windows, w*w, w*w)."""
        b, _, t, c = x.shape
        index = device_constant(relative_position_index, self.window, device=x.device)
        bias = self.relative_position_bias_table[index.flatten()].view(t, t, self.heads).permute(2, 0, 1)

        def attend(x: Tensor, part: slice) -> Tensor:
            return self._windows(x, bias if mask is None else bias + mask[part, None])

        return in_chunks(attend, x, 4 * b * t * (4 * c + 3 * self.heads * t), dim=1)

    def _windows(self, x: Tensor, bias: Tensor) -> Tensor:
        b, n, t, c = x.shape
        q, k, v = self.qkv(x).view(b * n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q * self.scale) @ k.transpose(-2, -1)
        attention = (attention.view(b, n, self.heads, t, t) + bias).view(b * n, self.heads, t, t)
        out = attention.softmax(-1) @ v
        return self.proj(out.transpose(1, 2).reshape(b, n, t, c))


class SwinMlp(nn.Module):
    """Two linear layers with exact GELU."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.hidden = hidden
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (..., C) to the same shape."""
        rows = in_chunks(lambda r, _: self.fc2(F.gelu(self.fc1(r))), x.reshape(-1, x.shape[-1]), 8 * self.hidden)
        return rows.view(x.shape)


class SwinBlock(nn.Module):
    """Pre-norm block of stage `stage` (0, 1, ...); odd ones shift their windows by half."""

    def __init__(self, config: GlipBackboneConfig, stage: int, odd: bool, drop_path: float):
        super().__init__()
        dim, eps, self.window = config.embed_dim * 2**stage, config.layer_norm_eps, config.window_size
        self.shift = self.window // 2 if odd else 0
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = SwinAttention(dim, self.window, config.num_heads[stage])
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = SwinMlp(dim, int(dim * config.mlp_ratio))
        self.drop_path = StochasticDepth(drop_path, "row")

    def _attend(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        size, shift = self.window, self.shift
        pad_h, pad_w = -h % size, -w % size
        if pad_h or pad_w:  # after the norm, so padded positions hold zeros and attend like any other
            x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
        rows, cols = (h + pad_h) // size, (w + pad_w) // size
        mask = None
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
            mask = device_constant(shift_mask, h + pad_h, w + pad_w, size, shift, device=x.device, dtype=x.dtype)
        x = x.view(b, rows, size, cols, size, c).transpose(2, 3).reshape(b, rows * cols, size * size, c)
        x = self.attn(x, mask)
        x = x.view(b, rows, cols, size, size, c).transpose(2, 3).reshape(b, h + pad_h, w + pad_w, c)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return x[:, :h, :w] if pad_h or pad_w else x

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (B, H, W, C) to the same shape."""
        x = x + self.drop_path(self._attend(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Joining of 2 x 2 patches: (B, H, W, C) to (B, ceil(H/2), ceil(W/2), 2C)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=eps)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        _, h, w, _ = x.shape
        if h % 2 or w % 2:
            x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.reduction(self.norm(x))


class SwinStage(nn.Module):
    """Blocks of one resolution; `GlipSwin` runs the merging after them."""

    def __init__(self, config: GlipBackboneConfig, index: int, drop_paths: list[float], merge: bool):
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(config, index, i % 2 == 1, rate) for i, rate in enumerate(drop_paths))
        self.downsample = PatchMerging(config.embed_dim * 2**index, config.layer_norm_eps) if merge else None

    def forward(self, x: Tensor) -> Tensor:
        """Transform x (B, H, W, C) to the same shape."""
        for block in self.blocks:
            x = block(x)
        return x


class PatchEmbed(nn.Module):
    """Patch embedding, (B, 3, H, W) to (B, h, w, C): strided convolution, LayerNorm."""

    def __init__(self, config: GlipBackboneConfig):
        super().__init__()
        self.size = config.patch_size
        self.proj = nn.Conv2d(3, config.embed_dim, self.size, stride=self.size)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        _, _, h, w = x.shape
        if h % self.size or w % self.size:
            x = F.pad(x, (0, -w % self.size, 0, -h % self.size))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class GlipSwin(nn.Module):
    """Stages of Swin, each with a norm where it feeds the pyramid.

    Stage 2 does not in the released networks (GLIP spec 0.5).
    """

    def __init__(self, config: GlipBackboneConfig, norm_stages: list[int]):
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), dtype=torch.float64, device="cpu").tolist()
        layers, start = [], 0
        for i, depth in enumerate(config.depths):
            layers.append(SwinStage(config, i, rates[start : start + depth], merge=i + 1 < len(config.depths)))
            start += depth
        self.layers = nn.ModuleList(layers)
        for stage in norm_stages:
            self.add_module(f"norm{stage - 2}", nn.LayerNorm(config.stage_channels(stage), eps=config.layer_norm_eps))

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Compute stages 2.. (B, C_k, h, w), channels-last, of pixel_values (B, 3, H, W)."""
        x = self.patch_embed(pixel_values)
        out = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            norm = getattr(self, f"norm{i}", None)
            out.append((x if norm is None else norm(x)).permute(0, 3, 1, 2))
            if layer.downsample is not None:
                x = layer.downsample(x)
        return out
