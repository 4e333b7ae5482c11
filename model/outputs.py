"""Output class of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class GlipObjectDetectionOutput(ModelOutput):
    """Predictions for B captions of T tokens at N anchors.

    loss: the plain sum of loss_dict, only with labels. logits (B, N, T): alignment of every anchor
    with every token, before the sigmoid. box_deltas (B, N, 4): see `box_ops.decode`. centerness
    (B, N): logits; None of the two-stage head. anchors (N, 4), or the two-stage head's proposals
    (B, N, 4): xyxy pixels. level_shapes (L, 2): height, width of each level. pred_boxes (B, N, 4):
    decoded, not clipped, xyxy pixels of the resized image; only without labels. image_sizes (B, 2):
    unpadded height, width. attention_mask (B, T), input_ids (B, T), offset_mapping (B, T, 2) and
    image_index (B,) are the inputs', for post-processing. hidden: every intermediate, only with
    `output_hidden_states`. score_aggregation: the configuration's.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    box_deltas: Tensor | None = None
    centerness: Tensor | None = None
    pred_boxes: Tensor | None = None
    anchors: Tensor | None = None
    level_shapes: Tensor | None = None
    image_sizes: Tensor | None = None
    attention_mask: Tensor | None = None
    input_ids: Tensor | None = None
    offset_mapping: Tensor | None = None
    image_index: Tensor | None = None
    hidden: dict[str, Any] | None = None
    score_aggregation: str | None = None
