"""Settings of a network and its training."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pipeline.config.base import Config


class PromptConfig(Config):
    """How class names become a prompt when a detection record is loaded (GLIP spec 9.2)."""

    max_negatives: int = Field(85, ge=0, description="absent class names in a prompt at most")
    full_negatives_share: float = Field(
        0.5, ge=0, le=1, description="share of prompts with all max_negatives; else 1..max"
    )
    background_class: bool = Field(False, description='the original\'s fault: " background " is sometimes a negative')
    discard_after_drawing: bool = Field(
        False,
        description="the original's fault: negatives are drawn from all names, then positives among them discarded",
    )


class NoisyLabelConfig(Config):
    """How the student treats pseudo-labels."""

    score_weight: bool = Field(False, description="a pseudo box's losses are weighted by its score")
    regress_above: float = Field(0.0, ge=0, le=1, description="no box regression from pseudo boxes scoring below this")
    ignore_uncertain: bool = Field(
        True, description="tokens of phrases without a confident box are left out of the loss"
    )
    names_share: float = Field(
        0.0, ge=0, le=1,
        description="share of pseudo-labelled images that are prompted with the head nouns of their phrases, without the "
        "caption, and with other images' as negatives (as a detection set is)",
    )  # fmt: skip
    caption_negatives: float = Field(0.0, ge=0, le=1, description="share of captions packed with others as negatives")
    max_caption_negatives: int = Field(19, ge=1, description="captions packed into one prompt at most")
    full_caption_share: float = Field(
        0.0, ge=0, le=1, description="share of packed prompts with all max_caption_negatives; else 1..max"
    )


class TrainConfig(Config):
    """One training run. Defaults are the released recipe's (GLIP spec 11)."""

    steps: int = Field(1000, ge=1, description="optimiser steps")
    batch_size: int = Field(64, ge=1, description="images per optimiser step, over all processes")
    accumulate: int = Field(
        1, ge=1, description="micro-batches that a process's share of a step is cut into, to fit its memory"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute the fusion blocks again in the backward pass: less memory, the same numbers"
    )
    learning_rate: float = Field(1e-4, gt=0, description="AdamW's rate")
    text_learning_rate: float = Field(1e-5, ge=0, description="the rate of the language backbone")
    weight_decay: float = Field(1e-4, ge=0)
    weight_decay_milestones: tuple[float, ...] = Field(
        (), description="shares of the steps at which the weight decay falls to a tenth (GLIP-L)"
    )
    bias_rate_factor: float = Field(
        2.0, gt=0, description='parameters with "bias" in their names: this times the rate, no decay'
    )
    warmup_steps: int = Field(2000, ge=0, description="linear warm-up from 0.001 of the rate")
    schedule: Literal["step", "cosine", "constant"] = "step"
    milestones: tuple[float, ...] = Field(
        (0.67, 0.89), description="shares of the steps at which the rate falls to a tenth"
    )
    clip_grad_norm: float = Field(1.0, gt=0)
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the weights' moving average, saved beside them")
    image_sizes: tuple[int, ...] = Field((480, 560, 640, 720, 800), description="shorter sides, drawn per image")
    max_image_size: int = Field(1333, description="longer side at most")
    flip: float = Field(0.5, ge=0, le=1, description="share of images mirrored")
    freeze_text_layers: int = Field(
        0, ge=0, description="embeddings and so many first layers of the text encoder stay as they are"
    )
    freeze_backbone_stages: int = Field(0, ge=0)
    mixture: dict[str, float] = Field(
        default_factory=dict,
        description="share of each source in the batches, by name (detection, grounding, pseudo)",
    )
    mixture_unit: Literal["shares", "copies"] = Field(
        "shares",
        description="shares: of the batches; copies: how often a source stands in one concatenated set, so that its share "
        "is copies times records",
    )
    first_steps: int = Field(
        0, ge=0, description="steps at the beginning that read first_mixture instead: a curriculum"
    )
    first_mixture: dict[str, float] = Field(default_factory=dict, description="shares of sources in the first steps")
    prompt: PromptConfig = PromptConfig()
    noisy: NoisyLabelConfig = NoisyLabelConfig()
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    save_every: int = Field(1000, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1)
    log_every: int = Field(20, ge=1)
    draw_every: int = Field(
        0, ge=0, description="steps between pictures of predictions beside targets in TensorBoard; 0: none"
    )
    max_skipped_steps: int = Field(
        0, ge=0, description="steps with a loss that is not finite that may be left out before the run stops"
    )
    seed: int = 0


class ModelConfig(Config):
    """Which network to train from scratch."""

    settings: dict[str, Any] = Field(default_factory=dict, description="GlipConfig's own arguments")
    text_encoder: str | None = Field(None, description='a BERT folder, or "minilm" for the small one make installs')
    text_layers: int | None = Field(None, ge=1, description="use only so many first layers of the text encoder")
    text_dropout: float | None = Field(None, ge=0, lt=1, description="the text encoder's dropout; default: its own")
    backbone: str | None = Field(None, description="an ImageNet Swin checkpoint file")
    image_processor: dict[str, Any] = Field(default_factory=dict, description="GlipImageProcessor's own arguments")
