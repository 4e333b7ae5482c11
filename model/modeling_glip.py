"""GLIP: an object detector whose classes are the words of a caption (arXiv 2112.03857), as Hugging Face classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertModel
from transformers import initialization as init
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import ModelOutput

from .box_ops import decode, pyramid_anchors
from .configuration_glip import GlipConfig
from .layers.bert_layer import GlipTextLayer, attention_bias
from .layers.constants import device_constant
from .layers.dynamic_head import DynamicBranch, DynamicConv, join_levels
from .layers.fpn import GlipFeaturePyramid
from .layers.fusion import GlipFusion
from .layers.initialisation import initialise, initialised
from .layers.swin import GlipSwin, SwinAttention
from .losses import collect_targets, dense_losses

LOGIT_LIMIT = 50000.0

# "folded" names the fusion's way of computing; inside BERT it means torch's fused attention
ALL_ATTENTION_FUNCTIONS.register("folded", sdpa_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register("folded", sdpa_mask)


@dataclass
class GlipObjectDetectionOutput(ModelOutput):
    """What the network says about B captions of T tokens, at N anchors.

    loss: the plain sum of loss_dict, only with labels. logits (B, N, T): alignment of every anchor with every token,
    before the sigmoid. box_deltas (B, N, 4): see `box_ops.decode`. centerness (B, N): logits. anchors (N, 4), or
    (B, N, 4) proposals of the two-stage head: xyxy pixels. level_shapes (L, 2): height, width of each level.
    pred_boxes (B, N, 4): decoded, not clipped, xyxy pixels of the resized image; only without labels.
    image_sizes (B, 2): unpadded height, width. attention_mask (B, T), input_ids (B, T), offset_mapping (B, T, 2)
    and image_index (B,) are the inputs', so that post-processing needs nothing else. hidden (only on request): every
    intermediate.
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


class Scale(nn.Module):
    """One learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


class GlipFusedBlock(nn.Module):
    """Fusion and a BERT layer (when fusing), then the dynamic convolutions."""

    def __init__(self, config: GlipConfig):
        super().__init__()
        self.fusion: GlipFusion | None = None
        self.text_layer: GlipTextLayer | None = None
        if config.fusion:
            self.fusion = GlipFusion(
                config.hidden_size,
                config.text_config.hidden_size,
                config.fusion_embed_dim,
                config.fusion_num_heads,
                config.fusion_dropout,
                1.0 / config.num_blocks,
            )
            self.text_layer = GlipTextLayer(config.text_config)
        self.conv = DynamicConv(
            config.hidden_size,
            config.group_norm_groups,
            config.dyrelu_reduction,
            config.deform_implementation,
        )


class GlipHead(nn.Module):
    """The tower of blocks and the prediction layers, shared by all levels (GLIP spec section 6)."""

    def __init__(self, config: GlipConfig):
        super().__init__()
        self.config = config
        channels, width = config.hidden_size, config.text_config.hidden_size
        self.blocks = nn.ModuleList(GlipFusedBlock(config) for _ in range(config.num_blocks))
        self.bbox_pred = initialised(nn.Linear(channels, 4), "normal")
        self.centerness = initialised(nn.Linear(channels, 1), "normal")
        self.cls_logits: nn.Linear | None = None
        if config.num_class_logits:
            self.cls_logits = initialised(
                nn.Linear(channels, config.num_class_logits), "normal"
            ).requires_grad_(False)
        self.scales = nn.ModuleList(Scale() for _ in range(config.num_feature_levels))
        self.dot_product_projection_text = nn.Linear(width, channels)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.bias_lang = nn.Parameter(torch.zeros(width))
        self.bias0 = nn.Parameter(torch.zeros(1))
        self.gradient_checkpointing = False

    def tower(
        self, x: Tensor, shapes: list[tuple[int, int]], text: Tensor, mask: Tensor, trace: list | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, N, C), text (B, T, D), mask (B, T) -> the same after all blocks."""
        eager = self.config._attn_implementation == "eager"
        bias = attention_bias(mask, text.dtype)
        for block in self.blocks:
            step: dict[str, Tensor] = {}
            if block.fusion is not None:
                if self.gradient_checkpointing and self.training:
                    x, text = torch.utils.checkpoint.checkpoint(
                        block.fusion, x, text, mask, eager, use_reentrant=False
                    )
                else:
                    x, text = block.fusion(x, text, mask, eager)
                step |= {"fused_image": x, "fused_text": text}
                text = block.text_layer(text, bias)
                step["text"] = text
            x = block.conv(x, shapes)
            if trace is not None:
                trace.append({**step, "image": x})
        return x, text

    def predict(
        self, x: Tensor, shapes: list[tuple[int, int]], embedded: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, N, C), embedded (B, T, D) -> token logits (B, N, T), box deltas (B, N, 4), centerness (B, N)."""
        scale = torch.cat([s.scale.expand(h * w) for s, (h, w) in zip(self.scales, shapes)])
        deltas = self.bbox_pred(x) * scale[:, None]
        return self.align(x, embedded), deltas, self.centerness(x).squeeze(-1)

    def align(self, x: Tensor, embedded: Tensor) -> Tensor:
        """S = O P^T with a learned temperature and a bias from the token alone (GLIP spec section 6.4)."""
        embedded = F.normalize(embedded, dim=-1)
        tokens = self.dot_product_projection_text(embedded / 2)
        bias = embedded @ self.bias_lang + self.bias0
        logits = torch.baddbmm(bias[:, None], x, (tokens / self.log_scale.exp()).transpose(1, 2))
        return logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)


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
        """Published initial values (GLIP spec sections 3 and 6); the text encoder initialises itself."""
        prior = self.config.prior_probability
        if isinstance(module, GlipHead):
            if module.cls_logits is not None:
                init.constant_(module.cls_logits.bias, _logit(prior))
            init.zeros_(module.log_scale)
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


class GlipForObjectDetection(GlipPreTrainedModel):
    """The whole network: images and captions in; token alignment, boxes and centerness at every anchor out."""

    def __init__(self, config: GlipConfig):
        super().__init__(config)
        stages = list(config.fpn_in_stages)
        self.backbone = initialised(GlipSwin(config.backbone_config, stages), "trunc_normal")
        initialised(self.backbone.patch_embed, "default")
        self.neck = GlipFeaturePyramid(
            [config.backbone_config.stage_channels(s) for s in stages],
            config.hidden_size,
            config.num_feature_levels,
            config.drop_block_prob,
            config.drop_block_size,
        )
        self.text_encoder = BertModel(config.text_config, add_pooling_layer=False)
        self.head = GlipHead(config)
        self.post_init()

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

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """input_ids, attention_mask (B, T) -> BERT's last layer (B, T, D), not masked.

        Compute once for each distinct caption and pass as `text_features`.
        """
        return self.text_encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state

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
            text_features = self.encode_text(input_ids, attention_mask, token_type_ids)
        if image_sizes is None:
            if pixel_values is None:
                raise ValueError("image_sizes is needed when image_features are given without pixel_values")
            image_sizes = torch.tensor(
                [pixel_values.shape[-2:]] * pixel_values.shape[0], device=attention_mask.device
            )
        if image_index is not None:
            image_features = [m[image_index] for m in image_features]
            image_sizes = image_sizes[image_index]
        shapes = [tuple(m.shape[-2:]) for m in image_features]
        x = join_levels(image_features)
        blocks: list | None = None
        if trace is not None:
            blocks = trace["blocks"] = []
            trace["text"] = text_features
        x, text = self.head.tower(x, shapes, text_features, attention_mask, blocks)
        # without fusion the words keep BERT's own features, padding zeroed
        embedded = text if self.config.fusion else text_features * attention_mask[..., None]
        logits, deltas, centerness = self.head.predict(x, shapes, embedded)
        if trace is not None and self.head.cls_logits is not None:
            trace["cls_logits"] = self.head.cls_logits(x)
        anchors = device_constant(
            pyramid_anchors,
            tuple(shapes),
            tuple(self.config.feature_strides),
            self.config.anchor_scale,
            device=x.device,
        )
        loss, loss_dict, boxes = None, None, None
        if labels is None:
            boxes = decode(deltas.float(), anchors, tuple(self.config.box_coder_weights))
        else:
            targets = collect_targets(labels, logits.shape[-1], logits.device)
            with torch.autocast(logits.device.type, enabled=False):
                loss_dict = dense_losses(
                    self.config,
                    logits,
                    deltas,
                    centerness,
                    anchors,
                    [h * w for h, w in shapes],
                    attention_mask,
                    targets,
                )
            loss = torch.stack(list(loss_dict.values())).sum()
        output = GlipObjectDetectionOutput(
            loss=loss,
            loss_dict=loss_dict,
            logits=logits,
            box_deltas=deltas,
            centerness=centerness,
            pred_boxes=boxes,
            anchors=anchors,
            level_shapes=torch.tensor(shapes),
            image_sizes=image_sizes,
            attention_mask=attention_mask,
            input_ids=input_ids,
            offset_mapping=offset_mapping,
            image_index=image_index,
            hidden=trace,
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

        Raises ValueError when the folder's shape is another than `config.text_config`'s.
        """
        source = BertModel.from_pretrained(folder, add_pooling_layer=False)
        own, theirs = self.text_encoder.state_dict(), source.state_dict()
        wrong = [n for n in own if n not in theirs or own[n].shape != theirs[n].shape]
        if wrong or set(theirs) - set(own):
            wrong = wrong or sorted(set(theirs) - set(own))
            raise ValueError(
                f"{folder} does not fit text_config; first difference: {wrong[0]} ({len(wrong)} in all)"
            )
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


__all__ = ["GlipForObjectDetection", "GlipObjectDetectionOutput", "GlipPreTrainedModel"]
