"""Proposals and region features of the two-stage head, the paper's first formulation.

Region features O and prompt features P give the alignment S = O P^T. Source: GLIP paper section
3.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import nms as plain_nms
from torchvision.ops import roi_align

from ..box_ops import clip, decode, sides
from ..configuration_glip import GlipConfig
from .initialisation import NORMAL, initialised, logit

CANDIDATES = 1000  # proposals per image before NMS


class ProposalNetwork(nn.Module):
    """Objectness and box of one square anchor per location."""

    def __init__(self, channels: int, prior_probability: float):
        super().__init__()
        self.conv = initialised(nn.Conv2d(channels, channels, 3, padding=1), NORMAL)
        self.objectness = initialised(nn.Linear(channels, 1), NORMAL, logit(prior_probability))
        self.deltas = initialised(nn.Linear(channels, 4), NORMAL)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Predict objectness logits (B, N) and deltas (B, N, 4) from maps (B, C, h, w)."""
        x = torch.cat([F.relu(self.conv(m)).flatten(2).transpose(1, 2) for m in maps], 1)
        return self.objectness(x).squeeze(-1), self.deltas(x)


class RegionFeatures(nn.Module):
    """ROIAlign on the level that fits a box's size, then two linear layers."""

    def __init__(self, config: GlipConfig):
        super().__init__()
        self.size, self.strides = config.roi_size, config.feature_strides
        width, channels = config.roi_hidden_size, config.hidden_size
        self.fc1 = nn.Linear(channels * self.size**2, width)
        self.fc2 = nn.Linear(width, channels)
        self.canonical = config.anchor_scale  # boxes as large as an anchor read the anchor's level

    def forward(self, maps: list[Tensor], boxes: Tensor) -> Tensor:
        """Compute O (B, K, C) for boxes (B, K, 4), xyxy pixels, on maps (B, C, h, w) per level."""
        b, k, _ = boxes.shape
        side = sides(boxes).clamp(min=1).prod(-1).sqrt()
        level = torch.log2(side / (self.canonical * self.strides[0])).round().clamp(0, len(maps) - 1).flatten()
        index = torch.arange(b, device=boxes.device).repeat_interleave(k).to(boxes.dtype)
        rois = torch.cat([index[:, None], boxes.reshape(-1, 4)], 1)
        out = boxes.new_zeros(b * k, maps[0].shape[1], self.size, self.size, dtype=maps[0].dtype)
        for i, (m, stride) in enumerate(zip(maps, self.strides, strict=True)):
            chosen = (level == i).nonzero().flatten()
            if chosen.numel():
                exact = m.float().contiguous()  # half precision would round the boxes to 8 pixels
                picked = roi_align(exact, rois[chosen].float(), self.size, 1.0 / stride, 2, aligned=True)
                out = out.index_copy(0, chosen, picked.to(out.dtype))
        return F.relu(self.fc2(F.relu(self.fc1(out.flatten(1))))).view(b, k, -1)


@torch.no_grad()
def propose(
    config: GlipConfig, objectness: Tensor, deltas: Tensor, anchors: Tensor, image_sizes: Tensor, count: int,
    extra: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Select the best `count` boxes per image after NMS: (B, K, 4); (B, K) false for padding.

    objectness (B, N), deltas (B, N, 4), anchors (N, 4), image_sizes (B, 2). extra: boxes (m, 4) per
    image to add, in training the labels'.
    """
    boxes = clip(decode(deltas.float(), anchors, tuple(config.box_coder_weights)), image_sizes)
    chosen = []
    for i in range(boxes.shape[0]):
        scores, index = objectness[i].float().topk(min(CANDIDATES, objectness.shape[1]))
        own = boxes[i, index]
        keep = plain_nms(own, scores, config.proposal_nms_threshold)[:count]
        chosen.append(own[keep] if extra is None else torch.cat([extra[i], own[keep]]))
    real = pad_sequence([torch.ones(len(c), dtype=torch.bool, device=c.device) for c in chosen], batch_first=True)
    return pad_sequence(chosen, batch_first=True), real
