"""Configuration of the GLIP network, from GLIP-L down to a demo of a million parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, BertConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

ALIGNMENT_LOSSES = ("focal", "cross_entropy")
ASSIGNERS = ("atss", "max_iou", "hungarian")
HEADS = ("dynamic", "two_stage")
SCORE_AGGREGATIONS = ("mean", "max", "geometric", "sum")
VARIANTS = ("glip-a", "glip-t", "glip-l")


@strict
class GlipBackboneConfig(PreTrainedConfig):
    """Swin settings (GLIP spec section 2). Stage k (2, 3, ...) has stride `patch_size * 2**(k-2)`.

    initializer_range: standard deviation of new weights. The published 0.02 suits widths of
    hundreds; the blocks of a narrow network then add almost nothing and it learns slowly (about
    1/sqrt(width) is better).
    """

    model_type = "glip_swin"

    embed_dim: int = 96
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    patch_size: int = 4
    mlp_ratio: float | int = 4.0
    drop_path_rate: float | int = 0.2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5

    def validate_architecture(self) -> None:
        """Raise ValueError when depths, heads and widths do not fit together."""
        if len(self.depths) != len(self.num_heads):
            raise ValueError(f"depths {self.depths} and num_heads {self.num_heads} differ in length")
        for i, heads in enumerate(self.num_heads):
            if (self.embed_dim * 2**i) % heads:
                raise ValueError(f"stage {i + 2}: width {self.embed_dim * 2**i} is not a multiple of {heads} heads")

    def stage_channels(self, stage: int) -> int:
        """Channels of stage `stage` (2 is the first)."""
        return self.embed_dim * 2 ** (stage - 2)


# transformers looks a sub-configuration named "backbone_config" up by its type
AutoConfig.register(GlipBackboneConfig.model_type, GlipBackboneConfig, exist_ok=True)


@strict
class GlipConfig(PreTrainedConfig):
    """Settings of the whole network; the defaults are GLIP-T's, `variant` makes the released three.

    backbone_config: Swin settings. text_config: any BertConfig, also for the head's BERT layers.
    fpn_in_stages: Swin stages that feed the feature pyramid; num_feature_levels: levels in all, the
    further ones by stride-2 convolutions. anchor_scale: anchor side over stride. log_scale_init:
    initial log temperature of the alignment; a new network learns faster from a negative one.
    `attn_implementation="eager"` computes the fusion as published (every location projected to
    `fusion_embed_dim`); any other value folds the projections into the text side, with the same
    numbers in less time. tuned_tokens: rows of a tuned prompt that is added to the first words'
    features (0: none; GLIP spec section 11). num_class_logits: the released checkpoints' unused class layer (0: none).
    deform_implementation: "auto" is torchvision's operator on CUDA, a gather with one matrix
    product on CPU. score_aggregation: default of the processor, see
    `post_processing.phrase_scores`.
    """

    model_type = "glip"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(config_class=GlipBackboneConfig),
        "text_config": SubConfigSpec(config_class=BertConfig),
    }

    if TYPE_CHECKING:  # their types in a finished configuration
        backbone_config: GlipBackboneConfig
        text_config: BertConfig
    else:
        backbone_config: dict | PreTrainedConfig | None = None
        text_config: dict | PreTrainedConfig | None = None

    # Feature pyramid
    hidden_size: int = 256
    fpn_in_stages: list[int] | tuple[int, ...] = (3, 4, 5)
    num_feature_levels: int = 5
    drop_block_prob: float | int = 0.3
    drop_block_size: int = 3

    # Head
    head: str = "dynamic"
    num_blocks: int = 6
    group_norm_groups: int = 16
    dyrelu_reduction: int = 4
    deform_implementation: str = "auto"
    fusion: bool = True
    fusion_embed_dim: int = 2048
    fusion_num_heads: int = 8
    fusion_dropout: float | int = 0.1
    num_class_logits: int = 80
    prior_probability: float = 0.01
    log_scale_init: float | int = 0.0
    anchor_scale: float | int = 8.0
    box_coder_weights: list[float] | tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)

    # Two-stage head only
    proposals_train: int = 200
    proposals_test: int = 300
    proposal_nms_threshold: float = 0.7
    roi_size: int = 7
    roi_hidden_size: int = 256
    box_loss: str = "smooth_l1"

    # Text
    max_text_length: int = 256
    tuned_tokens: int = 0

    # Losses
    alignment_loss: str = "focal"
    focal_alpha: float = 0.25
    focal_gamma: float | int = 2.0
    no_object_weight: float | int = 0.1
    alignment_loss_weight: float | int = 1.0
    box_loss_weight: float | int = 2.0
    centerness_loss_weight: float | int = 1.0
    assigner: str = "atss"
    atss_topk: int = 9
    positive_iou: float = 0.5
    negative_iou: float = 0.4

    # Post-processing
    score_aggregation: str = "mean"

    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def validate_architecture(self) -> None:
        """Raise ValueError that names the setting, its value and the allowed ones."""
        for name, allowed in (
            ("alignment_loss", ALIGNMENT_LOSSES),
            ("assigner", ASSIGNERS),
            ("head", HEADS),
            ("score_aggregation", SCORE_AGGREGATIONS),
            ("deform_implementation", ("auto", "torchvision", "gather")),
            ("box_loss", ("smooth_l1", "l2")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: use one of {', '.join(allowed)}")
        stages = list(self.fpn_in_stages)
        depths = list(self.backbone_config.depths)
        if stages != list(range(stages[0], stages[0] + len(stages))) or stages[0] < 2:
            raise ValueError(f"fpn_in_stages={stages}: use consecutive stages from 2 up, such as (3, 4, 5)")
        if stages[-1] != len(depths) + 1:
            raise ValueError(
                f"fpn_in_stages={stages} must end at the last stage, {len(depths) + 1}, of depths={depths}"
            )
        if self.num_feature_levels < len(stages):
            raise ValueError(
                f"num_feature_levels={self.num_feature_levels} is less than the {len(stages)} stages fed in"
            )
        if self.hidden_size % self.group_norm_groups:
            raise ValueError(f"hidden_size={self.hidden_size} is not a multiple of {self.group_norm_groups} groups")
        if self.fusion_embed_dim % self.fusion_num_heads:
            raise ValueError(
                f"fusion_embed_dim={self.fusion_embed_dim}: not a multiple of {self.fusion_num_heads} heads"
            )
        if self.max_text_length > self.text_config.max_position_embeddings:
            raise ValueError(
                f"max_text_length={self.max_text_length} is more than the text encoder's "
                f"{self.text_config.max_position_embeddings} positions"
            )

    @property
    def feature_strides(self) -> list[int]:
        """Stride in pixels of every pyramid level."""
        first = self.fpn_in_stages[0] - 2
        return [self.backbone_config.patch_size * 2 ** (first + i) for i in range(self.num_feature_levels)]

    @classmethod
    def variant(cls, name: str, **changes: Any) -> GlipConfig:
        """Make the configuration of `glip-a`, `glip-t` (also B and C) or `glip-l`, with `changes`.

        Raises ValueError for another name. Source: GLIP spec sections 2 and 6.
        """
        if name not in VARIANTS:
            raise ValueError(f"unknown variant {name!r}: use one of {', '.join(VARIANTS)}")
        settings: dict[str, Any] = {}
        if name == "glip-a":
            settings["fusion"] = False
        if name == "glip-l":
            settings["num_blocks"] = 8
            settings["backbone_config"] = GlipBackboneConfig(
                embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window_size=12, drop_path_rate=0.4
            )
        return cls(**{**settings, **changes})


__all__ = ["GlipBackboneConfig", "GlipConfig"]
