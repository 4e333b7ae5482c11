"""GLIP, an object detector with a caption's words as its classes (arXiv 2112.03857)."""

from __future__ import annotations

import os
from collections.abc import Sequence
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
from transformers.utils import can_return_tuple, logging

from .box_ops import decode
from .configuration_glip import SCORE_AGGREGATIONS, GlipConfig
from .layers.constants import device_constant, without_values
from .layers.dynamic_head import DynamicBranch
from .layers.fpn import GlipFeaturePyramid
from .layers.fusion import GlipFusion
from .layers.head import AlignmentHead, DynamicHead, Scale, TwoStageHead
from .layers.initialisation import initialise, initialised, logit
from .layers.swin import GlipSwin, SwinAttention
from .losses import count_targets
from .outputs import GlipObjectDetectionOutput
from .saved_code import save_code
from .targets import check_shape, collect_targets

# "folded" is a computation of the fusion; inside BERT it means torch's fused attention
ALL_ATTENTION_FUNCTIONS.register("folded", sdpa_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register("folded", sdpa_mask)


class GlipPreTrainedModel(PreTrainedModel):
    """Base class: initial values, and the attributes that transformers reads."""

    config: GlipConfig
    config_class = GlipConfig
    base_model_prefix = "glip"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["SwinBlock", "GlipFusedBlock"]
    _saved_for: str | None = None

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type = "AutoModelForZeroShotObjectDetection") -> None:
        """Save the code beside the weights from now on, for `auto_class` with `trust_remote_code`."""
        super().register_for_auto_class(auto_class)
        # under its own name transformers would copy this file without the layers
        cls._saved_for, cls._auto_class = cls._auto_class, None

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does; see `register_for_auto_class`."""
        if self._saved_for is not None:
            os.makedirs(save_directory, exist_ok=True)
            module = __name__.rpartition(".")[2]
            save_code(module, save_directory)
            known = getattr(self.config, "auto_map", None) or {}
            self.config.auto_map = {**known, self._saved_for: f"{module}.{type(self).__name__}"}
        super().save_pretrained(save_directory, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Set published initial values (GLIP spec section 6), not the text encoder's."""
        if isinstance(module, AlignmentHead):
            if module.no_object is not None:
                init.normal_(module.no_object, std=0.02)
                init.zeros_(module.no_object_bias)
            init.constant_(module.log_scale, self.config.log_scale_init)
            init.zeros_(module.bias_lang)
            init.constant_(module.bias0, logit(self.config.prior_probability))
        elif isinstance(module, GlipForObjectDetection):
            if module.tuned_prompt is not None:
                init.zeros_(module.tuned_prompt)
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


def _check(name: str, value: Any, want: Sequence[int | str], note: str, floats: bool | None = None) -> None:
    """Raise unless an input, if given, is a tensor of the sizes `want` (a letter: any) and the kind of numbers."""
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise TypeError(f'{name}: found {type(value).__name__}; want a tensor (return_tensors="pt")')
    check_shape(name, value, want, note, least=1)
    if floats is not None and value.is_floating_point() != floats:
        raise ValueError(f"{name}: found {value.dtype}; want {'floats, normalised' if floats else 'whole numbers'}")


def _check_values(image_sizes: Tensor | None, pixel_values: Tensor | None, image_index: Tensor | None, images: int):
    """Raise ValueError for sizes beyond the pixels that are there, and for captions without an image."""
    if torch.compiler.is_compiling() or without_values():
        return
    if image_sizes is not None and pixel_values is not None:
        limit = tuple(pixel_values.shape[-2:])
        inside = (image_sizes >= 1) & (image_sizes <= torch.tensor(limit, device=image_sizes.device))
        if not inside.all():
            i = int((~inside.all(1)).nonzero()[0])
            raise ValueError(
                f"image_sizes[{i}]: found {image_sizes[i].tolist()}; want (height, width), at most {limit}"
            )
    if image_index is not None:
        wrong = ((image_index < 0) | (image_index >= images)).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(f"image_index: captions {wrong} have no image; want one of {images} for each")


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
        self.tuned_prompt: nn.Parameter | None = None
        if config.tuned_tokens:
            self.tuned_prompt = nn.Parameter(torch.zeros(config.tuned_tokens, config.text_config.hidden_size))
        self.head = (DynamicHead if config.head == "dynamic" else TwoStageHead)(config)
        self._frozen: list[nn.Module] = []
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the text encoder's word embeddings, for tools of transformers and accelerate."""
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text encoder's word embeddings."""
        self.text_encoder.set_input_embeddings(value)

    def encode_image(self, pixel_values: Tensor) -> list[Tensor]:
        """Compute pyramid maps (B, C, h, w), finest first, of normalised BGR (B, 3, H, W) of any precision.

        An image with several captions needs them once: pass them as `image_features`.
        """
        stages = self.backbone(pixel_values.to(self.dtype))
        return self.neck([stages[s - 2] for s in self.config.fpn_in_stages])

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Compute BERT's last layer (B, T, D), not masked, of input_ids and attention_mask (B, T).

        Equal captions need it once: pass it as `text_features`.
        """
        return self.text_encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state

    def _encode_distinct(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Compute `encode_text` with equal rows (one class list for many images) encoded once."""
        plain = self.training or input_ids.shape[0] == 1 or token_type_ids is not None
        if plain or torch.compiler.is_compiling() or without_values():
            return self.encode_text(input_ids, attention_mask, token_type_ids)  # dropout: equal rows differ
        both = torch.cat([input_ids, attention_mask], 1)
        distinct, place = both.unique(dim=0, return_inverse=True)
        if distinct.shape[0] == input_ids.shape[0]:
            return self.encode_text(input_ids, attention_mask)
        length = input_ids.shape[1]
        return self.encode_text(distinct[:, :length], distinct[:, length:])[place]

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        image_sizes: Tensor | None = None,
        labels: list[dict[str, Any]] | None = None,
        image_features: list[Tensor] | None = None,
        text_features: Tensor | None = None,
        image_index: Tensor | None = None,
        offset_mapping: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        loss_divisors: Tensor | None = None,
        special_tokens_mask: Tensor | None = None,
        length: Tensor | None = None,
    ) -> GlipObjectDetectionOutput:
        """Run the network on B image-caption pairs.

        pixel_values (B, 3, H, W): normalised BGR, zero-padded right and bottom. input_ids,
        token_type_ids, attention_mask (B, T). image_sizes (B, 2): unpadded height, width (default:
        those of pixel_mask (B, H, W), 1 inside the image, or all of H, W). image_features,
        text_features: results of `encode_image`, `encode_text` to use instead. image_index (B,): the
        image of each caption, when images and captions are not paired one to one. offset_mapping
        (B, T, 2): passed on to the output. output_hidden_states: true, or the places in
        `hidden_states` that are wanted (None in place of the others). output_attentions: not offered.
        special_tokens_mask, length: what a tokenizer adds when they are wanted; not used.
        `return_dict=False`: a tuple.

        labels: one dict per caption. `boxes` (n, 4) xyxy, pixels of the resized image, and
        `positive_map` (n, T') 0/1, cut or padded to T: the tokens that name each box
        (`grounding.phrase_tokens` and `positive_map` make it), which is what GLIP has instead of
        `class_labels`. Optional, for noisy labels: `weights` (n,) factors of a box's losses;
        `regress` (n,) bool, false: no box or centerness loss; `token_ignore` (T',) bool: tokens
        that are no negatives in this image; `ignore_boxes` (m, 4): negatives with their centre in
        one, or IoU >= 0.5 with it, have no alignment loss.

        Raises NonFiniteLossError naming terms and images; ValueError for missing inputs, inputs
        whose shapes disagree, unsupported labels, and output_attentions.
        """
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise ValueError("output_attentions: found true; want false: the fused computation makes no attention maps")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if pixel_values is None and image_features is None:
            raise ValueError("give pixel_values or image_features")
        if input_ids is None and (text_features is None or attention_mask is None):
            raise ValueError("give input_ids, or text_features with their attention_mask")
        if pixel_values is None and image_sizes is None:
            raise ValueError("image_sizes is needed when image_features are given without pixel_values")
        _check("pixel_values", pixel_values, ("B", 3, "H", "W"), "one image or more", floats=True)
        _check("input_ids", input_ids, ("B", "T"), "one row for each caption", floats=False)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        _check("attention_mask", attention_mask, ("B", "T") if input_ids is None else input_ids.shape, "as input_ids")
        limit = self.config.text_config.max_position_embeddings
        if text_features is None and attention_mask.shape[1] > limit:
            raise ValueError(
                f"input_ids: found {attention_mask.shape[1]} tokens; want the text encoder's {limit} at most"
            )
        size, note = tuple(attention_mask.shape), "the rows and tokens of attention_mask"
        _check("text_features", text_features, (*size, "D"), note)
        _check("token_type_ids", token_type_ids, size, note)
        _check("offset_mapping", offset_mapping, (*size, 2), note)
        images = (pixel_values if image_features is None else image_features[0]).shape[0]
        if image_index is None and size[0] != images:
            raise ValueError(f"text: found {size[0]} captions for {images} images; want one each, or image_index")
        _check("image_index", image_index, size[:1], "the image of every caption", floats=False)
        _check("image_sizes", image_sizes, (images, 2), f"height, width for each of {images} images")
        if pixel_values is not None:
            _check("pixel_mask", pixel_mask, pixel_values[:, 0].shape, "pixel_values' without channels")
        # in training a wait for the device costs time, and the labels' boxes are checked against the sizes
        _check_values(None if self.training else image_sizes, pixel_values, image_index, images)
        if image_sizes is not None:  # checked where they were, so that those of a processor cost a GPU no wait
            image_sizes = image_sizes.to(attention_mask.device, non_blocking=True)
        if image_features is None:
            image_features = self.encode_image(pixel_values)
        if text_features is None:
            text_features = self._encode_distinct(input_ids, attention_mask, token_type_ids)
        if self.tuned_prompt is not None:
            rows = self.tuned_prompt[: text_features.shape[1]]
            text_features = text_features + nn.functional.pad(rows, (0, 0, 0, text_features.shape[1] - len(rows)))
        if image_sizes is None and pixel_mask is not None:
            image_sizes = torch.stack([pixel_mask.amax(2).sum(1), pixel_mask.amax(1).sum(1)], 1)
        elif image_sizes is None:
            image_sizes = torch.tensor(pixel_values.shape[-2:], device=attention_mask.device).expand(images, -1)
        if image_index is not None:
            image_features = [m[image_index] for m in image_features]
            image_sizes = image_sizes[image_index]
        targets = None
        if labels is not None:
            if not isinstance(labels, (list, tuple)) or len(labels) != size[0]:
                found = len(labels) if isinstance(labels, (list, tuple)) else type(labels).__name__
                raise ValueError(f"labels: found {found}; want one for each of {size[0]} captions")
            targets = collect_targets(labels, size[1], text_features.device, image_sizes, attention_mask)
        keep_hidden = output_hidden_states is not None and output_hidden_states is not False
        head = self.head(
            image_features, text_features, attention_mask, image_sizes, targets, keep_hidden, loss_divisors
        )
        batch = size[0]
        locations, words = zip(*head.hidden) if keep_hidden else (None, None)
        if isinstance(output_hidden_states, (list, tuple)):
            wanted = {i % len(locations) for i in output_hidden_states}
            locations, words = (
                tuple(x if i in wanted else None for i, x in enumerate(states)) for states in (locations, words)
            )
        return GlipObjectDetectionOutput(
            loss=None if head.losses is None else torch.stack(list(head.losses.values())).sum(),
            loss_dict=head.losses,
            logits=_as_independent(head.logits, head.no_object, attention_mask, head.real),
            box_deltas=head.deltas,
            centerness=head.centerness,
            pred_boxes=decode(head.deltas.float(), head.anchors, tuple(self.config.box_coder_weights)),
            anchors=head.anchors.expand(batch, -1, -1),
            level_shapes=device_constant(
                torch.tensor, tuple(map(tuple, head.level_shapes)), device=head.logits.device
            ).repeat(batch, 1, 1),
            image_sizes=image_sizes,
            attention_mask=attention_mask,
            input_ids=input_ids,
            offset_mapping=offset_mapping,
            image_index=image_index,
            score_aggregation=torch.full(
                (batch,), SCORE_AGGREGATIONS.index(self.config.score_aggregation), device=head.logits.device
            ),
            hidden_states=locations,
            text_hidden_states=words,
        )

    def loss_counts(
        self, size: tuple[int, int], labels: list[dict[str, Any]], tokens: int, image_sizes: Tensor
    ) -> Tensor | None:
        """Count what a batch's losses are divided by: (3,), for `losses.loss_divisors`.

        size: height and width of the padded images; tokens: of the padded text. Summed over the
        micro-batches of a step, averaged and passed to each as `loss_divisors`, they make its
        gradient that of the whole batch. None where the predictions assign labels to anchors.
        """
        if self.config.head != "dynamic" or self.config.assigner == "hungarian":
            return None
        shapes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in self.config.feature_strides]
        anchors = self.head.anchors(shapes, image_sizes.device)
        targets = collect_targets(labels, tokens, image_sizes.device, image_sizes)
        return count_targets(self.config, anchors, [h * w for h, w in shapes], targets, len(labels))

    def freeze(self, text_layers: int = 0, backbone_stages: int = 0) -> None:
        """Exclude the lowest parts from training, and only these.

        text_layers n > 0: BERT's embeddings and its first n layers. backbone_stages n > 0: the
        patch embedding and the first n - 1 stages (2 in the released GLIP-L; GLIP spec section 2).
        They stay in evaluation mode, without dropout and drop path. Raises ValueError for more than
        there are.
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
        for module, trained in [*((m, True) for m in self._frozen), *((m, False) for m in frozen)]:
            module.requires_grad_(trained)
        self._frozen = frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> GlipForObjectDetection:
        """Set training mode, except for the parts that `freeze` named: they drop nothing."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def load_text_encoder(self, folder: str | Path) -> None:
        """Load the text encoder's weights from a BERT folder, without its pooler.

        With fewer `num_hidden_layers` than the folder has, its first layers. Raises ValueError when
        the folder differs from `config.text_config` otherwise.
        """
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # no warning about the pooler
        try:
            source = BertModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32)
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


__all__ = ["GlipForObjectDetection", "GlipPreTrainedModel"]
