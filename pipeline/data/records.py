"""The one record that human labels and pseudo-labels share, and the Arrow schemas of the label store.

``boxes`` are absolute xyxy in pixels of the stored image; ``tokens_positive`` are ``[start, end)`` character spans
of the caption (code points); ``image_size`` is (height, width).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from json.encoder import c_make_encoder, encode_basestring  # type: ignore[attr-defined]
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

RECORD_VERSION = 2  # 2: regions have a root
STORE_VERSION = (
    4  # 2: a phrase's root has its compounds; 3: centerness may be absent; 4: GLIP's boxes end behind their last pixel
)

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
if c_make_encoder is not None:
    # JSONEncoder.encode makes such a function anew for every record, which costs as much as half of the record
    _PARTS = c_make_encoder(None, _ENCODER.default, encode_basestring, None, ":", ",", True, False, True)
else:  # an interpreter without it

    def _PARTS(value: Any, _: int) -> Iterable[str]:
        return (_ENCODER.encode(value),)


Box = tuple[float, float, float, float]
Span = tuple[int, int]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Region(_Strict):
    """One box and what it is called.

    In a grounding record ``tokens_positive`` says which characters of the caption name the box. In a detection
    record it is empty and ``phrase`` is a class name of the record's dataset (see :class:`DatasetCard`).
    """

    box: Box
    phrase: str
    tokens_positive: tuple[Span, ...] = ()
    score: float | None = Field(None, description="teacher's confidence 0..1; absent for human labels")
    annotator: str | None = Field(None, description="who drew it: absent for humans, else teacher@revision")
    root: str | None = Field(None, description="head noun of the phrase, a class name for it; of parsed phrases")
    ignore: bool = Field(False, description="neither a positive nor a negative (crowd, or an uncertain pseudo box)")

    @model_validator(mode="after")
    def _box_is_ordered(self) -> Region:
        x1, y1, x2, y2 = self.box
        if not (x2 > x1 and y2 > y1):
            raise ValueError(f"box {self.box} has no area: want x1 < x2 and y1 < y2")
        return self


class GroundingRecord(_Strict):
    """One image's labels: the ``key.json`` beside ``key.jpg`` in every training shard.

    ``kind`` "grounding": ``caption`` with regions on its characters. ``kind`` "detection": regions by class name,
    turned into a prompt at load time. ``uncertain`` are caption spans a teacher could not box with confidence: they
    are named in the caption but must not be taught as absent.
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
        description="federated sets: only these class names are known to be absent; None: all others are",
    )
    not_exhaustive: tuple[str, ...] | None = Field(
        None,
        description="class names of which there are more than are boxed: as federated sets tell, and of others where a box was "
        "of no use; None: not known",
    )

    @model_validator(mode="after")
    def _spans_lie_in_the_caption(self) -> GroundingRecord:
        if self.kind == "grounding":
            if not self.caption:
                raise ValueError(f"record {self.key}: a grounding record needs a caption")
            spans = [s for r in self.regions for s in r.tokens_positive] + list(self.uncertain)
            for start, end in spans:
                if not 0 <= start < end <= len(self.caption):
                    raise ValueError(
                        f"record {self.key}: span [{start}, {end}) is outside the caption of {len(self.caption)} characters"
                    )
            if any(not r.tokens_positive and not r.ignore for r in self.regions):
                raise ValueError(f"record {self.key}: a region of a grounding record needs tokens_positive")
        return self

    def to_json(self) -> bytes:
        """Compact JSON with sorted keys and without absent fields: the same record is always the same bytes."""
        # the fields are plain values already; model_dump would look at each of them again
        data = {name: value for name, value in self.__dict__.items() if value is not None}
        data["regions"] = [{n: v for n, v in region.__dict__.items() if v is not None} for region in self.regions]
        return "".join(_PARTS(data, 0)).encode()


class ImageLink(_Strict):
    """``KEY.link`` of a shard that holds labels only: where in an uncompressed tar the image lies.

    shard: a URL, or a path relative to the linking shard's folder. shard_bytes: its size when the link was made; another
    size means that it was written anew, and that the offsets hold no longer.
    """

    shard: str
    shard_bytes: int
    offset: int
    bytes: int
    extension: str


class DatasetCard(_Strict):
    """``<dataset>.dataset.json`` beside its training shards: what the records' ``dataset`` means."""

    name: str
    kind: Literal["grounding", "detection"]
    label_space: tuple[str, ...] | None = Field(None, description="class names, in id order, of a detection set")
    frequency: dict[str, str] | None = Field(None, description="LVIS: class name -> r, c or f (rare, common, frequent)")
    licence: str | None = None
    source: str | None = None


# --- Arrow schemas of the label store. Rows are in the order of the crawl shard; ``phrase_row`` is the row number in
# the shard's phrases file, so that a region belongs to exactly one phrase of one caption.

PHRASES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("phrase", pa.string(), nullable=False),
        pa.field("root", pa.string(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
    ]
)
"""``root`` is the phrase's head noun, in its dictionary form and after its compounds: "traffic light"."""

REGIONS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("phrase_row", pa.int32(), nullable=False),
        pa.field("phrase", pa.string(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
        pa.field("x1", pa.float32(), nullable=False),
        pa.field("y1", pa.float32(), nullable=False),
        pa.field("x2", pa.float32(), nullable=False),
        pa.field("y2", pa.float32(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("token_mean", pa.float32(), nullable=False),
        pa.field("token_min", pa.float32(), nullable=False),
        pa.field("token_max", pa.float32(), nullable=False),
        pa.field("centerness", pa.float32()),
        pa.field("rank", pa.int16(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
    ]
)
"""``rank`` counts a phrase's regions from 0 by falling score; ``height``/``width`` are the image's pixels; ``centerness``
is null where the teacher has none."""

RESCORED = REGIONS.append(pa.field("region_text", pa.float32()))
"""Regions with another model's word on them: how well the crop suits its phrase, 0..1; null where the image was lost."""

LABELS = REGIONS.append(pa.field("status", pa.dictionary(pa.int8(), pa.string()), nullable=False))
"""Regions that stay: ``status`` is "keep", or "ignore" for those that travel along as ignore regions."""
