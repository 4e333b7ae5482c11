"""GLIP's training losses over dense anchors (GLIP spec section 7), and the options noisy labels need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .assigners import IGNORED, NEGATIVE, atss
from .box_ops import decode, encode, paired_giou, paired_iou
from .configuration_glip import GlipConfig


class NonFiniteLossError(FloatingPointError):
    """A loss is NaN or inf. `terms`: the losses' names; `images`: indices in the batch. Nothing is zeroed."""

    def __init__(self, terms: list[str], images: list[int]):
        self.terms, self.images = terms, images
        super().__init__(f"non-finite loss: terms {', '.join(terms)}; images {images} of the batch")


@dataclass
class Targets:
    """A batch's labels, concatenated. G boxes in all; T tokens.

    boxes (G, 4) xyxy pixels; image_index (G,); positive_map (G, T) 0/1; weights (G,); regress (G,) bool;
    token_keep (B, T) 1 where an absent token is taught as absent; ignore_boxes: per image (m, 4).
    """

    boxes: Tensor
    image_index: Tensor
    positive_map: Tensor
    weights: Tensor
    regress: Tensor
    token_keep: Tensor | None
    ignore_boxes: list[Tensor | None]


def collect_targets(labels: list[dict[str, Any]], tokens: int, device: torch.device) -> Targets:
    """Labels of a batch (see `GlipForObjectDetection.forward`) -> Targets, cut or padded to `tokens` columns.

    Raises ValueError that names the image when shapes within a label disagree.
    """
    boxes, maps, weights, regress, counts, keeps, ignore = [], [], [], [], [], [], []
    for i, label in enumerate(labels):
        box = torch.as_tensor(label["boxes"], dtype=torch.float32, device=device).reshape(-1, 4)
        n = box.shape[0]
        positive = torch.as_tensor(label["positive_map"], device=device)
        if positive.dim() != 2 or positive.shape[0] != n:
            raise ValueError(
                f"labels[{i}]: positive_map {tuple(positive.shape)} does not have one row for each of {n} boxes"
            )
        maps.append(_fit(positive > 0, tokens))
        weight = label.get("weights")
        weight = (
            torch.ones(n, device=device)
            if weight is None
            else torch.as_tensor(weight, dtype=torch.float32, device=device)
        )
        teach = label.get("regress")
        teach = (
            torch.ones(n, dtype=torch.bool, device=device)
            if teach is None
            else torch.as_tensor(teach, device=device).bool()
        )
        if weight.shape != (n,) or teach.shape != (n,):
            raise ValueError(
                f"labels[{i}]: weights {tuple(weight.shape)} and regress {tuple(teach.shape)} must be ({n},)"
            )
        skip = label.get("token_ignore")
        keeps.append(
            None if skip is None else ~_fit(torch.as_tensor(skip, device=device).bool()[None], tokens)[0]
        )
        area = label.get("ignore_boxes")
        area = (
            None if area is None else torch.as_tensor(area, dtype=torch.float32, device=device).reshape(-1, 4)
        )
        ignore.append(None if area is None or area.shape[0] == 0 else area)
        boxes.append(box), weights.append(weight), regress.append(teach), counts.append(n)
    keep = None
    if any(k is not None for k in keeps):
        all_tokens = torch.ones(tokens, dtype=torch.bool, device=device)
        keep = torch.stack([all_tokens if k is None else k for k in keeps]).float()
    image_index = torch.repeat_interleave(torch.arange(len(labels)), torch.tensor(counts)).to(device)
    return Targets(
        torch.cat(boxes),
        image_index,
        torch.cat(maps).float(),
        torch.cat(weights),
        torch.cat(regress),
        keep,
        ignore,
    )


def _fit(x: Tensor, tokens: int) -> Tensor:
    return x[:, :tokens] if x.shape[1] >= tokens else F.pad(x, (0, tokens - x.shape[1]))


def focal_terms(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Elementwise sigmoid focal loss, targets 0/1: alpha_t (1 - p_t)^gamma BCE."""
    wrong = torch.where(targets > 0, -logits, logits)  # logit of the wrong answer
    alpha_t = torch.where(targets > 0, alpha, 1 - alpha)
    return alpha_t * wrong.sigmoid() ** gamma * F.softplus(wrong)


def across_processes(value: Tensor) -> Tensor:
    """Mean of a scalar over data-parallel processes; the value itself without them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
        value = value / torch.distributed.get_world_size()
    return value


def centerness_targets(boxes: Tensor, anchors: Tensor) -> Tensor:
    """sqrt of the ratios of distances from the anchor's centre to opposite sides, (n,)."""
    point = (anchors[:, :2] + anchors[:, 2:]) / 2
    low, high = point - boxes[:, :2], boxes[:, 2:] - point
    return (torch.minimum(low, high) / torch.maximum(low, high)).prod(-1).sqrt()


def assign(
    config: GlipConfig, anchors: Tensor, level_sizes: list[int], targets: Targets, batch: int
) -> Tensor:
    """`matched` (B, N) by the configured assigner."""
    return atss(anchors, level_sizes, targets.boxes, targets.image_index, batch, config.atss_topk)


def ignore_negatives(matched: Tensor, anchors: Tensor, areas: list[Tensor | None]) -> Tensor:
    """Mark negatives inside an ignore box (their centre, or IoU >= 0.5) as IGNORED."""
    if all(a is None for a in areas):
        return matched
    matched = matched.clone()
    point = (anchors[:, :2] + anchors[:, 2:]) / 2
    for i, area in enumerate(areas):
        if area is None:
            continue
        inside = ((point[:, None] >= area[None, :, :2]) & (point[:, None] <= area[None, :, 2:])).all(-1)
        hit = (inside | (paired_iou(anchors[:, None], area[None]) >= 0.5)).any(1)
        matched[i][hit & (matched[i] == NEGATIVE)] = IGNORED
    return matched


def dense_losses(
    config: GlipConfig,
    logits: Tensor,
    box_deltas: Tensor,
    centerness: Tensor,
    anchors: Tensor,
    level_sizes: list[int],
    attention_mask: Tensor,
    targets: Targets,
) -> dict[str, Tensor]:
    """The three losses, already weighted; their plain sum is the total.

    logits (B, N, T), box_deltas (B, N, 4), centerness (B, N), anchors (N, 4), attention_mask (B, T).
    Raises NonFiniteLossError.
    """
    logits, box_deltas, centerness = logits.float(), box_deltas.float(), centerness.float()
    batch, _, tokens = logits.shape
    with torch.no_grad():
        matched = ignore_negatives(
            assign(config, anchors, level_sizes, targets, batch), anchors, targets.ignore_boxes
        )
        image, anchor = (matched >= 0).nonzero(as_tuple=True)
        row = matched[image, anchor]
        target = torch.zeros_like(logits)
        if tokens == config.max_text_length:
            # the "no object" column: masked unless a caption fills every position (spec section 7)
            target[..., -1] = (matched < 0).float()
        target[image, anchor] = targets.positive_map[row]
        anchor_weight = (matched != IGNORED).float()
        anchor_weight[image, anchor] = targets.weights[row]
        weight = anchor_weight[..., None] * (attention_mask[:, None] > 0)
        if targets.token_keep is not None:
            own = torch.zeros_like(logits, dtype=torch.bool)
            own[image, anchor] = targets.positive_map[row] > 0
            weight = torch.where(own, weight, weight * targets.token_keep[:, None])
    weights = tuple(config.box_coder_weights)
    positives = across_processes(logits.new_tensor(float(row.numel()))).clamp(min=1)
    alignment = (focal_terms(logits, target, config.focal_alpha, config.focal_gamma) * weight).sum(
        (1, 2)
    ) / positives

    teach = targets.regress[row]
    image, anchor, row = image[teach], anchor[teach], row[teach]
    box_weight = targets.weights[row]
    with torch.no_grad():
        own_anchor = anchors[anchor]
        goal = decode(encode(targets.boxes[row], own_anchor, weights), own_anchor, weights)
        centre = centerness_targets(goal, own_anchor)
    if teach.all():
        regressed = positives
    else:
        regressed = across_processes(logits.new_tensor(float(row.numel()))).clamp(min=1)
    centre_sum = across_processes(centre.sum())
    centre_sum = torch.where(centre_sum > 0, centre_sum, torch.ones_like(centre_sum))
    predicted = decode(box_deltas[image, anchor], own_anchor, weights)
    box = (1 - paired_giou(predicted, goal)) * centre * box_weight / centre_sum
    centred = F.binary_cross_entropy_with_logits(centerness[image, anchor], centre, reduction="none")
    centred = centred * box_weight / regressed
    per_image = {
        "loss_dot_product_token": config.alignment_loss_weight * alignment,
        "loss_reg": config.box_loss_weight * alignment.new_zeros(batch).index_add(0, image, box),
        "loss_centerness": config.centerness_loss_weight
        * alignment.new_zeros(batch).index_add(0, image, centred),
    }
    return finite_sums(per_image)


def finite_sums(per_image: dict[str, Tensor]) -> dict[str, Tensor]:
    """{name: (B,)} -> {name: scalar}. Raises NonFiniteLossError with the names and image indices."""
    table = torch.stack(list(per_image.values()))
    if not torch.isfinite(table.sum()):
        bad = ~torch.isfinite(table.detach())
        if bad.any():
            names = [n for n, b in zip(per_image, bad.any(1).tolist()) if b]
            raise NonFiniteLossError(names, bad.any(0).nonzero().flatten().tolist())
    return dict(zip(per_image, table.sum(1)))
