"""The two-stage head: proposals, region features O, prompt features P, alignment S = O P^T (GLIP paper section 3.1).

It stands beside the dynamic head as the formulation that the paper starts from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms as plain_nms
from torchvision.ops import roi_align

from ..box_ops import clip, decode
from ..configuration_glip import GlipConfig
from .initialisation import initialised

Shapes = list[tuple[int, int]]
CANDIDATES = 1000  # proposals a image before NMS


class ProposalNetwork(nn.Module):
    """One square anchor a location: is there anything, and where."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = initialised(nn.Conv2d(channels, channels, 3, padding=1), "normal")
        self.objectness = initialised(nn.Linear(channels, 1), "normal")
        self.deltas = initialised(nn.Linear(channels, 4), "normal")

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """maps: (B, C, h, w) a level. Returns objectness logits (B, N) and deltas (B, N, 4)."""
        x = torch.cat([F.relu(self.conv(m)).flatten(2).transpose(1, 2) for m in maps], 1)
        return self.objectness(x).squeeze(-1), self.deltas(x)


class RegionFeatures(nn.Module):
    """ROIAlign from the level that fits a box's size, then two linear layers: O (B, K, C)."""

    def __init__(self, config: GlipConfig):
        super().__init__()
        self.size, self.strides = config.roi_size, config.feature_strides
        width, channels = config.roi_hidden_size, config.hidden_size
        self.fc1 = nn.Linear(channels * self.size**2, width)
        self.fc2 = nn.Linear(width, channels)
        # boxes as large as an anchor read the level that the anchor stands on
        self.canonical = config.anchor_scale

    def forward(self, maps: list[Tensor], boxes: Tensor) -> Tensor:
        """boxes (B, K, 4) xyxy pixels."""
        b, k, _ = boxes.shape
        side = (boxes[..., 2:] - boxes[..., :2] + 1).clamp(min=1).prod(-1).sqrt()
        level = torch.log2(side / (self.canonical * self.strides[0])).round().clamp(0, len(maps) - 1).flatten()
        index = torch.arange(b, device=boxes.device).repeat_interleave(k).to(boxes.dtype)
        rois = torch.cat([index[:, None], boxes.reshape(-1, 4)], 1)
        out = boxes.new_zeros(b * k, maps[0].shape[1], self.size, self.size, dtype=maps[0].dtype)
        for i, (m, stride) in enumerate(zip(maps, self.strides, strict=True)):
            chosen = (level == i).nonzero().flatten()
            if chosen.numel():
                picked = roi_align(
                    m.float().contiguous(),  # half precision would round the boxes to 8 pixels
                    rois[chosen].float(),
                    self.size,
                    1.0 / stride,
                    sampling_ratio=2,
                    aligned=True,
                )
                out = out.index_copy(0, chosen, picked.to(out.dtype))
        return F.relu(self.fc2(F.relu(self.fc1(out.flatten(1))))).view(b, k, -1)


@torch.no_grad()
def propose(
    config: GlipConfig, objectness: Tensor, deltas: Tensor, anchors: Tensor, image_sizes: Tensor, count: int,
    extra: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The best `count` boxes of every image after NMS, padded: (B, K, 4), and which are real (B, K).

    extra: per image boxes (m, 4) that are proposals anyway; in training the labels', so that each has one.
    """
    boxes = clip(decode(deltas.float(), anchors, tuple(config.box_coder_weights)), image_sizes)
    chosen = []
    for i in range(boxes.shape[0]):
        scores, index = objectness[i].float().topk(min(CANDIDATES, objectness.shape[1]))
        own = boxes[i, index]
        keep = plain_nms(own, scores, config.proposal_nms_threshold)[:count]
        chosen.append(own[keep] if extra is None else torch.cat([extra[i], own[keep]]))
    width = max(c.shape[0] for c in chosen)
    out = boxes.new_zeros(len(chosen), width, 4)
    real = torch.zeros(len(chosen), width, dtype=torch.bool, device=boxes.device)
    for i, c in enumerate(chosen):
        out[i, : c.shape[0]], real[i, : c.shape[0]] = c, True
    return out, real
