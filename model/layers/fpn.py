"""Feature pyramid with extra levels, and DropBlock in training (GLIP spec section 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .initialisation import KAIMING, initialised


def drop_block(x: Tensor, probability: float, block: int) -> Tensor:
    """Zero square blocks of x (B, C, H, W) in all channels; rescale by the batch's kept share."""
    seeds = x.new_empty(x.shape[0], 1, *x.shape[2:]).bernoulli_(probability / block**2)
    keep = 1 - F.max_pool2d(seeds, block, stride=1, padding=block // 2)
    return x * (keep * (keep.numel() / keep.sum().clamp(min=1)))


class GlipFeaturePyramid(nn.Module):
    """Lateral 1x1 and output 3x3 convolutions, nearest top-down sums, stride-2 convolutions."""

    def __init__(self, in_channels: list[int], channels: int, num_levels: int, drop_prob: float, drop_size: int):
        super().__init__()
        self.drop_prob, self.drop_size = drop_prob, drop_size
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        extra = num_levels - len(in_channels)
        self.extra = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(extra))
        initialised(self, KAIMING)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Compute `num_levels` maps (B, C, h, w) from features (B, C_i, h, w), finest first."""
        # plain NCHW memory: oneDNN's channels-last convolutions round worse here and are no faster
        features = [f.contiguous() for f in features]
        merged = self.lateral[-1](features[-1])
        out = [self.output[-1](merged)]
        for i in range(len(features) - 2, -1, -1):
            lateral = self.lateral[i](features[i])
            merged = lateral + F.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
            kept = merged
            if self.training and self.drop_prob > 0:  # not on the coarsest map, nor on the top-down path
                kept = drop_block(merged, self.drop_prob, self.drop_size)
            out.insert(0, self.output[i](kept))
        for i, conv in enumerate(self.extra):
            # the first reads the coarsest output itself, the others the ReLU of the level before
            out.append(conv(out[-1] if i == 0 else F.relu(out[-1])))
        return out
