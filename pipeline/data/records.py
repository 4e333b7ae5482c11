"""Record of one image's human labels or pseudo-labels, and Arrow schemas of the label store.

Boxes are absolute xyxy in pixels of the stored image. Spans are ``[start, end)`` character
positions (code points) in the caption. Image sizes are (height, width).
"""

from __future__ import annotations

import json
from typing import Literal

import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.io.strict_model import StrictModel
from pipeline.io.tables import required_columns
from pipeline.system.library_internals import json_chunks

RECORD_VERSION = 2  # 2: regions have a root
# 2: a phrase's root includes its compounds; 3: centerness may be absent; 4: the x2, y2 of GLIP's boxes are exclusive
STORE_VERSION = 4

_json_chunks = json_chunks(json.JSONEncoder().default)

Box = tuple[float, float, float, float]
Span = tuple[int, int]


class Region(StrictModel):
    """One labelled box.

    In a grounding record ``tokens_positive`` are the caption spans that name the box. In a
    detection record it is empty, and ``phrase`` is a class name of the record's data set
    (:class:`DatasetCard`).
    """

    box: Box
    phrase: str
    tokens_positive: tuple[Span, ...] = ()
    score: float | None = Field(None, description="the teacher's confidence, 0..1; absent for human labels")
    annotator: str | None = Field(None, description="teacher@revision; absent for human labels")
    root: str | None = Field(None, description="head noun of a parsed phrase, usable as its class name")
    mask: str | None = Field(
        None, description="counts of compressed COCO RLE, of the image's size; absent if not known"
    )
    ignore: bool = Field(False, description="neither a positive nor a negative (crowd, or an uncertain pseudo-label)")

    @model_validator(mode="after")
    def _box_is_ordered(self) -> Region:
        x1, y1, x2, y2 = self.box
        if not (x2 > x1 and y2 > y1):
            raise ValueError(f"box {self.box} has no area: want x1 < x2 and y1 < y2")
        return self


class GroundingRecord(StrictModel):
    """Labels of one image: ``key.json`` beside ``key.jpg`` in a training shard.

    A "grounding" record has a caption whose spans name its regions. A "detection" record has
    regions with class names, from which a prompt is made at load time. ``uncertain``: caption spans
    that the teacher could not localise with confidence, which must not be trained as absent.
    """

    version: Literal[1, 2] = 2
    key: str
    dataset: str
    kind: Literal["grounding", "detection"]
    image_size: tuple[int, int]
    caption: str | None = None
    regions: tuple[Region, ...] = ()
    uncertain: tuple[Span, ...] = ()
    verified_absent: tuple[str, ...] | None = Field(
        None,
        description="federated sets: the class names verified as absent; None: all unlabelled classes are absent",
    )
    not_exhaustive: tuple[str, ...] | None = Field(
        None,
        description="class names with more instances than boxes, as federated sets state, or because an invalid box "
        "was dropped; None: not known",
    )

    @model_validator(mode="after")
    def _spans_lie_in_the_caption(self) -> GroundingRecord:
        if self.kind == "grounding":
            if not self.caption:
                raise ValueError(f"record {self.key}: a grounding record needs a caption")
            spans = [s for r in self.regions for s in r.tokens_positive] + list(self.uncertain)
            for start, end in spans:
                if not 0 <= start < end <= len(self.caption):
                    length = len(self.caption)
                    raise ValueError(
                        f"record {self.key}: span [{start}, {end}) is outside the caption of {length} characters"
                    )
            if any(not r.tokens_positive and not r.ignore for r in self.regions):
                raise ValueError(f"record {self.key}: a region of a grounding record needs tokens_positive")
        return self

    def to_json(self) -> bytes:
        """Deterministic compact JSON, with sorted keys and without absent fields."""
        # not model_dump: the fields are plain values already, and it would visit each of them
        data = {name: value for name, value in self.__dict__.items() if value is not None}
        data["regions"] = [{n: v for n, v in region.__dict__.items() if v is not None} for region in self.regions]
        return "".join(_json_chunks(data, 0)).encode()


class ImageLink(StrictModel):
    """``KEY.link`` in a shard without images: byte range of an image in another, uncompressed tar.

    shard: URL, or path relative to the linking shard's folder. shard_bytes: the linked shard's size
    when the link was made; with another size it was rewritten. offset, bytes: of the image.
    """

    shard: str
    shard_bytes: int
    offset: int
    bytes: int
    extension: str


class ClassPrompt(StrictModel):
    """The text with which evaluation prompts for a class: prefix, name and suffix, joined as they are.

    Only the name is the phrase whose boxes count, as in GLIP's ODinW prompts (GLIP spec 9.1).
    """

    prompt_name: str | None = Field(None, pattern=r"\S", description="name in place of the class name")
    prefix: str = ""
    suffix: str = ""


class DatasetCard(StrictModel):
    """Description of a data set: ``<dataset>.dataset.json`` beside its training shards."""

    name: str
    kind: Literal["grounding", "detection"]
    label_space: tuple[str, ...] | None = Field(None, description="class names of a detection set, in id order")
    class_prompts: dict[str, ClassPrompt] | None = Field(None, description="class name -> prompt at evaluation")
    frequency: dict[str, str] | None = Field(None, description="LVIS: class name -> r, c or f (rare, common, frequent)")
    licence: str | None = None
    source: str | None = None
    labelled_by: str | None = Field(
        None,
        exclude_if=lambda text: text is None,  # so that cards and exports without it stay as they were
        description="pseudo-labels: the teachers, with the licences of their weights",
    )


# Arrow schemas of the label store. Rows are in the order of the crawl shard; ``phrase_row`` is the phrase's row number
# in the shard's phrases file.

PHRASES = pa.schema(
    required_columns(pa.string(), "key", "caption", "phrase", "root") + required_columns(pa.int32(), "start", "end")
)
"""``root``: lemma of the phrase's head noun, with its compounds: "traffic light"."""

NUMBERED_PHRASES = PHRASES.append(pa.field("number", pa.int32()))
"""Phrases with the ``number`` of things that they state: 1 for a singular, n for a number word, 0 for
a plural without one; null if not known, as of n-grams."""

REGIONS = pa.schema(
    [
        *required_columns(pa.string(), "key"),
        *required_columns(pa.int32(), "phrase_row"),
        *required_columns(pa.string(), "phrase"),
        *required_columns(pa.int32(), "start", "end"),
        *required_columns(pa.float32(), "x1", "y1", "x2", "y2", "score", "token_mean", "token_min", "token_max"),
        pa.field("centerness", pa.float32()),
        *required_columns(pa.int16(), "rank"),
        *required_columns(pa.int32(), "height", "width"),
    ]
)
"""``rank``: index among the phrase's regions, from 0, by descending score. ``height``, ``width``:
of the image, in pixels. ``centerness``: null if the teacher has none.
"""

NUMBERED_REGIONS = REGIONS.append(NUMBERED_PHRASES.field("number"))
"""Regions of phrases that have numbers."""

NAMED_REGIONS = REGIONS.append(pa.field("name", pa.string(), nullable=False))
"""Regions of class names (:class:`pipeline.data.name_list.NameList`, in the footer under ``names``). ``name``: the
class; ``phrase``: its prompted text, the name's own or a synonym; ``phrase_row``: index among the list's phrases;
``start``, ``end``: span in its prompt."""

RESCORED = REGIONS.append(pa.field("region_text", pa.float32()))
"""Regions with a second model's score of crop and phrase, 0..1; null for unreadable images."""

ANSWERED = REGIONS.append(pa.field("verifier", pa.float32()))
"""Regions with a vision-language model's probability that the box shows the phrase; null if there is no answer."""

MORE = pa.field("more", pa.float32())
"""Column of verified regions: the probability that the image has more of the phrase than its boxes. The same for all
regions of a phrase in an image."""

MASK = pa.field("mask", pa.string())
"""Column of regions and labels, if pseudo-label stored masks: the ``counts`` of compressed COCO RLE, whose ``size`` is
(height, width); null if the teacher has no masks."""

AGREED = pa.field("agreed", pa.int16(), nullable=False)
"""Column of merged regions: number of the stores that have the region. ``score_0``, ``score_1``, ... are the scores
in each of them, null where it has none."""

VERIFIED = pa.field("verified", pa.float32(), nullable=False)
"""Column of ``verify apply``: probability that the region is right, 0..1."""

LABELS = REGIONS.append(pa.field("status", pa.dictionary(pa.int8(), pa.string()), nullable=False))
"""Regions after filtering. ``status``: "keep", or "ignore" for ignore regions."""

NAMED_LABELS = LABELS.append(NAMED_REGIONS.field("name"))
"""Labels of class names. ``status`` may be "uncertain": the best region of a name that has none kept or ignored in an
image with labels, where the name is thus neither present nor absent."""
