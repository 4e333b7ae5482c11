"""Assignment of boxes to anchors for training.

Every assigner returns `matched` (B, N) int64: a row of the batch's concatenated boxes, NEGATIVE or
IGNORED. `anchors` are (N, 4) shared by the batch or, where a function says so, (B, N, 4).
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .box_ops import centres, paired_iou
from .targets import Targets

NEGATIVE = -1
IGNORED = -2
IGNORE_IOU = 0.5
# Cost weights of the bipartite matching: words, corner distance, overlap
HUNGARIAN_COSTS = (2.0, 5.0, 2.0)


def atss(anchors: Tensor, level_sizes: list[int], boxes: Tensor, image_index: Tensor, batch: int, topk: int) -> Tensor:
    """Assign by adaptive training sample selection (GLIP spec section 7).

    anchors (N, 4), level_sizes: number of anchors per level, boxes (G, 4) of all images,
    image_index (G,) the image of each. Candidates are the `topk` anchors per level nearest to a
    box's centre; positive are those with IoU >= mean + std of the candidates' and the centre inside
    the box.
    """
    n = anchors.shape[0]
    if boxes.shape[0] == 0:
        return torch.full((batch, n), NEGATIVE, device=anchors.device)
    points = centres(anchors)
    distance = (points[None] - centres(boxes)[:, None]).pow(2).sum(-1).sqrt()
    candidates, start = [], 0
    for part in distance.split(level_sizes, 1):
        candidates.append(part.topk(min(topk, part.shape[1]), largest=False).indices + start)
        start += part.shape[1]
    candidate = torch.cat(candidates, 1)  # (G, sum of k)
    iou = paired_iou(anchors[candidate], boxes[:, None])
    threshold = iou.mean(1) + iou.std(1)
    point = points[candidate]
    margin = torch.minimum(point - boxes[:, None, :2], boxes[:, None, 2:] - point).amin(-1)
    row, column = ((iou >= threshold[:, None]) & (margin > 0.01)).nonzero(as_tuple=True)
    slot = image_index[row] * n + candidate[row, column]
    return highest_overlap_wins(slot, row, iou[row, column], batch, n)


def highest_overlap_wins(slot: Tensor, row: Tensor, iou: Tensor, batch: int, n: int) -> Tensor:
    """Resolve pairs (slot = image * n + anchor, box row, IoU) to one box per anchor: (batch, n)."""
    best = torch.full((batch * n,), -1.0, device=iou.device, dtype=iou.dtype)
    best.scatter_reduce_(0, slot, iou, "amax")
    wins = iou == best[slot]
    last = torch.iinfo(torch.long).max
    matched = torch.full((batch * n,), last, device=iou.device, dtype=torch.long)
    matched.scatter_reduce_(0, slot[wins], row[wins], "amin")  # equal overlaps: the first box
    return torch.where(matched == last, NEGATIVE, matched).view(batch, n)


def max_iou(
    anchors: Tensor, targets: Targets, batch: int, positive: float, negative: float, rescue: bool = False
) -> Tensor:
    """Assign many to one: an anchor takes the box it overlaps most.

    anchors (N, 4) or (batch, N, 4). IoU >= `positive`: the box; < `negative`: NEGATIVE; between:
    IGNORED. rescue: the anchors that overlap a box most take it whatever the overlap, so that every
    box has one.
    """
    anchors = anchors.expand(batch, -1, -1)
    matched = torch.full(anchors.shape[:2], NEGATIVE, device=anchors.device)
    for i in range(batch):
        rows = targets.rows(i)
        if rows.numel() == 0:
            continue
        iou = paired_iou(anchors[i, :, None], targets.boxes[rows])  # (N, boxes)
        best, index = iou.max(1)
        matched[i] = torch.where(best >= positive, rows[index], torch.where(best < negative, NEGATIVE, IGNORED))
        if rescue:
            top = iou.amax(0)
            anchor, box = ((iou == top) & (top > 0)).nonzero(as_tuple=True)
            matched[i, anchor] = rows[box]
    return matched


def hungarian(probabilities: Tensor, exclusive: bool, predicted: Tensor, targets: Targets) -> Tensor:
    """Assign one to one: the cheapest matching of an image's boxes and predictions.

    probabilities (B, N, T) of the tokens, `exclusive` when they and "no object" sum to one;
    predicted boxes (B, N, 4). The cost sums the words' cost, the corner distance relative to the
    largest coordinate, and 1 - IoU. The words' cost is the loss's kind: minus the mean probability
    of the box's tokens where they exclude each other, else their mean focal cost.
    """
    matched = torch.full(probabilities.shape[:2], NEGATIVE, device=probabilities.device)
    words, corners, overlap = HUNGARIAN_COSTS
    for i in range(len(probabilities)):
        rows = targets.rows(i)
        if rows.numel() == 0:
            continue
        p = probabilities[i].clamp(1e-6, 1 - 1e-6)
        gain = -p if exclusive else -0.25 * (1 - p) ** 2 * p.log() + 0.75 * p**2 * (1 - p).log()
        share = targets.positive_map[rows]
        share = share / share.sum(1, keepdim=True).clamp(min=1)
        boxes = targets.boxes[rows]
        distance = torch.cdist(predicted[i], boxes, p=1) / boxes.max().clamp(min=1)
        iou = paired_iou(predicted[i][:, None], boxes)
        cost = words * gain @ share.t() + corners * distance + overlap * (1 - iou)
        cost = cost.nan_to_num(1e6, 1e6, -1e6)  # non-finite predictions must reach the loss, which reports them
        anchor, box = (torch.as_tensor(x, device=rows.device) for x in linear_sum_assignment(cost.cpu().numpy()))
        matched[i, anchor] = rows[box]
    return matched


def ignore_negatives(matched: Tensor, anchors: Tensor, areas: list[Tensor | None]) -> Tensor:
    """Mark negatives inside an ignore box (by their centre, or by IoU >= 0.5) as IGNORED.

    matched (B, N), anchors (N, 4) or (B, N, 4); areas: per image (m, 4) or None.
    """
    matched = matched.clone()
    anchors = anchors.expand(len(matched), -1, -1)
    for i, area in enumerate(areas):
        if area is None:
            continue
        own = anchors[i, :, None]
        point = centres(own)
        inside = ((point >= area[:, :2]) & (point <= area[:, 2:])).all(-1)
        hit = (inside | (paired_iou(own, area) >= IGNORE_IOU)).any(1)
        matched[i] = torch.where(hit & (matched[i] == NEGATIVE), IGNORED, matched[i])
    return matched
