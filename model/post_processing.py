"""Conversion of token logits to scored boxes of phrases (GLIP spec section 8)."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .box_ops import clip, nms, sides
from .configuration_glip import SCORE_AGGREGATIONS

Tokens = Sequence[Sequence[int]]


def check_number(name: str, value: Any, least: float = -math.inf, most: float = math.inf, whole: bool = False) -> None:
    """Raise ValueError unless a value is one number, `whole` or not, within the limits."""
    try:
        number = math.nan if isinstance(value, (str, bool)) else operator.index(value) if whole else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number <= most:
        limits = ", 0 to 1" if most == 1 else f", {least:g} or more" if least > -math.inf else ""
        raise ValueError(f"{name}: found {value!r}; want one {'whole ' * whole}number{limits}")


def check_sizes(target_sizes: Any, count: int) -> list[tuple[float, float]]:
    """List (height, width) of `count` images; raises ValueError for other counts, shapes or values."""
    try:
        sizes = [tuple(map(float, size)) for size in target_sizes]
    except TypeError as error:
        raise ValueError(f"target_sizes: found {target_sizes!r}; want (height, width) of every image") from error
    if len(sizes) != count:
        raise ValueError(f"target_sizes: found {len(sizes)}; want one for each of the outputs' {count} images")
    for size in sizes:
        if len(size) != 2 or not min(size) > 0:
            raise ValueError(f"target_sizes: found {size}; want the height and width of every image, in pixels")
    return sizes  # type: ignore[return-value]


def phrase_scores(logits: Tensor, tokens: Tokens, aggregation: str) -> Tensor:
    """Score K phrases, lists of tokens, at N anchors: (N, T) logits to (N, K) probabilities.

    aggregation: "mean", "max" or "geometric" mean of a phrase's token probabilities, or their "sum"
    for the cross-entropy loss, which divides a phrase's probability among its tokens. A phrase
    without tokens scores -1 and is never kept. Raises ValueError for another aggregation.
    """
    if aggregation not in SCORE_AGGREGATIONS:
        raise ValueError(f"score_agg={aggregation!r}: use one of {', '.join(SCORE_AGGREGATIONS)}")
    index, mask = _padded(tokens, logits.device)
    count = mask.sum(-1)
    values = logsigmoid(logits) if aggregation == "geometric" else logits.sigmoid()
    if aggregation == "max":
        scores = (values[:, index] * mask).amax(-1)
    else:
        scores = (values[:, index] * mask).sum(-1)
        scores = scores.clamp(max=1) if aggregation == "sum" else scores / count.clamp(min=1)
    return (scores.exp() if aggregation == "geometric" else scores).masked_fill(count == 0, -1.0)


def _padded(tokens: Tokens, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad K token lists to index (K, m) int64 and mask (K, m) float."""
    width = max((len(t) for t in tokens), default=0) or 1
    index = torch.tensor([[*t, *[-1] * (width - len(t))] for t in tokens], device=device).view(-1, width)
    return index.clamp(min=0).long(), (index >= 0).float()


def suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, nms_threshold: float = 0.6, max_detections: int = 100
) -> Tensor:
    """Select the survivors of per-label NMS and of the limit: indices (k,), ascending.

    boxes (n, 4), scores (n,), labels (n,), as for `box_ops.nms`. Ties at the limit may exceed it.
    """
    keep = nms(boxes, scores, labels, nms_threshold)
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
    """Find the boxes of every caption's phrases in a `GlipObjectDetectionOutput`.

    tokens: per caption, per phrase, token indices. threshold: on the phrase's probability, before
    centerness. target_sizes: (height, width) to scale the boxes to; None: the resized image's
    pixels. score_agg: see `phrase_scores`; None: the model's own. Returns per caption, not sorted
    by score: `scores` sqrt(probability x centerness), `boxes` (k, 4), `labels` (phrase index),
    `token_mean`, `token_min`, `token_max` (of the phrase's token probabilities), `centerness` (a
    probability). Raises ValueError when counts differ and for settings out of range, FloatingPointError
    for scores of NaN. Source: GLIP spec section 8.
    """
    batch = outputs.logits.shape[0]
    check_number("threshold", threshold, most=1)
    check_number("nms_threshold", nms_threshold, most=1)
    check_number("max_detections", max_detections, whole=True)
    check_number("pre_nms_top_n", pre_nms_top_n, least=1, whole=True)
    if score_agg is None:
        score_agg = SCORE_AGGREGATIONS[int(outputs.score_aggregation[0])]
    if len(tokens) != batch:
        raise ValueError(f"phrases: found {len(tokens)}; want one for each of {batch} captions")
    if target_sizes is not None:
        target_sizes = check_sizes(target_sizes, batch)
    sizes = outputs.level_shapes[0].prod(-1).tolist()
    boxes = clip(outputs.pred_boxes.float(), outputs.image_sizes)
    # without centerness (two-stage head) a score is the phrase's probability itself
    given = outputs.centerness
    centerness = torch.ones_like(outputs.logits[..., 0]).float() if given is None else given.float().sigmoid()
    results = []
    for i in range(batch):
        logits = outputs.logits[i].float()
        scores = phrase_scores(logits, tokens[i], score_agg)
        if scores.isnan().any() or boxes[i].isnan().any():
            raise FloatingPointError(
                f"outputs: caption {i} has scores or boxes of NaN; want bfloat16 or float32 weights"
            )
        location, label = _candidates(scores, centerness[i], sizes, threshold, pre_nms_top_n)
        candidate = boxes[i, location]
        whole = (sides(candidate) >= 0).all(-1)
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
            "token_max": (words * real).amax(-1),
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
    """Select (location, label) pairs above `threshold`, per level `top_n` by score x centerness."""
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
