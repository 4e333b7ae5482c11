"""Boxes: anchors, coder, overlaps and NMS. Boxes are xyxy in pixels.

Inside the detector a box covers its end pixel too, so widths are x2 - x1 + 1 ("+1" below; GLIP spec 0.6 and
section 5). GIoU does not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import batched_nms

MAX_LOG_RATIO = math.log(1000.0 / 16)


def pyramid_anchors(shapes: tuple[tuple[int, int], ...], strides: tuple[int, ...], scale: float) -> Tensor:
    """(N, 4) one square anchor a location, row-major, level after level; sides `scale * stride` (+1)."""
    out = []
    for (h, w), s in zip(shapes, strides):
        low, high = s * (1 - scale) / 2, s * (1 + scale) / 2 - 1
        y, x = torch.meshgrid(torch.arange(h) * s, torch.arange(w) * s, indexing="ij")
        shift = torch.stack([x, y, x, y], -1).reshape(-1, 4)
        out.append(shift + torch.tensor([low, low, high, high]))
    return torch.cat(out).float()


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2] + 1


def encode(boxes: Tensor, anchors: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Regression targets (..., 4) of boxes against anchors: weighted centre shifts and log size ratios."""
    centre, size = _centre_size(boxes)
    anchor_centre, anchor_size = _centre_size(anchors)
    scale = boxes.new_tensor(weights)
    return torch.cat([(centre - anchor_centre) / anchor_size, (size / anchor_size).log()], -1) * scale


def decode(deltas: Tensor, anchors: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Boxes (..., 4) of deltas (..., 4) on anchors; the log ratio is clamped after its weight is divided out."""
    scale = deltas.new_tensor(weights)
    anchor_centre, anchor_size = _centre_size(anchors)
    deltas = deltas / scale
    centre = deltas[..., :2] * anchor_size + anchor_centre
    half = (deltas[..., 2:].clamp(max=MAX_LOG_RATIO).exp() * anchor_size - 1) / 2
    return torch.cat([centre - half, centre + half], -1)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """+1 IoU of broadcastable boxes (..., 4)."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inter = (high - low + 1).clamp(min=0).prod(-1)
    area_a, area_b = (a[..., 2:] - a[..., :2] + 1).prod(-1), (b[..., 2:] - b[..., :2] + 1).prod(-1)
    return inter / (area_a + area_b - inter)


def paired_giou(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """GIoU without the +1 of boxes (n, 4) pair by pair; eps is added to the union and the enclosing area."""
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
    """Indices (k,) of survivors, ascending: per label, a +1 IoU strictly above `threshold` suppresses.

    boxes (n, 4) clipped to the image (finite, not negative), scores (n,), labels (n,) from 0. Of equal
    scores the earlier box wins. Source: GLIP spec section 8.
    """
    # double: torchvision moves each label's boxes apart by the largest coordinate, which rounds float32
    corners = boxes.double() + boxes.new_tensor([0, 0, 1, 1])
    return batched_nms(corners, scores.double(), labels, threshold).sort().values
