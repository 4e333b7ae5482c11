"""Training losses of GLIP (GLIP spec section 7), their variants, and options for noisy labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .assigners import IGNORED, atss, hungarian, ignore_negatives, max_iou
from .box_ops import centres, decode, encode, paired_giou, paired_iou
from .configuration_glip import GlipConfig
from .targets import Targets

# Two-stage head: IoU from which an anchor (a proposal) is positive, and below which it is negative
RPN_IOU = (0.7, 0.3)
REGION_IOU = (0.5, 0.5)


class NonFiniteLossError(FloatingPointError):
    """Error for NaN or inf losses; `terms`: their names, `images`: indices in the batch."""

    def __init__(self, terms: list[str], images: list[int]):
        self.terms, self.images = terms, images
        super().__init__(f"non-finite loss: terms {', '.join(terms)}; images {images} of the batch")


def focal_terms(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Compute the elementwise sigmoid focal loss, alpha_t (1 - p_t)^gamma BCE, for targets 0/1."""
    wrong = torch.where(targets > 0, -logits, logits)  # logit of 1 - p_t
    alpha_t = torch.where(targets > 0, alpha, 1 - alpha)
    return alpha_t * wrong.sigmoid() ** gamma * F.softplus(wrong)


def across_processes(value: Tensor) -> Tensor:
    """Average a scalar over data-parallel processes, if there are any."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
        value = value / torch.distributed.get_world_size()
    return value


def centerness_targets(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Compute the centerness (n,) of anchor centres in boxes (n, 4); 0 for a centre outside.

    It is the root of the product of near-to-far distance ratios. Source: GLIP spec section 7.
    """
    point = centres(anchors)
    low, high = point - boxes[:, :2], boxes[:, 2:] - point
    return (torch.minimum(low, high) / torch.maximum(low, high)).clamp(min=0).prod(-1).sqrt()


def assign(
    config: GlipConfig,
    anchors: Tensor,
    level_sizes: list[int],
    targets: Targets,
    logits: Tensor,
    deltas: Tensor,
    no_object: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Assign boxes to anchors (N, 4) by the configured assigner: `matched` (B, N).

    logits (B, N, T), box deltas (B, N, 4) and, under cross-entropy, no_object (B, N) and
    attention_mask (B, T) count for "hungarian" only.
    """
    batch = len(logits)
    if config.assigner == "atss":
        return atss(anchors, level_sizes, targets.boxes, targets.image_index, batch, config.atss_topk)
    if config.assigner == "max_iou":
        return max_iou(anchors, targets, batch, config.positive_iou, config.negative_iou, rescue=True)
    exclusive = no_object is not None and attention_mask is not None
    if exclusive:
        scores = torch.cat([logits.masked_fill(attention_mask[:, None] == 0, -torch.inf), no_object[..., None]], -1)
        probabilities = scores.softmax(-1)[..., :-1]
    else:
        probabilities = logits.sigmoid()
    return hungarian(probabilities, exclusive, decode(deltas, anchors, tuple(config.box_coder_weights)), targets)


def alignment_loss(
    config: GlipConfig,
    logits: Tensor,
    no_object: Tensor | None,
    matched: Tensor,
    attention_mask: Tensor,
    targets: Targets,
) -> Tensor:
    """Sum the region-word loss per image (B,), not normalised.

    logits (B, N, T), no_object (B, N) or None, matched (B, N), attention_mask (B, T). Focal: every
    token of a phrase is a positive. Cross-entropy, with `no_object`: one distribution over the
    tokens and "no object" (the paper's [NoObj]; GLIP spec 9.4), with the phrase's mass divided
    among its tokens.
    """
    image, anchor = (matched >= 0).nonzero(as_tuple=True)
    row = matched[image, anchor]
    weight = (matched != IGNORED).float()
    weight[image, anchor] = targets.weights[row]
    real = attention_mask[:, None] > 0  # (B, 1, T)
    positive = torch.zeros_like(logits)
    positive[image, anchor] = targets.positive_map[row]
    used = real
    if targets.token_keep is not None:
        used = real & ((targets.token_keep[:, None] > 0) | (positive > 0))
    if no_object is None:
        if logits.shape[-1] == config.max_text_length:
            # the "no object" column: masked unless a caption fills every position
            positive[..., -1] = torch.where(matched < 0, 1.0, positive[..., -1])
        terms = focal_terms(logits, positive, config.focal_alpha, config.focal_gamma)
        return (terms * (weight[..., None] * used)).sum((1, 2))
    scores = torch.cat([logits.masked_fill(~used, -torch.inf), no_object[..., None]], -1).log_softmax(-1)
    absent = -scores[..., -1] * config.no_object_weight * (matched < 0)
    positive = positive * real
    share = positive / positive.sum(-1, keepdim=True).clamp(min=1)
    present = -(share * scores[..., :-1].masked_fill(share == 0, 0.0)).sum(-1)
    return ((absent + present) * weight).sum(1)


def dense_losses(
    config: GlipConfig,
    logits: Tensor,
    no_object: Tensor | None,
    box_deltas: Tensor,
    centerness: Tensor,
    anchors: Tensor,
    level_sizes: list[int],
    attention_mask: Tensor,
    targets: Targets,
    divisors: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compute the dynamic head's three losses with their weights; the total is their plain sum.

    logits (B, N, T), no_object (B, N) or None, box_deltas (B, N, 4), centerness (B, N), anchors (N,
    4), attention_mask (B, T). divisors (3,): as `loss_divisors` returns them, of a batch that this
    one is a part of; None: this batch's, averaged over processes. Raises NonFiniteLossError.
    Source: GLIP spec section 7.
    """
    logits, box_deltas, centerness = logits.float(), box_deltas.float(), centerness.float()
    batch = logits.shape[0]
    coder = tuple(config.box_coder_weights)
    one_to_one = config.assigner == "hungarian"
    with torch.no_grad():
        matched = assign(config, anchors, level_sizes, targets, logits, box_deltas, no_object, attention_mask)
        matched = ignore_negatives(matched, anchors, targets.ignore_boxes)
    image, anchor, row = _regressed(matched, targets)
    weight, own = targets.weights[row], anchors[anchor]
    predicted = decode(box_deltas[image, anchor], own, coder)
    with torch.no_grad():
        goal = decode(encode(targets.boxes[row], own, coder), own, coder)
        # a one-to-one match may be outside its box: its "centerness" learns the IoU instead
        centre = paired_iou(predicted, goal) if one_to_one else centerness_targets(goal, own)
        share = torch.ones_like(centre) if one_to_one else centre
    if divisors is None:  # without another condition: every process must take part in the same sums
        divisors = loss_divisors(_loss_counts(matched, share))
    positives, share_sum, regressed = divisors
    alignment = alignment_loss(config, logits, no_object, matched, attention_mask, targets) / positives
    box = (1 - paired_giou(predicted, goal)) * share * weight / share_sum
    centred = F.binary_cross_entropy_with_logits(centerness[image, anchor], centre, reduction="none")
    return finite_sums({
        "loss_dot_product_token": config.alignment_loss_weight * alignment,
        "loss_reg": config.box_loss_weight * _per_image(box, image, batch),
        "loss_centerness": config.centerness_loss_weight * _per_image(centred * weight / regressed, image, batch),
    })  # fmt: skip


def _loss_counts(matched: Tensor, share: Tensor) -> Tensor:
    """Count positives, sum of the box loss's shares (R,), and R itself: (3,)."""
    regressed = torch.full_like(share.sum(), len(share))
    return torch.stack([(matched >= 0).sum().float(), share.sum(), regressed])


def loss_divisors(counts: Tensor) -> Tensor:
    """Average a batch's `_loss_counts` (3,) over processes, and make them fit to divide by."""
    positives, share_sum, regressed = across_processes(counts)
    share_sum = share_sum.masked_fill(~(share_sum > 0), 1.0)
    return torch.stack([positives.clamp(min=1), share_sum, regressed.clamp(min=1)])


@torch.no_grad()
def count_targets(config: GlipConfig, anchors: Tensor, level_sizes: list[int], targets: Targets, batch: int) -> Tensor:
    """Compute `_loss_counts` of labels that are assigned by anchors alone, without a prediction."""
    none = anchors.new_zeros(batch, 0)
    matched = assign(config, anchors, level_sizes, targets, none, none)
    matched = ignore_negatives(matched, anchors, targets.ignore_boxes)
    _, anchor, row = _regressed(matched, targets)
    coder, own = tuple(config.box_coder_weights), anchors[anchor]
    return _loss_counts(matched, centerness_targets(decode(encode(targets.boxes[row], own, coder), own, coder), own))


def proposal_losses(
    config: GlipConfig, objectness: Tensor, deltas: Tensor, anchors: Tensor, targets: Targets
) -> dict[str, Tensor]:
    """Compute the losses of the two-stage head's proposals per image: {name: (B,)}.

    objectness (B, N) logits, deltas (B, N, 4), anchors (N, 4).
    """
    objectness, deltas = objectness.float(), deltas.float()
    batch = objectness.shape[0]
    with torch.no_grad():
        matched = max_iou(anchors, targets, batch, *RPN_IOU, rescue=True)
        matched = ignore_negatives(matched, anchors, targets.ignore_boxes)
    terms = focal_terms(objectness, (matched >= 0).float(), config.focal_alpha, config.focal_gamma)
    terms = terms * (matched != IGNORED)
    image, anchor, row = _regressed(matched, targets)
    goal = encode(targets.boxes[row], anchors[anchor], tuple(config.box_coder_weights))
    box = F.smooth_l1_loss(deltas[image, anchor], goal, reduction="none").sum(-1) * targets.weights[row]
    positives = _count(matched >= 0)
    return {"loss_objectness": terms.sum(1) / positives, "loss_proposal_box": _per_image(box, image, batch) / positives}


def region_losses(
    config: GlipConfig,
    logits: Tensor,
    no_object: Tensor | None,
    deltas: Tensor,
    proposals: Tensor,
    real: Tensor,
    attention_mask: Tensor,
    targets: Targets,
) -> dict[str, Tensor]:
    """Compute the second stage's losses per image: {name: (B,)}, alignment and boxes.

    logits (B, K, T), no_object (B, K) or None, deltas (B, K, 4), proposals (B, K, 4), real (B, K)
    bool: not padding.
    """
    logits, deltas = logits.float(), deltas.float()
    batch = logits.shape[0]
    with torch.no_grad():
        matched = max_iou(proposals, targets, batch, *REGION_IOU)
        matched = ignore_negatives(matched, proposals, targets.ignore_boxes).masked_fill(~real, IGNORED)
    positives = _count(matched >= 0)
    image, anchor, row = _regressed(matched, targets)
    goal = encode(targets.boxes[row], proposals[image, anchor], tuple(config.box_coder_weights))
    distance = F.smooth_l1_loss if config.box_loss == "smooth_l1" else F.mse_loss
    box = distance(deltas[image, anchor], goal, reduction="none").sum(-1) * targets.weights[row] / positives
    alignment = alignment_loss(config, logits, no_object, matched, attention_mask, targets) / positives
    return {
        "loss_dot_product_token": config.alignment_loss_weight * alignment,
        "loss_reg": config.box_loss_weight * _per_image(box, image, batch),
    }


def finite_sums(per_image: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sum losses {name: (B,)} to {name: scalar}; raises NonFiniteLossError naming the images."""
    table = torch.stack(list(per_image.values()))
    if not torch.isfinite(table.sum()):
        bad = ~torch.isfinite(table.detach())
        names = [n for n, b in zip(per_image, bad.any(1).tolist(), strict=True) if b]
        raise NonFiniteLossError(names, bad.any(0).nonzero().flatten().tolist())
    return dict(zip(per_image, table.sum(1), strict=True))


def _count(flags: Tensor) -> Tensor:
    return across_processes(flags.sum().float()).clamp(min=1)


def _regressed(matched: Tensor, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """Indices (image, anchor, box row) of the positives with a box loss."""
    image, anchor = (matched >= 0).nonzero(as_tuple=True)
    row = matched[image, anchor]
    teach = targets.regress[row]
    return image[teach], anchor[teach], row[teach]


def _per_image(values: Tensor, image: Tensor, batch: int) -> Tensor:
    return values.new_zeros(batch).index_add(0, image, values)
