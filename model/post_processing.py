"""From token logits to boxes (GLIP spec section 8), without a loop over boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import box_ops

Tokens = Sequence[Sequence[int]]


def all_words(attention_mask: Tensor) -> list[list[int]]:
    """Per caption the attended tokens without the first and the last, [CLS] and [SEP]. attention_mask: (B, T)."""
    return [mask.nonzero().flatten().tolist()[1:-1] for mask in attention_mask]


def phrase_scores(logits: Tensor, tokens: Tokens, aggregation: str) -> Tensor:
    """(N, T) logits, K token lists -> (N, K) probabilities: mean, max, geometric mean or sum over a phrase's tokens.

    "sum" suits the cross-entropy loss, where a phrase's tokens share its probability. A phrase without tokens
    scores -1: it is never kept. Raises ValueError for another aggregation.
    """
    index, mask = _padded(tokens, logits.device)
    if aggregation == "mean":
        gathered = logits.sigmoid()[:, index]
        scores = (gathered * mask).sum(-1) / mask.sum(-1).clamp(min=1)
    elif aggregation == "max":
        scores = logits[:, index].masked_fill(mask == 0, -torch.inf).amax(-1).sigmoid()
    elif aggregation == "sum":
        scores = (logits.sigmoid()[:, index] * mask).sum(-1).clamp(max=1)
    elif aggregation == "geometric":
        gathered = torch.nn.functional.logsigmoid(logits)[:, index]
        scores = ((gathered * mask).sum(-1) / mask.sum(-1).clamp(min=1)).exp()
    else:
        raise ValueError(f"score_agg={aggregation!r}: use mean, max, geometric or sum")
    return scores.masked_fill(mask.sum(-1) == 0, -1.0)


def _padded(tokens: Tokens, device: torch.device) -> tuple[Tensor, Tensor]:
    """K token lists -> index (K, m) int64 and mask (K, m) float."""
    width = max((len(t) for t in tokens), default=0) or 1
    index = torch.tensor([[*t, *[0] * (width - len(t))] for t in tokens], dtype=torch.long).view(-1, width)
    mask = torch.tensor([[1.0] * len(t) + [0.0] * (width - len(t)) for t in tokens]).view(-1, width)
    return index.to(device), mask.to(device)


def suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, nms_threshold: float = 0.6, max_detections: int = 100
) -> Tensor:
    """Indices (k,), ascending, of what survives per-label NMS and the limit; ties at the limit may exceed it.

    boxes (n, 4), scores (n,), labels (n,).
    """
    keep = box_ops.nms(boxes, scores, labels, nms_threshold)
    if 0 < max_detections < keep.numel():
        left = scores[keep]
        keep = keep[left >= left.topk(max_detections).values[-1]]
    return keep


def detections(
    outputs: Any,
    tokens: Sequence[Tokens],
    *,
    threshold: float = 0.05,
    target_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
    nms_threshold: float = 0.6,
    score_agg: str | None = None,
    max_detections: int = 100,
    pre_nms_top_n: int = 1000,
) -> list[dict[str, Tensor]]:
    """Boxes for every caption of a `GlipObjectDetectionOutput`.

    tokens: per caption, per phrase, token indices. threshold: on the phrase's probability, before centerness.
    target_sizes: (height, width) to scale the boxes to; None leaves them in the resized image's pixels.
    Per caption: `scores` sqrt(probability x centerness), `boxes` (k, 4), `labels` (phrase index), `token_mean`, `token_min`,
    `token_max` (the phrase's token probabilities), `centerness` (a probability). Not sorted by score.
    score_agg: see `phrase_scores`; None: the model's own. Raises ValueError when counts differ.
    """
    batch = outputs.logits.shape[0]
    score_agg = score_agg or getattr(outputs, "score_aggregation", None) or "mean"
    if len(tokens) != batch or (target_sizes is not None and len(target_sizes) != batch):
        raise ValueError(f"{batch} captions, but phrases for {len(tokens)} and target sizes for {_count(target_sizes)}")
    sizes = outputs.level_shapes.prod(-1).tolist()
    boxes = box_ops.clip(outputs.pred_boxes.float(), outputs.image_sizes)
    # the two-stage head has no centerness: there a score is the phrase's probability itself
    given = outputs.centerness
    centerness = torch.ones_like(outputs.logits[..., 0]).float() if given is None else given.float().sigmoid()
    results = []
    for i in range(batch):
        logits = outputs.logits[i].float()
        if not tokens[i]:
            results.append(_empty(logits.device))
            continue
        scores = phrase_scores(logits, tokens[i], score_agg)
        location, label = _candidates(scores, centerness[i], sizes, threshold, pre_nms_top_n)
        candidate = boxes[i, location]
        whole = (candidate[:, 2:] - candidate[:, :2] + 1 >= 0).all(-1)
        location, label, candidate = location[whole], label[whole], candidate[whole]
        combined = scores[location, label]
        if given is not None:
            combined = (combined * centerness[i, location]).sqrt()
        kept = suppress(candidate, combined, label, nms_threshold, max_detections)
        location, label = location[kept], label[kept]
        index, mask = _padded(tokens[i], logits.device)
        words = logits[location[:, None], index[label]].sigmoid()
        real = mask[label]
        result = {
            "scores": combined[kept],
            "boxes": candidate[kept],
            "labels": label,
            "token_mean": (words * real).sum(-1) / real.sum(-1).clamp(min=1),
            "token_min": words.masked_fill(real == 0, 1.0).amin(-1),
            "token_max": words.masked_fill(real == 0, 0.0).amax(-1),
            "centerness": centerness[i, location],
        }
        if target_sizes is not None:
            ratio = torch.as_tensor(target_sizes[i], device=logits.device).float() / outputs.image_sizes[i]
            result["boxes"] = result["boxes"] * ratio.flip(0).repeat(2)
        results.append(result)
    return results


def _candidates(
    scores: Tensor, centerness: Tensor, sizes: list[int], threshold: float, top_n: int
) -> tuple[Tensor, Tensor]:
    """(location, label) pairs above the threshold; per level the `top_n` by score x centerness."""
    locations, labels, start = [], [], 0
    for size in sizes:
        part = scores[start : start + size]
        location, label = (part > threshold).nonzero(as_tuple=True)
        if location.numel() > top_n:
            rank = part[location, label] * centerness[start + location]
            best = rank.topk(top_n).indices
            location, label = location[best], label[best]
        locations.append(location + start)
        labels.append(label)
        start += size
    return torch.cat(locations), torch.cat(labels)


def _count(target_sizes: Any) -> str:
    return "none" if target_sizes is None else str(len(target_sizes))


def _empty(device: torch.device) -> dict[str, Tensor]:
    none = torch.zeros(0, device=device)
    result = dict.fromkeys(("scores", "token_mean", "token_min", "token_max", "centerness"), none)
    return {**result, "boxes": torch.zeros(0, 4, device=device), "labels": none.long()}
