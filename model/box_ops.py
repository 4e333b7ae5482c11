"""Box arithmetic of the detector: anchors, coder, overlap and NMS, all on xyxy boxes in pixels.

A box covers its last pixel too, so a width is x2 - x1 + 1 ("+1" below; GLIP spec 0.6 and section
5).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import batched_nms

MAX_LOG_RATIO = math.log(1000.0 / 16)


def pyramid_anchors(shapes: tuple[tuple[int, int], ...], strides: tuple[int, ...], scale: float) -> Tensor:
    """Make one square anchor per location: (N, 4), row-major, level after level.

    shapes: (height, width) of each level. Sides are `scale * stride` (+1). Source: GLIP spec
    section 5.
    """
    out = []
    for (h, w), s in zip(shapes, strides):
        low, high = s * (1 - scale) / 2, s * (1 + scale) / 2 - 1
        y, x = torch.meshgrid(torch.arange(h) * s, torch.arange(w) * s, indexing="ij")
        shift = torch.stack([x, y, x, y], -1).reshape(-1, 4)
        out.append(shift + torch.tensor([low, low, high, high]))
    return torch.cat(out).float()


def centres(boxes: Tensor) -> Tensor:
    """Compute the centres (..., 2) of boxes (..., 4)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def sides(boxes: Tensor) -> Tensor:
    """Compute the +1 widths and heights (..., 2) of boxes (..., 4)."""
    return boxes[..., 2:] - boxes[..., :2] + 1


def encode(boxes: Tensor, anchors: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Encode boxes (..., 4) as weighted centre shifts and log size ratios to anchors (..., 4)."""
    size = sides(anchors)
    shift, ratio = (centres(boxes) - centres(anchors)) / size, (sides(boxes) / size).log()
    return torch.cat([shift, ratio], -1) * boxes.new_tensor(weights)


def decode(deltas: Tensor, anchors: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Decode deltas (..., 4) on anchors (..., 4) to boxes; clamps log ratios once weighted."""
    shift, ratio = (deltas / deltas.new_tensor(weights)).split(2, -1)
    size = sides(anchors)
    centre = shift * size + centres(anchors)
    half = (ratio.clamp(max=MAX_LOG_RATIO).exp() * size - 1) / 2
    return torch.cat([centre - half, centre + half], -1)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Compute the +1 IoU of broadcastable boxes (..., 4)."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inter = (high - low + 1).clamp(min=0).prod(-1)
    return inter / (sides(a).prod(-1) + sides(b).prod(-1) - inter)


def paired_giou(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """Compute the GIoU, without the +1, of boxes (n, 4) and (n, 4), pair by pair.

    eps is added to the union and to the enclosing area (GLIP spec section 7). torchvision's loss
    adds it elsewhere, which changes the last digits of a training's weights.
    """
    a = torch.cat([a[:, :2], torch.maximum(a[:, :2], a[:, 2:])], -1)
    inter = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(-1)
    union = (a[:, 2:] - a[:, :2]).prod(-1) + (b[:, 2:] - b[:, :2]).prod(-1) - inter + eps
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(-1) + eps
    return inter / union - (hull - union) / hull


def clip(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Clip boxes (B, n, 4) to [0, W-1] x [0, H-1]; image_sizes: (B, 2) height, width."""
    limit = (image_sizes.flip(-1).to(boxes.dtype) - 1).repeat(1, 2)[:, None]
    return torch.minimum(boxes.clamp(min=0), limit)


def nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Select the survivors of per-label NMS: indices (k,), ascending.

    boxes (n, 4) clipped to the image (finite, not negative), scores (n,), labels (n,) from 0. A +1
    IoU strictly above `threshold` suppresses; of equal scores the earlier box wins. Source: GLIP
    spec section 8.
    """
    # double: torchvision shifts each label's boxes by the largest coordinate, which rounds float32
    corners = boxes.double() + boxes.new_tensor([0, 0, 1, 1])
    return batched_nms(corners, scores.double(), labels, threshold).sort().values
