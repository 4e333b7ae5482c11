"""Output class of the network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class GlipObjectDetectionOutput(ModelOutput):
    """Predictions for B captions of T tokens at N anchors; every tensor but the losses has the batch first.

    loss: the plain sum of loss_dict, only with labels. logits (B, N, T): alignment of every anchor
    with every token, before the sigmoid. box_deltas (B, N, 4): see `box_ops.decode`. centerness
    (B, N): logits; None of the two-stage head. pred_boxes (B, N, 4): decoded, not clipped, xyxy
    pixels of the resized image. anchors (B, N, 4): xyxy pixels, the two-stage head's proposals.
    level_shapes (B, L, 2): height, width of each level. image_sizes (B, 2): unpadded height, width.
    attention_mask (B, T), input_ids (B, T), offset_mapping (B, T, 2) and image_index (B,) are the
    inputs', for post-processing. score_aggregation (B,): the configuration's, as an index into
    `SCORE_AGGREGATIONS`. hidden_states, text_hidden_states: with `output_hidden_states`, the
    locations' (B, N, C) and the words' features (B, T, D) before the first and after every block.
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
    score_aggregation: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    text_hidden_states: tuple[Tensor, ...] | None = None
