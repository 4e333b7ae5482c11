"""Conversion of token logits to scored boxes of phrases (GLIP spec section 8)."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from itertools import accumulate
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
    return _scores(logits, *_padded(tokens, logits.device), aggregation)


def _scores(logits: Tensor, index: Tensor, mask: Tensor, aggregation: str) -> Tensor:
    """Score phrases given as `_padded` tables; see `phrase_scores`."""
    if aggregation not in SCORE_AGGREGATIONS:
        raise ValueError(f"score_agg={aggregation!r}: use one of {', '.join(SCORE_AGGREGATIONS)}")
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
    return keep[_best(scores[keep], max_detections)]


def _best(scores: Tensor, limit: int) -> Tensor | slice:
    """Select the `limit` best of scores (n,), with all that equal the last; 0 or less: all."""
    return scores >= scores.topk(limit).values[-1] if 0 < limit < scores.numel() else slice(None)


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
    device = outputs.logits.device
    tables = [_padded(own, torch.device("cpu")) for own in tokens]
    if device.type != "cpu":  # one copy for all
        tables = _moved(tables, device)
    scores = centerness.new_full((batch, sum(sizes), max(map(len, tokens), default=0)), -math.inf)
    for i, table in enumerate(tables):
        scores[i, :, : len(tokens[i])] = _scores(outputs.logits[i].float(), *table, score_agg)
    wrong = (scores.isnan().flatten(1).any(1) | boxes.isnan().flatten(1).any(1)).tolist()
    if True in wrong:
        raise FloatingPointError(
            f"outputs: caption {wrong.index(True)} has scores or boxes of NaN; want bfloat16 or float32 weights"
        )
    row, location, label = _candidates(scores, centerness, sizes, threshold, pre_nms_top_n)
    candidate = boxes[row, location]
    whole = (sides(candidate) >= 0).all(-1)
    row, location, label, candidate = row[whole], location[whole], label[whole], candidate[whole]
    combined = scores[row, location, label]
    if given is not None:
        combined = (combined * centerness[row, location]).sqrt()
    kept = nms(candidate, combined, row * scores.shape[2] + label, nms_threshold)
    ratio = None
    if target_sizes is not None:
        ratio = (torch.tensor(target_sizes, device=device) / outputs.image_sizes).flip(1).repeat(1, 2)
    results = []
    for i, own in enumerate(kept.split(row[kept].bincount(minlength=batch).tolist())):
        own = own[_best(combined[own], max_detections)]
        place, labels, (index, mask) = location[own], label[own], tables[i]
        words = outputs.logits[i].float()[place[:, None], index[labels]].sigmoid()
        real = mask[labels]
        results.append(
            {
                "scores": combined[own],
                "boxes": candidate[own] if ratio is None else candidate[own] * ratio[i],
                "labels": labels,
                "token_mean": (words * real).sum(-1) / real.sum(-1).clamp(min=1),
                "token_min": words.masked_fill(real == 0, 1.0).amin(-1),
                "token_max": (words * real).amax(-1),
                "centerness": centerness[i, place],
            }
        )
    return results


def _moved(tables: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Copy the `_padded` tables of several captions to a device at once."""
    shapes = [index.shape for index, _ in tables]
    counts = [index.numel() for index, _ in tables]
    indices = torch.cat([index.flatten() for index, _ in tables]).to(device, non_blocking=True)
    masks = torch.cat([mask.flatten() for _, mask in tables]).to(device, non_blocking=True)
    parts = zip(indices.split(counts), masks.split(counts), shapes, strict=True)
    return [(index.view(shape), mask.view(shape)) for index, mask, shape in parts]


def _candidates(
    scores: Tensor, centerness: Tensor, sizes: list[int], threshold: float, top_n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Select (row, location, label) above `threshold`, per row and level `top_n` by score x centerness.

    scores (B, N, K), centerness (B, N). Ordered by row and level.
    """
    row, location, label = (scores > threshold).nonzero(as_tuple=True)
    ends = torch.tensor(list(accumulate(sizes)), device=scores.device)
    level = torch.bucketize(location, ends, right=True)
    counts = (row * len(sizes) + level).bincount(minlength=len(scores) * len(sizes)).tolist()
    if max(counts, default=0) > top_n:
        rank = scores[row, location, label] * centerness[row, location]
        own = torch.arange(len(row), device=row.device).split(counts)
        best = torch.cat([i if len(i) <= top_n else i[rank[i].topk(top_n).indices] for i in own])
        row, location, label = row[best], location[best], label[best]
    return row, location, label
