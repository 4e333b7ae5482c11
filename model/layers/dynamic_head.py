"""Dynamic-head block: deformable convolutions across levels and DyReLU (GLIP spec section 6.3)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from .constants import device_constant
from .deform import branch_geometry, sampled_convolution, sampling_plan
from .initialisation import NORMAL, initialised

Shapes = list[tuple[int, int]]


def split_levels(x: Tensor, shapes: Shapes) -> list[Tensor]:
    """Split (B, N, C) into (B, C, h, w) views, channels-last in memory."""
    parts = x.split([h * w for h, w in shapes], 1)
    return [p.unflatten(1, shape).permute(0, 3, 1, 2) for p, shape in zip(parts, shapes)]


def join_levels(maps: list[Tensor]) -> Tensor:
    """Join maps (B, C, h, w) to (B, N, C), row-major, level after level."""
    return torch.cat([m.permute(0, 2, 3, 1).flatten(1, 2) for m in maps], 1)


def flat_prefix(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """Read the first K*h*w numbers of each image's (K, H, W) block as (K, h, w). x: (B, K, H, W).

    The CUDA kernel of GLIP's training indexes the buffer of level l with the size of level l+1, and
    the checkpoints depend on it (GLIP spec 0.1): neither a crop nor a resize is the same.
    """
    b, k, height, width = x.shape
    h, w = shape
    needed = -(-k * h * w // (height * width))
    return x[:, :needed].reshape(b, -1)[:, : k * h * w].view(b, k, h, w)


def _plan(control: Tensor, pairs: tuple, rows_per_image: int) -> tuple[Tensor, Tensor]:
    """Plan the sampling of control (B, M, 27): 18 offsets and 9 masks before the sigmoid."""
    geometry = device_constant(branch_geometry, pairs, device=control.device)
    return sampling_plan(control[..., :18].contiguous(), control[..., 18:].sigmoid(), geometry, rows_per_image)


class DyReLU(nn.Module):
    """Piecewise-linear activation, its four coefficients per channel from the map's mean."""

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction), nn.ReLU(), nn.Linear(channels // reduction, 4 * channels)
        )

    def coefficients(self, means: Tensor) -> Tensor:
        """Compute slope 1, offset 1, slope 2, offset 2 (4, ..., C) from means (..., C)."""
        a1, b1, a2, b2 = (F.hardsigmoid(self.fc(means)) - 0.5).chunk(4, -1)
        return torch.stack([2 * a1 + 1, b1, 2 * a2, b2])


class DynamicBranch(nn.Module):
    """Weights of a deformable convolution, and the GroupNorm after it."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.norm = nn.GroupNorm(groups, channels, eps=1e-5)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return kernel (C, C, 3, 3) and bias (C) in float32.

        A call, so that tools that load a module's weights when it runs (offload) load them.
        """
        return self.weight.float(), self.bias.float()

    def normalise(self, x: Tensor) -> Tensor:
        """Apply the norm to a branch (B, C, h, w), in the norm's own precision."""
        return self.norm(x.to(self.norm.weight.dtype))


class DynamicConv(nn.Module):
    """One block over all levels; the three branches of a level share the level's offsets and masks.

    implementation: "gather", "torchvision" or "auto" (see `GlipConfig`).
    """

    def __init__(self, channels: int, groups: int, reduction: int, implementation: str):
        super().__init__()
        self.implementation = implementation
        self.upper = DynamicBranch(channels, groups)
        self.same = DynamicBranch(channels, groups)
        self.lower = DynamicBranch(channels, groups)
        self.offset = nn.Conv2d(channels, 3 * 9, 3, padding=1)
        self.attention = initialised(nn.Linear(channels, 1), NORMAL)
        self.relu = DyReLU(channels, reduction)

    def forward(self, x: Tensor, shapes: Shapes) -> Tensor:
        """Transform x (B, N, C), levels of `shapes`, finest first, to the same shape."""
        controls = [self.offset(m) for m in split_levels(x, shapes)]
        device = x.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        # torchvision's operator samples at positions of the type of its values
        fast = kind != torch.float32 or not x.is_cuda
        gather = self.implementation == "gather" or (self.implementation == "auto" and fast)
        # half precision would move sampling positions by pixels: values and kernels alone have it
        with torch.autocast(device, enabled=False):
            controls = [c.float() for c in controls]
            branches = self._gather(x.to(kind), controls, shapes) if gather else self._operator(x, controls, shapes)
            return self._combine(branches, shapes).to(x.dtype)

    def _gather(self, x: Tensor, controls: list[Tensor], shapes: Shapes) -> list[list[Tensor]]:
        """Compute the branches before their norms, (B, C, h, w) per level: upper, same, lower."""
        b, n, c = x.shape
        starts = [0, *accumulate(h * w for h, w in shapes)]
        branches, raw = [self.same], [join_levels(controls)]
        pairs = [tuple((start, *s, *s) for start, s in zip(starts, shapes))]
        if len(shapes) > 1:
            branches += [self.lower, self.upper]
            prefixes = [
                torch.cat([flat_prefix(o[:, :18], s), flat_prefix(o[:, 18:], s)], 1)
                for o, s in zip(controls, shapes[1:])
            ]
            raw += [raw[0][:, starts[1] :], join_levels(prefixes)]
            pairs += [tuple((start, *s, *t) for start, s, t in zip(starts, shapes, shapes[1:])), pairs[0][1:]]
        plans: Iterable[tuple[Tensor, ...]]
        if torch.is_grad_enabled():  # one plan for all: fewer, larger operators
            whole = _plan(torch.cat(raw, 1), sum(pairs, ()), n)
            plans = zip(*(part.split([r.shape[1] for r in raw], 1) for part in whole))
        else:  # one after another: a plan needs more memory than the branch's result
            plans = (_plan(r, pair, n) for r, pair in zip(raw, pairs))
        table = x.reshape(b * n, c)
        same, *others = [
            split_levels(sampled_convolution(table, rows, weights, *m()), s)
            for (rows, weights), m, s in zip(plans, branches, (shapes, shapes[1:], shapes[1:]))
        ]
        lower, upper = others or ([], [])
        return [upper, same, lower]

    def _operator(self, x: Tensor, controls: list[Tensor], shapes: Shapes) -> list[list[Tensor]]:
        """Compute the same as `_gather` with torchvision's operator, map by map."""
        maps = [m.contiguous() for m in split_levels(x.float(), shapes)]
        offsets, masks = [c[:, :18].contiguous() for c in controls], [c[:, 18:].sigmoid() for c in controls]

        def convolve(branch: DynamicBranch, source: Tensor, offset: Tensor, mask: Tensor, stride: int) -> Tensor:
            weight, bias = branch()
            return deform_conv2d(source, offset, weight, bias, stride=stride, padding=1, mask=mask)

        upper = [
            convolve(self.upper, maps[i + 1], flat_prefix(offsets[i], s), flat_prefix(masks[i], s), 1)
            for i, s in enumerate(shapes[1:])
        ]
        same = [convolve(self.same, m, o, k, 1) for m, o, k in zip(maps, offsets, masks)]
        lower = [
            convolve(self.lower, maps[i], offsets[i + 1], masks[i + 1], 2 if shapes[i] != shapes[i + 1] else 1)
            for i in range(len(shapes) - 1)
        ]
        return [upper, same, lower]

    def _combine(self, branches: list[list[Tensor]], shapes: Shapes) -> Tensor:
        """Apply norms, gates, mean and DyReLU; empties the lists to free each map after use."""
        upper, same, lower = branches
        groups: list[list[Tensor]] = []
        for i, shape in enumerate(shapes):
            group = [self.same.normalise(same.pop(0))]
            if i > 0:
                group.append(self.lower.normalise(lower.pop(0)))
            if upper:
                coarse = self.upper.normalise(upper.pop(0))
                group.append(F.interpolate(coarse, size=shape, mode="bilinear", align_corners=True))
            groups.append(group)
        means = torch.stack([m.mean((2, 3)) for group in groups for m in group])
        gates = iter(F.hardsigmoid(F.relu(self.attention(means)))[..., None, None])  # (maps, B, 1, 1, 1)
        out = []
        while groups:
            group = groups.pop(0)
            count = len(group)
            total = next(gates) * group.pop(0)
            while group:
                total = torch.addcmul(total, next(gates), group.pop(0))
            out.append(total / count)
        coefficients = self.relu.coefficients(torch.stack([m.mean((2, 3)) for m in out])).transpose(0, 1)
        for i, (a1, b1, a2, b2) in enumerate(coefficients[..., None, None]):
            out[i] = torch.maximum(torch.addcmul(b1, out[i], a1), torch.addcmul(b2, out[i], a2))
        return join_levels(out)
