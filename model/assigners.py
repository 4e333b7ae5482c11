"""Which anchors learn which boxes.

Result everywhere: `matched` (B, N) int64: a row of the batch's concatenated boxes, NEGATIVE, or IGNORED.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .box_ops import paired_iou
from .targets import Targets

NEGATIVE = -1
IGNORED = -2
IGNORE_IOU = 0.5
# Weights of the bipartite matching's costs: words, corner distance, overlap
HUNGARIAN_COSTS = (2.0, 5.0, 2.0)


def atss(anchors: Tensor, level_sizes: list[int], boxes: Tensor, image_index: Tensor, batch: int, topk: int) -> Tensor:
    """Adaptive training sample selection (GLIP spec section 7).

    anchors (N, 4) shared by the batch, level_sizes: anchors a level, boxes (G, 4) of all images, image_index
    (G,) the image of each. Returns `matched` (batch, N). Per level the `topk` anchors nearest to a box's centre
    are candidates; positive are those with IoU >= mean + std of the candidates' and the centre inside the box.
    """
    n = anchors.shape[0]
    if boxes.shape[0] == 0:
        return torch.full((batch, n), NEGATIVE, device=anchors.device)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    box_centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    distance = (centres[None] - box_centres[:, None]).pow(2).sum(-1).sqrt()
    candidates, start = [], 0
    for size in level_sizes:
        nearest = distance[:, start : start + size].topk(min(topk, size), largest=False).indices
        candidates.append(nearest + start)
        start += size
    candidate = torch.cat(candidates, 1)  # (G, sum of k)
    iou = paired_iou(anchors[candidate], boxes[:, None])
    threshold = iou.mean(1) + iou.std(1)
    point = centres[candidate]
    margin = torch.minimum(point - boxes[:, None, :2], boxes[:, None, 2:] - point).amin(-1)
    row, column = ((iou >= threshold[:, None]) & (margin > 0.01)).nonzero(as_tuple=True)
    slot = image_index[row] * n + candidate[row, column]
    return highest_overlap_wins(slot, row, iou[row, column], batch, n)


def highest_overlap_wins(slot: Tensor, row: Tensor, iou: Tensor, batch: int, n: int) -> Tensor:
    """Pairs (slot = image * n + anchor, box row, IoU) -> `matched` (batch, n): an anchor takes its best box."""
    best = torch.full((batch * n,), -1.0, device=iou.device, dtype=iou.dtype)
    best.scatter_reduce_(0, slot, iou, "amax")
    wins = iou == best[slot]
    last = torch.iinfo(torch.long).max
    matched = torch.full((batch * n,), last, device=iou.device, dtype=torch.long)
    matched.scatter_reduce_(0, slot[wins], row[wins], "amin")  # equal overlaps: the first box
    return torch.where(matched == last, NEGATIVE, matched).view(batch, n)


def max_iou(
    anchors: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    batch: int,
    positive: float,
    negative: float,
    rescue: bool,
) -> Tensor:
    """Many-to-one: an anchor takes the box it overlaps most if IoU >= `positive`, none if < `negative`.

    anchors (N, 4) or (batch, N, 4). Between the thresholds: IGNORED. rescue: a box's own best anchors take it
    whatever their overlap, so that no box goes untaught.
    """
    n = anchors.shape[-2]
    matched = torch.full((batch, n), NEGATIVE, device=anchors.device)
    for i in range(batch):
        rows = (image_index == i).nonzero().flatten()
        if rows.numel() == 0:
            continue
        own = anchors if anchors.dim() == 2 else anchors[i]
        iou = paired_iou(own[:, None], boxes[rows][None])  # (N, n boxes)
        best, index = iou.max(1)
        matched[i] = torch.where(best >= positive, rows[index], torch.where(best < negative, NEGATIVE, IGNORED))
        if rescue:
            top = iou.amax(0)
            anchor, box = ((iou == top) & (top > 0)).nonzero(as_tuple=True)
            matched[i, anchor] = rows[box]
    return matched


def hungarian(logits: Tensor, predicted: Tensor, targets: Targets) -> Tensor:
    """One-to-one: each box gets the anchor whose prediction is cheapest, over the whole image at once.

    logits (B, N, T), predicted boxes (B, N, 4). Cost: focal cost of the box's tokens, corner distance relative to
    the scene, 1 - IoU.
    """
    batch, n, _ = logits.shape
    matched = torch.full((batch, n), NEGATIVE, device=logits.device)
    words, corners, overlap = HUNGARIAN_COSTS
    for i in range(batch):
        rows = (targets.image_index == i).nonzero().flatten()
        if rows.numel() == 0:
            continue
        p = logits[i].sigmoid().clamp(1e-6, 1 - 1e-6)
        gain = -0.25 * (1 - p) ** 2 * p.log() + 0.75 * p**2 * (1 - p).log()
        share = targets.positive_map[rows]
        share = share / share.sum(1, keepdim=True).clamp(min=1)
        boxes = targets.boxes[rows]
        scale = boxes.max().clamp(min=1)
        distance = (predicted[i][:, None] - boxes[None]).abs().sum(-1) / scale
        iou = paired_iou(predicted[i][:, None], boxes[None])
        cost = words * gain @ share.t() + corners * distance + overlap * (1 - iou)
        cost = cost.nan_to_num(1e6, 1e6, -1e6)  # a broken prediction must reach the loss, which names it
        anchor, box = linear_sum_assignment(cost.cpu().numpy())
        matched[i, torch.as_tensor(anchor, device=matched.device)] = rows[torch.as_tensor(box, device=rows.device)]
    return matched


def ignore_negatives(matched: Tensor, anchors: Tensor, areas: list[Tensor | None]) -> Tensor:
    """Mark negatives in an ignore box (their centre, or IoU >= 0.5) as IGNORED.

    anchors (N, 4) or (B, N, 4); areas: per image (m, 4) or None.
    """
    if all(a is None for a in areas):
        return matched
    matched = matched.clone()
    for i, area in enumerate(areas):
        if area is None:
            continue
        own = anchors if anchors.dim() == 2 else anchors[i]
        point = ((own[:, :2] + own[:, 2:]) / 2)[:, None]
        inside = ((point >= area[None, :, :2]) & (point <= area[None, :, 2:])).all(-1)
        hit = (inside | (paired_iou(own[:, None], area[None]) >= IGNORE_IOU)).any(1)
        matched[i] = torch.where(hit & (matched[i] == NEGATIVE), IGNORED, matched[i])
    return matched
