"""GLIP: an object detector whose classes are the words of a caption (arXiv 2112.03857), as Hugging Face classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertModel
from transformers import initialization as init
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import logging

from .box_ops import decode
from .configuration_glip import GlipConfig
from .layers.dynamic_head import DynamicBranch
from .layers.fpn import GlipFeaturePyramid
from .layers.fusion import GlipFusion
from .layers.head import AlignmentHead, DynamicHead, Scale, TwoStageHead
from .layers.initialisation import initialise, initialised
from .layers.swin import GlipSwin, SwinAttention
from .outputs import GlipObjectDetectionOutput
from .targets import collect_targets

# "folded" names the fusion's way of computing; inside BERT it means torch's fused attention
ALL_ATTENTION_FUNCTIONS.register("folded", sdpa_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register("folded", sdpa_mask)


class GlipPreTrainedModel(PreTrainedModel):
    """Initialisation and what transformers needs to know about the class."""

    config_class = GlipConfig
    base_model_prefix = "glip"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["SwinBlock", "GlipFusedBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Published initial values (GLIP spec section 6); the text encoder initialises itself."""
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
    """Scores whose sigmoid is a token's probability, whatever the loss: softmax scores become log odds."""
    if no_object is not None:
        scores = logits.float().masked_fill(mask[:, None] == 0, -torch.inf)
        log_p = torch.cat([scores, no_object.float()[..., None]], -1).log_softmax(-1)[..., :-1]
        log_p = log_p.clamp(-80.0, -1e-7)
        logits = log_p - torch.log(-torch.expm1(log_p))
    if real is not None:
        logits = logits.masked_fill(~real[..., None], -80.0)
    return logits


class GlipForObjectDetection(GlipPreTrainedModel):
    """The whole network: images and captions in; token alignment, boxes and centerness at every anchor out."""

    def __init__(self, config: GlipConfig):
        super().__init__(config)
        stages = list(config.fpn_in_stages)
        swin = GlipSwin(config.backbone_config, stages)
        self.backbone = initialised(swin, "trunc_normal", config.backbone_config.initializer_range)
        initialised(self.backbone.patch_embed, "default")
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
        """The text encoder's word embeddings: transformers' and accelerate's tools look for them."""
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text encoder's word embeddings."""
        self.text_encoder.set_input_embeddings(value)

    def encode_image(self, pixel_values: Tensor, trace: dict | None = None) -> list[Tensor]:
        """pixel_values (B, 3, H, W), normalised BGR -> pyramid maps (B, C, h, w), finest first.

        Compute once and pass as `image_features` when an image has several captions.
        """
        stages = self.backbone(pixel_values)
        used = [stages[s - 2] for s in self.config.fpn_in_stages]
        maps = self.neck(used)
        if trace is not None:
            trace["swin"], trace["fpn"] = stages, maps
        return maps

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """input_ids, attention_mask (B, T) -> BERT's last layer (B, T, D), not masked.

        Compute once for each distinct caption and pass as `text_features`.
        """
        return self.text_encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state

    def _encode_distinct(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """`encode_text`, where rows that are alike (a class list asked of many images) are encoded once."""
        if self.training or len(input_ids) == 1 or token_type_ids is not None or torch.compiler.is_compiling():
            return self.encode_text(input_ids, attention_mask, token_type_ids)  # dropout makes alike rows differ
        both = torch.cat([input_ids, attention_mask], 1)
        distinct, place = both.unique(dim=0, return_inverse=True)
        if len(distinct) == len(input_ids):
            return self.encode_text(input_ids, attention_mask)
        length = input_ids.shape[1]
        return self.encode_text(distinct[:, :length], distinct[:, length:])[place]

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

        pixel_values (B, 3, H, W): normalised BGR, zero-padded right and bottom. input_ids, attention_mask (B, T).
        image_sizes (B, 2): unpadded height, width (default: all of H, W). image_features, text_features: results
        of `encode_image`, `encode_text` to use instead. image_index (B,): the image of each caption, when images
        and captions are not paired one to one. offset_mapping (B, T, 2): passed on to the output.

        labels: one dict an image. `boxes` (n, 4) float xyxy, pixels of the resized image; `positive_map` (n, T')
        0/1, cut or padded to T. Optional, for noisy labels: `weights` (n,) factors of a box's losses; `regress` (n,)
        bool, false: no box or centerness loss; `token_ignore` (T',) bool: tokens not taught as absent in this
        image; `ignore_boxes` (m, 4): negatives whose centre lies in one, or with IoU >= 0.5, have no alignment loss.

        Raises NonFiniteLossError (a FloatingPointError) naming terms and images; ValueError for missing inputs.
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
        """Stop training the lowest parts.

        text_layers n > 0: BERT's embeddings and its first n layers. backbone_stages n > 0: the patch embedding and
        the first n - 1 stages (n = 2 is the released GLIP-L's setting, GLIP spec section 2). Raises ValueError when there are not as many.
        """
        layers, stages = self.text_encoder.encoder.layer, self.backbone.layers
        if not 0 <= text_layers <= len(layers) or not 0 <= backbone_stages <= len(stages) + 1:
            raise ValueError(
                f"cannot freeze {text_layers} of {len(layers)} text layers and {backbone_stages} of {len(stages) + 1} "
                "backbone stages"
            )
        frozen: list[nn.Module] = []
        if text_layers:
            frozen += [self.text_encoder.embeddings, *layers[:text_layers]]
        if backbone_stages:
            frozen += [self.backbone.patch_embed, *stages[: backbone_stages - 1]]
        for module in frozen:
            module.requires_grad_(False)

    def load_text_encoder(self, folder: str | Path) -> None:
        """Take the text encoder's weights from a BERT folder; a pooler there is left out.

        A `text_config` with fewer `num_hidden_layers` than the folder takes the folder's first layers. Raises ValueError
        when the shape is another than `config.text_config`'s otherwise.
        """
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # the pooler that is left out is no news
        try:
            source = BertModel.from_pretrained(folder, add_pooling_layer=False)
        finally:
            logging.set_verbosity(verbosity)
        own, theirs = self.text_encoder.state_dict(), source.state_dict()
        beyond = tuple(
            f"encoder.layer.{i}."
            for i in range(self.config.text_config.num_hidden_layers, source.config.num_hidden_layers)
        )
        theirs = {n: value for n, value in theirs.items() if not n.startswith(beyond or "-")}
        wrong = [n for n in own if n not in theirs or own[n].shape != theirs[n].shape]
        if wrong or set(theirs) - set(own):
            wrong = wrong or sorted(set(theirs) - set(own))
            raise ValueError(f"{folder} does not fit text_config; first difference: {wrong[0]} ({len(wrong)} in all)")
        self.text_encoder.load_state_dict(theirs)

    def load_swin(self, file: str | Path) -> None:
        """Take the backbone's weights from an ImageNet Swin file (names as published, with or without a "model" key).

        The classifier and its final norm are left out; the pyramid's norms keep their initial values, as they have
        no counterpart there. Raises ValueError naming missing or misshapen entries.
        """
        state = torch.load(file, map_location="cpu", weights_only=True)
        state = state.get("model", state)
        own = self.backbone.state_dict()
        wanted = [n for n in own if not n.startswith("norm")]
        wrong = [n for n in wanted if n not in state or state[n].shape != own[n].shape]
        if wrong:
            raise ValueError(f"{file}: {len(wrong)} entries missing or of another shape, first {wrong[0]}")
        self.backbone.load_state_dict({n: state[n] for n in wanted}, strict=False)


__all__ = ["GlipForObjectDetection", "GlipPreTrainedModel"]
