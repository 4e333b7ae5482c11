"""Settings of a network and its training."""

from __future__ import annotations

from operator import not_
from typing import Any, Literal

from pydantic import Field

from pipeline.config.base import Config, UnitFloat
from pipeline.config.secrets import Address
from pipeline.system.compiling import CompileMode


class PromptConfig(Config):
    """Construction of prompts from class names when a detection record is loaded (GLIP spec 9.2)."""

    max_negatives: int = Field(85, ge=0, description="maximum absent class names per prompt")
    full_negatives_share: UnitFloat = Field(
        0.5, description="share of prompts with max_negatives; the others have a random number from 1"
    )
    background_class: bool = Field(
        False, description='reproduce a bug of the original code: " background " is sometimes a negative'
    )
    discard_after_drawing: bool = Field(
        False,
        description="reproduce a bug of the original code: negatives are drawn from all names, and positives among "
        "them discarded",
    )
    phrases_share: UnitFloat = Field(
        0.0,
        exclude_if=not_,  # so that fingerprints without it stay as they were
        description="share of images with captions whose prompt is made of their phrases, joined as class names are, "
        "with hard_negatives, instead of the caption",
    )
    hard_negatives: int = Field(
        8,
        ge=0,
        exclude_if=lambda limit: limit == 8,
        description="maximum hard negatives of such a prompt: its phrases with another colour, size or material, or "
        "with another noun, where the caption excludes that they are in the image",
    )


class NoisyLabelConfig(Config):
    """Treatment of pseudo-labels in the student's training."""

    score_weight: bool = Field(False, description="weight the losses of pseudo-labelled boxes by their score")
    regress_above: UnitFloat = Field(0.0, description="no box regression from pseudo-labels with a lower score")
    ignore_uncertain: bool = Field(True, description="exclude tokens of phrases without a confident box from the loss")
    names_share: UnitFloat = Field(
        0.0,
        description="share of pseudo-labelled images whose prompt is made of their phrases' head nouns, with those of "
        "other images as negatives, instead of the caption (as for a detection set)",
    )
    caption_negatives: UnitFloat = Field(
        0.0, description="share of captions that are concatenated with other captions as negatives"
    )
    max_caption_negatives: int = Field(19, ge=1, description="maximum negative captions per prompt")
    full_caption_share: UnitFloat = Field(
        0.0, description="share of such prompts with max_caption_negatives; the others have a random number from 1"
    )


class TrainConfig(Config):
    """Settings of one training. Defaults are those of the released recipe (GLIP spec 11)."""

    steps: int = Field(1000, ge=1, description="optimiser steps")
    batch_size: int = Field(64, ge=1, description="images per optimiser step, over all processes")
    accumulate: int = Field(
        1,
        ge=1,
        description="gradient accumulation: micro-batches per step in each process, which together give the "
        "whole batch's gradient",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute the fusion blocks in the backward pass: less memory, the same results"
    )
    compile: CompileMode = Field(
        "off",
        description="torch.compile of the text layers, the fusion and Swin's MLPs: auto, or max, which tries more "
        "kernels; without a compiler they are computed as with off, after a warning",
    )
    learning_rate: float = Field(1e-4, gt=0, description="learning rate of AdamW")
    text_learning_rate: float = Field(1e-5, ge=0, description="learning rate of the text encoder")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay of AdamW")
    weight_decay_milestones: tuple[float, ...] = Field(
        (), description="fractions of the steps at which the weight decay is divided by ten (GLIP-L)"
    )
    bias_rate_factor: float = Field(
        2.0,
        gt=0,
        description='factor of the learning rate of parameters with "bias" in their names; they have no decay',
    )
    warmup_steps: int = Field(100, ge=0, description="steps of linear warm-up from 0.001 of the learning rate")
    schedule: Literal["step", "cosine", "constant"] = Field("step", description="learning rate schedule")
    milestones: tuple[float, ...] = Field(
        (0.67, 0.89), description="step schedule: fractions of the steps at which the learning rate is divided by ten"
    )
    clip_grad_norm: float = Field(1.0, gt=0, description="maximum norm of the gradient")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of an exponential moving average of the weights, saved with the checkpoint"
    )
    image_sizes: tuple[int, ...] = Field(
        (480, 560, 640, 720, 800), description="shorter sides in pixels, one chosen at random per image"
    )
    max_image_size: int = Field(1333, description="maximum longer side in pixels")
    flip: UnitFloat = Field(
        0.5,
        description="probability of a horizontal flip; left and right in captions stay, so want 0 for referring "
        "expressions (RefCOCO)",
    )
    freeze_text_layers: int = Field(
        0, ge=0, description="freeze the text encoder's embeddings and this number of its first layers"
    )
    freeze_backbone_stages: int = Field(0, ge=0, description="freeze this number of the image backbone's first stages")
    mixture: dict[str, float] = Field(
        default_factory=dict,
        description="source (detection, grounding, pseudo, ...) -> its share of the batches",
    )
    mixture_unit: Literal["shares", "copies"] = Field(
        "shares",
        description="unit of mixture. shares: of the batches; copies: repetitions of a source in one concatenated set, "
        "so that its share is proportional to copies times records",
    )
    first_steps: int = Field(
        0, ge=0, description="number of first steps that use first_mixture instead of mixture: a curriculum"
    )
    first_mixture: dict[str, float] = Field(default_factory=dict, description="mixture of the first steps")
    last_steps: int = Field(
        0,
        ge=0,
        exclude_if=not_,  # so that fingerprints without it stay as they were
        description="number of last steps that use last_mixture instead of mixture: a final phase, such as on human "
        "labels alone",
    )
    last_mixture: dict[str, float] = Field(
        default_factory=dict, exclude_if=not_, description="mixture of the last steps"
    )
    prompt: PromptConfig = PromptConfig()
    noisy: NoisyLabelConfig = NoisyLabelConfig()
    precision: Literal["auto", "float32", "bf16", "fp16"] = Field(
        "auto", description="precision of the computation; auto: bf16 on GPUs that have it, else float32"
    )
    save_every: int = Field(1000, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="number of latest checkpoints to keep")
    log_every: int = Field(20, ge=1, description="steps between log entries")
    draw_every: int = Field(
        0, ge=0, description="steps between images of predictions and targets in TensorBoard; 0: none"
    )
    max_skipped_steps: int = Field(0, ge=0, description="steps with a non-finite loss to skip before the run stops")
    validate_every: int = Field(0, ge=0, description="steps between validations, on the job's validation set; 0: none")
    validate_images: int = Field(200, ge=1, description="images of a validation, rounded up to whole batches")
    best_metric: Literal["loss", "loss_dot_product_token", "loss_reg", "loss_centerness"] = Field(
        "loss", description="validation loss whose lowest value decides which model is kept in best/"
    )
    check_memory: bool = Field(
        True, description="check before the first step that a batch of the largest images fits into the memory"
    )
    seed: int = Field(0, description="seed of the training")


def too_long_a_warmup(section: str, training: TrainConfig) -> str:
    """Message on a warm-up that is longer than the training, whose learning rate would never be reached."""
    return (
        f"{section}.warmup_steps: found {training.warmup_steps:,} steps of warm-up in a training of {training.steps:,} "
        f"({section}.steps); want fewer, such as {training.steps // 10}"
    )


class TeacherConfig(TrainConfig):
    """Settings of the first teacher: the model it starts from, and its training."""

    init: Address | None = Field(
        None,
        description="model that the teacher is (steps: 0) or starts from: a model folder, or a released GLIP "
        "checkpoint (.pth), which is converted; default: a new network, as the model section states it",
    )
    steps: int = Field(1000, ge=0, description="optimiser steps; 0: use init as it is")

    def training(self, **changes: Any) -> TrainConfig:
        """Return the settings of the training alone, with changes.

        Raises:
            ValueError: there are no steps to train.
        """
        if self.steps == 0:
            raise ValueError("found steps 0, a teacher as it is; want at least 1 to train")
        return TrainConfig.model_validate(self.model_dump(exclude={"init"}) | changes)


class ModelConfig(Config):
    """Model to train from scratch."""

    settings: dict[str, Any] = Field(default_factory=dict, description="arguments of GlipConfig")
    text_encoder: str | None = Field(
        None, description='folder of a BERT model, or "minilm" for the small model that make installs'
    )
    text_layers: int | None = Field(None, ge=1, description="use only this number of the text encoder's first layers")
    text_dropout: float | None = Field(None, ge=0, lt=1, description="dropout of the text encoder; default: its own")
    backbone: str | None = Field(None, description="checkpoint file of a Swin pre-trained on ImageNet")
    image_processor: dict[str, Any] = Field(default_factory=dict, description="arguments of GlipImageProcessor")
