"""Every setting of every stage: frozen, typed, refused when misspelt. Imports neither torch nor spaCy.

A field's description is the help that the run form in Prefect's page shows. Settings here decide what an output
is, so they enter its fingerprint; paths, devices and worker counts do not, and are arguments of the stages.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from pipeline.addresses import Address, refuse_secrets
from pipeline.config_base import Config
from pipeline.config_labels import BuildShardsConfig, FilterConfig, ParsePhrasesConfig, PseudoLabelConfig, RescoreConfig

__all__ = [
    "BuildShardsConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "FilterConfig",
    "IngestConfig",
    "ModelConfig",
    "NoisyLabelConfig",
    "ParsePhrasesConfig",
    "PromotionConfig",
    "PromptConfig",
    "PseudoLabelConfig",
    "RescoreConfig",
    "ResourcesConfig",
    "SelfTrainConfig",
    "TrainConfig",
]


class IngestConfig(Config):
    """Human labels into training shards."""

    samples_per_shard: int = Field(500, ge=1, description="records in one output shard")
    max_failed_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="stop if more of the images than this are lost, or more of the regions are unreadable",
    )
    check_images: Literal["header", "decode"] = Field(
        "header",
        description="header: an image's size is read and its bytes are copied as they are; decode: each is also decoded "
        "once, so that one damaged further behind is lost here and not in training; several times slower",
    )


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


EvaluationProtocol = Literal["detection", "coco", "lvis", "odinw", "flickr", "refcoco"]


class EvaluateConfig(Config):
    """Zero-shot evaluation of a model on sets with gold boxes."""

    protocols: dict[str, EvaluationProtocol] = Field(
        default_factory=dict,
        description="how a set is measured, by the set's name; others: detection where labels are class names, flickr "
        "where they are phrases of captions",
    )
    batch_size: int = Field(8, ge=1, description="images per forward pass; batches never leave their shard")
    threshold: float = Field(0.0, ge=0, lt=1, description="detections below this score are not considered")
    score_agg: Literal["mean", "max", "geometric", "sum"] = Field("mean", description="a name's score from its tokens'")
    max_detections: int = Field(
        100,
        ge=1,
        description="of an image or sentence at most (detection: of a class, and ten a class of an image together)",
    )
    chunk_names: int = Field(40, ge=1, description="lvis: names in one prompt")
    chunk_detections: int = Field(300, ge=1, description="lvis: detections of one image and prompt at most")
    class_detections: int = Field(10_000, ge=1, description="lvis: best detections of a class over the whole set")
    image_size: int | None = Field(None, description="shorter side in pixels; default: the model's own")
    max_image_size: int | None = Field(None, description="longer side at most; default: the model's own")
    precision: Literal["float32", "bf16"] = Field("float32", description="arithmetic of the model")


class ModelConfig(Config):
    """Which network to train from scratch."""

    settings: dict[str, Any] = Field(default_factory=dict, description="GlipConfig's own arguments")
    text_encoder: str | None = Field(None, description='a BERT folder, or "minilm" for the small one make installs')
    text_layers: int | None = Field(None, ge=1, description="use only so many first layers of the text encoder")
    text_dropout: float | None = Field(None, ge=0, lt=1, description="the text encoder's dropout; default: its own")
    backbone: str | None = Field(None, description="an ImageNet Swin checkpoint file")
    image_processor: dict[str, Any] = Field(default_factory=dict, description="GlipImageProcessor's own arguments")


class DataConfig(Config):
    """Where the data of a run lies. All absent: the demo's own, generated."""

    manifest: Address | None = Field(None, description="YAML of the human-labelled sets (see data_manifests/)")
    root: Address | None = Field(None, description="folder that the manifest's paths are relative to")
    sources: tuple[str, ...] = Field(
        (), description="sets of the manifest to train on; each is a source of the mixture"
    )
    crawl: tuple[Address, ...] = Field(
        (), description="crawl shards: folders, globs or brace patterns; without secrets"
    )
    gold: Address | None = Field(
        None, description="gold boxes of the crawl, for measuring the labels (the demo has them)"
    )
    base: str | None = Field(None, description="evaluation set of names the teacher was taught")
    novel: str | None = Field(None, description="evaluation set of names it was not taught")
    evaluation: tuple[str, ...] = Field((), description="further evaluation sets of the manifest, such as ODinW's")
    frequencies: dict[str, Address] = Field(
        default_factory=dict,
        description="evaluation set -> file that says how often its names stand in training data (evaluate --frequencies); LVIS' APr needs it",
    )

    @field_validator("manifest", "root", "crawl", "gold", "frequencies", mode="before")
    @classmethod
    def _no_secrets(cls, value: Any, info: ValidationInfo) -> Any:
        refuse_secrets(f"data.{info.field_name}", value)
        return value

    def evaluated(self) -> tuple[str, ...]:
        """All evaluation sets: base, novel, and the further ones."""
        named = (self.base, self.novel, *self.evaluation)
        return tuple(dict.fromkeys(name for name in named if name is not None))


class PromotionConfig(Config):
    """Which student teaches the next round, and when rounds stop."""

    gates: tuple[str, ...] = Field(
        (),
        description="what must hold of student minus teacher, in points, as SET.METRIC>=POINTS or SET.METRIC>POINTS with shell "
        "patterns; default: no ap, recall_at_1 or precision_at_1 down by more than 1, ap_rare not down",
    )
    gain: str | None = Field(
        None,
        description="SET.METRIC that rounds shall raise; default: the first metric of data.novel, else of data.base, among "
        "recall_at_1, precision_at_1, ap",
    )
    least_gain: float = Field(
        0.0, description="points of it below which no further round is worth its cost: the student is the last"
    )
    samples: int = Field(1000, ge=1, description="resamples of the images, for the intervals of the differences")


class ResourcesConfig(Config):
    """What a run may use. Never part of an output's fingerprint."""

    device: Literal["cpu", "cuda"] = "cpu"
    parallel: int = Field(1, ge=1, description="child processes at a time (trainings, chunks of shards)")
    threads: int | None = Field(None, ge=1, description="CPU threads of each child; default: cores over parallel")
    gpus: int | None = Field(
        None,
        ge=1,
        description="GPUs of a job that needs any: a chunk's labelling, an evaluation, a training; default: the machine's over parallel",
    )
    train_processes: int | None = Field(
        None, ge=1, description="processes of a training on this machine; default: one a GPU, one on the CPU"
    )
    data_workers: int | None = Field(
        None,
        ge=0,
        description="processes that read and decode ahead, for each process of a training; default: on GPUs its share of the "
        "cores, 8 at most; on the CPU 0",
    )
    fsdp: bool = Field(False, description="trainings of several processes share the weights out (FSDP2)")
    chunk_shards: int = Field(8, ge=1, description="shards in one task; the commit stays per shard")
    max_failed: int = Field(
        0, ge=0, description="shards of a stage that may be set aside, each with its reason, before the run fails"
    )
    cluster: str | None = Field(
        None,
        pattern=r"^(local|auto|ray://[^@/?#]+|[^@/:]+:\d+)$",
        description="a Ray cluster that parses and labels: ray://HOST:10001, HOST:6379, or local for one on this machine; "
        "default: child processes here",
    )


class SelfTrainConfig(Config):
    """The whole recipe: teacher, labels, student, and the control it is measured against."""

    seed: int = Field(0, description="seed of data order, initial weights and the demo's scenes")
    rounds: int = Field(
        1,
        ge=1,
        description="teacher -> labels -> student, so many times at most; a promoted student teaches the next round",
    )
    student_init: Literal["teacher", "scratch"] = Field("teacher", description="where the student starts from")
    control: bool = Field(True, description="also train the teacher on as many steps of human labels alone")
    model: ModelConfig = ModelConfig()
    ingest: IngestConfig = IngestConfig()
    parse_phrases: ParsePhrasesConfig = ParsePhrasesConfig()
    pseudo_label: PseudoLabelConfig = PseudoLabelConfig()
    rescore: RescoreConfig = Field(RescoreConfig(), description="of the rescore command; self-train does not run it")
    filter_boxes: FilterConfig = FilterConfig()
    build_shards: BuildShardsConfig = BuildShardsConfig()
    teacher: TrainConfig = TrainConfig()
    student: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    promotion: PromotionConfig = PromotionConfig()
    data: DataConfig = DataConfig()
    resources: ResourcesConfig = ResourcesConfig()
    demo: dict[str, Any] | None = Field(None, description="settings of the demo's data generator; absent for real data")
