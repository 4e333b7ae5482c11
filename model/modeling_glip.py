"""GLIP, an object detector with a caption's words as its classes (arXiv 2112.03857)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertModel
from transformers import initialization as init
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import ModelOutput, logging

from .box_ops import decode
from .configuration_glip import GlipConfig
from .layers.dynamic_head import DynamicBranch
from .layers.fpn import GlipFeaturePyramid
from .layers.fusion import GlipFusion
from .layers.head import AlignmentHead, DynamicHead, Scale, TwoStageHead
from .layers.initialisation import initialise, initialised
from .layers.swin import GlipSwin, SwinAttention
from .targets import collect_targets

# "folded" is a computation of the fusion; inside BERT it means torch's fused attention
ALL_ATTENTION_FUNCTIONS.register("folded", sdpa_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register("folded", sdpa_mask)


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


class GlipPreTrainedModel(PreTrainedModel):
    """Base class: initial values, and the attributes that transformers reads."""

    config_class = GlipConfig
    base_model_prefix = "glip"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["SwinBlock", "GlipFusedBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Set published initial values (GLIP spec section 6), not the text encoder's."""
        prior = self.config.prior_probability
        if isinstance(module, AlignmentHead):
            if isinstance(module, DynamicHead) and module.cls_logits is not None:
                init.constant_(module.cls_logits.bias, _logit(prior))
            if module.no_object is not None:
                init.normal_(module.no_object, std=0.02)
                init.zeros_(module.no_object_bias)
            init.constant_(module.log_scale, self.config.log_scale_init)
            init.zeros_(module.bias_lang)
            init.constant_(module.bias0, _logit(prior))
        elif isinstance(module, Scale):
            init.ones_(module.scale)
        elif isinstance(module, GlipFusion):
            init.constant_(module.gamma_v, module.init_scale)
            init.constant_(module.gamma_l, module.init_scale)
        elif isinstance(module, DynamicBranch):
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)
        elif isinstance(module, SwinAttention):
            init.trunc_normal_(module.relative_position_bias_table, std=0.02)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            initialise(module)


def _logit(p: float) -> float:
    return float(torch.tensor(p, dtype=torch.float64).logit())


def _as_independent(logits: Tensor, no_object: Tensor | None, mask: Tensor, real: Tensor | None) -> Tensor:
    """Make scores whose sigmoid is a token's probability; softmax scores become log odds."""
    if no_object is not None:
        scores = logits.float().masked_fill(mask[:, None] == 0, -torch.inf)
        log_p = torch.cat([scores, no_object.float()[..., None]], -1).log_softmax(-1)[..., :-1]
        log_p = log_p.clamp(-80.0, -1e-7)
        logits = log_p - torch.log(-torch.expm1(log_p))
    if real is not None:
        logits = logits.masked_fill(~real[..., None], -80.0)
    return logits


class GlipForObjectDetection(GlipPreTrainedModel):
    """Network from images and captions to token alignment, boxes and centerness at every anchor."""

    def __init__(self, config: GlipConfig):
        super().__init__(config)
        stages = list(config.fpn_in_stages)
        swin = GlipSwin(config.backbone_config, stages)
        self.backbone = initialised(swin, partial(init.trunc_normal_, std=config.backbone_config.initializer_range))
        initialised(self.backbone.patch_embed, None)
        self.neck = GlipFeaturePyramid(
            [config.backbone_config.stage_channels(s) for s in stages],
            config.hidden_size,
            config.num_feature_levels,
            config.drop_block_prob,
            config.drop_block_size,
        )
        self.text_encoder = BertModel(config.text_config, add_pooling_layer=False)
        self.head = (DynamicHead if config.head == "dynamic" else TwoStageHead)(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the text encoder's word embeddings, for tools of transformers and accelerate."""
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text encoder's word embeddings."""
        self.text_encoder.set_input_embeddings(value)

    def encode_image(self, pixel_values: Tensor, trace: dict | None = None) -> list[Tensor]:
        """Compute pyramid maps (B, C, h, w), finest first, of normalised BGR (B, 3, H, W).

        An image with several captions needs them once: pass them as `image_features`.
        """
        stages = self.backbone(pixel_values)
        maps = self.neck([stages[s - 2] for s in self.config.fpn_in_stages])
        if trace is not None:
            trace["swin"], trace["fpn"] = stages, maps
        return maps

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Compute BERT's last layer (B, T, D), not masked, of input_ids and attention_mask (B, T).

        Equal captions need it once: pass it as `text_features`.
        """
        return self.text_encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state

    def _encode_distinct(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Compute `encode_text` with equal rows (one class list for many images) encoded once."""
        if self.training or len(input_ids) == 1 or token_type_ids is not None or torch.compiler.is_compiling():
            return self.encode_text(input_ids, attention_mask, token_type_ids)  # dropout: equal rows differ
        both = torch.cat([input_ids, attention_mask], 1)
        distinct, row_of = both.unique(dim=0, return_inverse=True)
        if len(distinct) == len(input_ids):
            return self.encode_text(input_ids, attention_mask)
        length = input_ids.shape[1]
        return self.encode_text(distinct[:, :length], distinct[:, length:])[row_of]

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_sizes: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: list[dict[str, Any]] | None = None,
        image_features: list[Tensor] | None = None,
        text_features: Tensor | None = None,
        image_index: Tensor | None = None,
        offset_mapping: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> GlipObjectDetectionOutput | tuple:
        """Run the network on B image-caption pairs.

        pixel_values (B, 3, H, W): normalised BGR, zero-padded right and bottom. input_ids,
        attention_mask (B, T). image_sizes (B, 2): unpadded height, width (default: all of H, W).
        image_features, text_features: results of `encode_image`, `encode_text` to use instead.
        image_index (B,): the image of each caption, when images and captions are not paired one to
        one. offset_mapping (B, T, 2): passed on to the output.

        labels: one dict per image. `boxes` (n, 4) float xyxy, pixels of the resized image;
        `positive_map` (n, T') 0/1, cut or padded to T. Optional, for noisy labels: `weights` (n,)
        factors of a box's losses; `regress` (n,) bool, false: no box or centerness loss;
        `token_ignore` (T',) bool: tokens that are no negatives in this image; `ignore_boxes` (m,
        4): negatives with their centre in one, or IoU >= 0.5 with it, have no alignment loss.

        Raises NonFiniteLossError naming terms and images; ValueError for missing inputs.
        """
        if attention_mask is None:
            if input_ids is None:
                raise ValueError("attention_mask is needed when text_features are given without input_ids")
            attention_mask = torch.ones_like(input_ids)
        trace: dict[str, Any] | None = {} if output_hidden_states else None
        if image_features is None:
            if pixel_values is None:
                raise ValueError("give pixel_values or image_features")
            image_features = self.encode_image(pixel_values, trace)
        if text_features is None:
            if input_ids is None:
                raise ValueError("give input_ids or text_features")
            text_features = self._encode_distinct(input_ids, attention_mask, token_type_ids)
        if image_sizes is None:
            if pixel_values is None:
                raise ValueError("image_sizes is needed when image_features are given without pixel_values")
            image_sizes = torch.tensor([pixel_values.shape[-2:]] * pixel_values.shape[0], device=attention_mask.device)
        if image_index is not None:
            image_features = [m[image_index] for m in image_features]
            image_sizes = image_sizes[image_index]
        if trace is not None:
            trace["text"] = text_features
        targets = None
        if labels is not None:
            targets = collect_targets(labels, text_features.shape[1], text_features.device)
        head = self.head(image_features, text_features, attention_mask, image_sizes, targets, trace)
        boxes = None
        if labels is None:
            boxes = decode(head.deltas.float(), head.anchors, tuple(self.config.box_coder_weights))
        output = GlipObjectDetectionOutput(
            loss=None if head.losses is None else torch.stack(list(head.losses.values())).sum(),
            loss_dict=head.losses,
            logits=_as_independent(head.logits, head.no_object, attention_mask, head.real),
            box_deltas=head.deltas,
            centerness=head.centerness,
            pred_boxes=boxes,
            anchors=head.anchors,
            level_shapes=torch.tensor(head.level_shapes),
            image_sizes=image_sizes,
            attention_mask=attention_mask,
            input_ids=input_ids,
            offset_mapping=offset_mapping,
            image_index=image_index,
            hidden=trace,
            score_aggregation=self.config.score_aggregation,
        )
        return output if return_dict is not False else output.to_tuple()

    def freeze(self, text_layers: int = 0, backbone_stages: int = 0) -> None:
        """Exclude the lowest parts from training.

        text_layers n > 0: BERT's embeddings and its first n layers. backbone_stages n > 0: the
        patch embedding and the first n - 1 stages (2 in the released GLIP-L; GLIP spec section 2).
        Raises ValueError for more than there are.
        """
        layers, stages = self.text_encoder.encoder.layer, self.backbone.layers
        if not 0 <= text_layers <= len(layers) or not 0 <= backbone_stages <= len(stages) + 1:
            raise ValueError(
                f"cannot freeze {text_layers} of {len(layers)} text layers and {backbone_stages} of {len(stages) + 1} "
                "backbone stages"
            )
        frozen = [self.backbone.patch_embed, *stages][:backbone_stages]
        if text_layers:
            frozen += [self.text_encoder.embeddings, *layers[:text_layers]]
        for module in frozen:
            module.requires_grad_(False)

    def load_text_encoder(self, folder: str | Path) -> None:
        """Load the text encoder's weights from a BERT folder, without its pooler.

        With fewer `num_hidden_layers` than the folder has, its first layers. Raises ValueError when
        the folder differs from `config.text_config` otherwise.
        """
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # no warning about the pooler
        try:
            source = BertModel.from_pretrained(folder, add_pooling_layer=False)
        finally:
            logging.set_verbosity(verbosity)
        source.encoder.layer = source.encoder.layer[: self.config.text_config.num_hidden_layers]
        own, theirs = ({n: t.shape for n, t in m.state_dict().items()} for m in (self.text_encoder, source))
        wrong = [n for n in {**own, **theirs} if own.get(n) != theirs.get(n)]
        if wrong:
            raise ValueError(f"{folder} does not fit text_config; first difference: {wrong[0]} ({len(wrong)} in all)")
        self.text_encoder.load_state_dict(source.state_dict())

    def load_swin(self, file: str | Path) -> None:
        """Load the backbone's weights from an ImageNet Swin file with the published names.

        They may be under a "model" key. The classifier and its norm are ignored; the pyramid's
        norms have no counterpart there and stay as they are. Raises ValueError naming missing or
        misshapen entries.
        """
        state = torch.load(file, map_location="cpu", weights_only=True)
        state = state.get("model", state)
        own = self.backbone.state_dict()
        wanted = [n for n in own if not n.startswith("norm")]
        wrong = [n for n in wanted if n not in state or state[n].shape != own[n].shape]
        if wrong:
            raise ValueError(f"{file}: {len(wrong)} entries missing or of another shape, first {wrong[0]}")
        self.backbone.load_state_dict({n: state[n] for n in wanted}, strict=False)


__all__ = ["GlipForObjectDetection", "GlipObjectDetectionOutput", "GlipPreTrainedModel"]
