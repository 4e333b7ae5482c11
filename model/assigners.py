"""Which anchors learn which boxes. Every assigner works on the whole batch at once.

Result: `matched` (B, N) int64: a row of the batch's concatenated boxes, NEGATIVE, or IGNORED.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .box_ops import paired_iou

NEGATIVE = -1
IGNORED = -2


def atss(
    anchors: Tensor, level_sizes: list[int], boxes: Tensor, image_index: Tensor, batch: int, topk: int
) -> Tensor:
    """Adaptive training sample selection (GLIP spec section 7).

    anchors (N, 4) shared by the batch, level_sizes: anchors a level, boxes (G, 4) of all images, image_index (G,)
    the image of each. Returns `matched` (batch, N). Per level the `topk` anchors nearest to a box's centre are
    candidates; positive are those with IoU >= mean + std of the candidates' and the centre inside the box.
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
    positive = (iou >= threshold[:, None]) & (margin > 0.01)
    row, column = positive.nonzero(as_tuple=True)
    return highest_overlap_wins(
        image_index[row] * n + candidate[row, column], row, iou[row, column], batch, n
    )


def highest_overlap_wins(slot: Tensor, row: Tensor, iou: Tensor, batch: int, n: int) -> Tensor:
    """Pairs (slot = image * n + anchor, box row, IoU) -> `matched` (batch, n): an anchor goes to its best box."""
    best = torch.full((batch * n,), -1.0, device=iou.device, dtype=iou.dtype).scatter_reduce_(
        0, slot, iou, "amax"
    )
    wins = iou == best[slot]
    last = torch.iinfo(torch.long).max
    matched = torch.full((batch * n,), last, device=iou.device, dtype=torch.long)
    matched.scatter_reduce_(0, slot[wins], row[wins], "amin")  # equal overlaps: the first box
    return torch.where(matched == last, NEGATIVE, matched).view(batch, n)
