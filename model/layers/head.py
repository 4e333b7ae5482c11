"""Detection heads: fused blocks, alignment, boxes (GLIP spec section 6; paper section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..box_ops import pyramid_anchors
from ..configuration_glip import GlipConfig
from ..losses import dense_losses, finite_sums, proposal_losses, region_losses
from ..targets import Targets
from .bert_layer import GlipTextLayer, attention_bias
from .constants import device_constant
from .dynamic_head import DynamicConv, Shapes, join_levels, split_levels
from .fusion import GlipFusion
from .initialisation import NORMAL, initialised, logit
from .two_stage import ProposalNetwork, RegionFeatures, propose

LOGIT_LIMIT = 50000.0


@dataclass
class HeadOutput:
    """Raw predictions of a head at N anchors for T tokens.

    logits (B, N, T); no_object (B, N) or None; deltas (B, N, 4); centerness (B, N) or None; anchors
    (N, 4) or (B, N, 4); level_shapes: height, width of each group of anchors; real (B, N) bool,
    false for padding, or None; losses: {name: scalar} or None; hidden: see `AlignmentHead.tower`.
    """

    logits: Tensor
    no_object: Tensor | None
    deltas: Tensor
    centerness: Tensor | None
    anchors: Tensor
    level_shapes: list[tuple[int, int]]
    real: Tensor | None
    losses: dict[str, Tensor] | None
    hidden: list[tuple[Tensor, Tensor]]


class Scale(nn.Module):
    """One learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Scale a tensor of any shape."""
        return x * self.scale


class GlipFusedBlock(nn.Module):
    """Fusion and a BERT layer (when fusing), then the dynamic convolutions (when `dynamic`)."""

    def __init__(self, config: GlipConfig, dynamic: bool):
        super().__init__()
        c, text = config, config.text_config
        self.fusion: GlipFusion | None = None
        self.text_layer: GlipTextLayer | None = None
        self.conv: DynamicConv | None = None
        if c.fusion:
            self.fusion = GlipFusion(
                c.hidden_size, text.hidden_size, c.fusion_embed_dim, c.fusion_num_heads, c.fusion_dropout,
                1.0 / c.num_blocks,
            )  # fmt: skip
            self.text_layer = GlipTextLayer(text)
        if dynamic:
            self.conv = DynamicConv(c.hidden_size, c.group_norm_groups, c.dyrelu_reduction, c.deform_implementation)

    def forward(
        self, x: Tensor, text: Tensor, mask: Tensor, bias: Tensor, shapes: Shapes, eager: bool
    ) -> tuple[Tensor, Tensor]:
        """Transform x (B, N, C), levels of `shapes`, and text (B, T, D) to the same shapes.

        mask (B, T) 0/1; bias (B, 1, 1, T): see `attention_bias`; eager: see `GlipFusion`.
        """
        if self.fusion is not None and self.text_layer is not None:
            x, text = self.fusion(x, text, mask, eager)
            text = self.text_layer(text, bias)
        return (x if self.conv is None else self.conv(x, shapes)), text


class AlignmentHead(nn.Module):
    """Common part of both heads: the blocks, the anchors and the alignment S = O P^T."""

    def __init__(self, config: GlipConfig, dynamic: bool):
        super().__init__()
        self.config = config
        channels, width = config.hidden_size, config.text_config.hidden_size
        self.blocks = nn.ModuleList(GlipFusedBlock(config, dynamic) for _ in range(config.num_blocks))
        self.bbox_pred = initialised(nn.Linear(channels, 4), NORMAL)
        self.dot_product_projection_text = nn.Linear(width, channels)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.bias_lang = nn.Parameter(torch.zeros(width))
        self.bias0 = nn.Parameter(torch.zeros(1))
        self.no_object: nn.Parameter | None = None
        if config.alignment_loss == "cross_entropy":
            self.no_object = nn.Parameter(torch.empty(width))
            self.no_object_bias = nn.Parameter(torch.zeros(1))

    def anchors(self, shapes: Shapes, device: torch.device) -> Tensor:
        """Make the anchors (N, 4) of levels of these (h, w)."""
        return device_constant(
            pyramid_anchors, tuple(shapes), tuple(self.config.feature_strides), self.config.anchor_scale, device=device
        )

    def tower(
        self, maps: list[Tensor], text: Tensor, mask: Tensor, keep: bool
    ) -> tuple[Tensor, Tensor, Shapes, Tensor, list[tuple[Tensor, Tensor]]]:
        """Run all blocks on maps (B, C, h, w) per level, text (B, T, D) and its mask (B, T).

        Returns locations (B, N, C), the words' features (B, T, D), the levels' (h, w), anchors (N,
        4) and, with `keep`, the locations and words before the first and after every block.
        """
        shapes = [(m.shape[-2], m.shape[-1]) for m in maps]
        anchors = self.anchors(shapes, text.device)
        x, original = join_levels(maps), text
        eager, bias = self.config._attn_implementation == "eager", attention_bias(mask, text.dtype)
        hidden = [(x, text)] if keep else []
        for block in self.blocks:
            x, text = block(x, text, mask, bias, shapes, eager)
            if keep:
                hidden.append((x, text))
        # without fusion the words keep BERT's own features, padding zeroed
        words = text if self.config.fusion else original * mask[..., None]
        return x, words, shapes, anchors, hidden

    def align(self, x: Tensor, words: Tensor) -> tuple[Tensor, Tensor | None]:
        """Align regions (B, N, C) with words (B, T, D): logits (B, N, T), "no object" (B, N)."""
        words = F.normalize(words.float(), dim=-1).to(words.dtype)  # the norm's epsilon is zero in float16
        temperature = self.log_scale.exp()
        tokens = self.dot_product_projection_text(words / 2) / temperature
        bias = words @ self.bias_lang + self.bias0
        logits = torch.baddbmm(bias[:, None], x, tokens.transpose(1, 2)).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        if self.no_object is None:
            return logits, None
        no_object = F.normalize(self.no_object.float(), dim=0).to(words.dtype)
        nothing = self.dot_product_projection_text(no_object / 2) / temperature
        return logits, x @ nothing + self.no_object_bias


class DynamicHead(AlignmentHead):
    """GLIP's head: one prediction per location of every level."""

    def __init__(self, config: GlipConfig):
        super().__init__(config, dynamic=True)
        channels = config.hidden_size
        self.centerness = initialised(nn.Linear(channels, 1), NORMAL)
        self.cls_logits: nn.Linear | None = None
        if config.num_class_logits:
            bias = logit(config.prior_probability)
            layer = initialised(nn.Linear(channels, config.num_class_logits), NORMAL, bias)
            self.cls_logits = layer.requires_grad_(False)
        self.scales = nn.ModuleList(Scale() for _ in range(config.num_feature_levels))

    def forward(
        self, maps: list[Tensor], text: Tensor, mask: Tensor, image_sizes: Tensor, targets: Targets | None,
        keep_hidden: bool, divisors: Tensor | None = None,
    ) -> HeadOutput:  # fmt: skip
        """Predict from maps (B, C, h, w) per level, text (B, T, D) and mask (B, T).

        divisors: see `dense_losses`.
        """
        x, words, shapes, anchors, hidden = self.tower(maps, text, mask, keep_hidden)
        sizes = [h * w for h, w in shapes]
        logits, no_object = self.align(x, words)
        levels = self.bbox_pred(x).split(sizes, 1)
        deltas = torch.cat([scale(level) for scale, level in zip(self.scales, levels, strict=True)], 1)
        centerness = self.centerness(x).squeeze(-1)
        losses = None
        if targets is not None:
            losses = dense_losses(
                self.config, logits, no_object, deltas, centerness, anchors, sizes, mask, targets, divisors
            )
        return HeadOutput(logits, no_object, deltas, centerness, anchors, shapes, None, losses, hidden)


class TwoStageHead(AlignmentHead):
    """Head that aligns proposals' features with the words; fusion comes before the proposals."""

    def __init__(self, config: GlipConfig):
        super().__init__(config, dynamic=False)
        self.proposals = ProposalNetwork(config.hidden_size, config.prior_probability)
        self.regions = RegionFeatures(config)

    def forward(
        self, maps: list[Tensor], text: Tensor, mask: Tensor, image_sizes: Tensor, targets: Targets | None,
        keep_hidden: bool, divisors: Tensor | None = None,
    ) -> HeadOutput:  # fmt: skip
        """Predict as DynamicHead, for N proposals; image_sizes (B, 2): unpadded height, width."""
        c = self.config
        x, words, shapes, anchors, hidden = self.tower(maps, text, mask, keep_hidden)
        maps = split_levels(x, shapes)
        objectness, proposal_deltas = self.proposals(maps)
        extra = None if targets is None else [targets.boxes[targets.rows(i)] for i in range(x.shape[0])]
        count = c.proposals_test if targets is None else c.proposals_train
        boxes, real = propose(c, objectness, proposal_deltas, anchors, image_sizes, count, extra)
        regions = self.regions(maps, boxes)
        logits, no_object = self.align(regions, words)
        deltas = self.bbox_pred(regions)
        losses = None
        if targets is not None:
            first = proposal_losses(c, objectness, proposal_deltas, anchors, targets)
            second = region_losses(c, logits, no_object, deltas, boxes, real, mask, targets)
            losses = finite_sums({**second, **first})
        return HeadOutput(logits, no_object, deltas, None, boxes, [(1, boxes.shape[1])], real, losses, hidden)
