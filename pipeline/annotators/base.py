"""The interface of a teacher: images, captions and spans in; boxes with their evidence out.

Only the forward pass needs the teacher's own thread: any other prepares queries, images and batches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from pipeline.config import PseudoLabelConfig
from pipeline.config.base import ScoreAggregation
from pipeline.data.images import ImageError
from pipeline.data.records import Span
from pipeline.errors import InputError
from pipeline.io.model_folder import model_revision
from pipeline.system.devices import resolved_precision
from pipeline.system.plugins import Registry


@dataclass(frozen=True)
class TextQuery:
    """One text for one image in one forward pass.

    text: a caption, or a stretch of a long one that fits the text limit. spans: ``[start, end)``
    characters of ``text``, a phrase each. phrases: the index of each among the caption's spans, or
    among the class names. tokens: the text's length to the teacher.
    """

    text: str
    spans: tuple[Span, ...]
    phrases: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class RegionPredictions:
    """The regions of one query's phrases, in no stated order.

    phrase (n,) int64: index as in ``TextQuery.phrases``. boxes (n, 4) float32: xyxy in pixels of the
    stored image. score, token_mean, token_min, token_max, centerness (n,) float32 in 0..1;
    centerness is NaN for teachers that have none. mask (n,): the counts of compressed COCO RLE, each a str,
    at the stored image's size; None if no masks were wanted.
    """

    phrase: np.ndarray
    boxes: np.ndarray
    score: np.ndarray
    token_mean: np.ndarray
    token_min: np.ndarray
    token_max: np.ndarray
    centerness: np.ndarray
    mask: np.ndarray | None = None

    @classmethod
    def joined(cls, parts: Sequence[RegionPredictions]) -> RegionPredictions:
        """Concatenate the regions of several queries about one image."""
        if len(parts) == 1:
            return parts[0]
        parts_of = {name: [getattr(p, name) for p in parts] for name in cls.__dataclass_fields__}
        columns: dict[str, Any] = {n: None if of[0] is None else np.concatenate(of) for n, of in parts_of.items()}
        return cls(**columns)


@dataclass(frozen=True)
class Prepared:
    """An image as the teacher's network takes it (its own type), and its stored (height, width)."""

    pixels: Any
    size: tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward pass, and their images and queries, to collate halves of them when memory runs out.

    of_images: what an annotator computes once for batches of the same images with other queries
    (:func:`collate_again`); None: nothing is kept.
    """

    inputs: Any
    images: tuple[Prepared, ...]
    queries: tuple[TextQuery, ...]
    of_images: dict[str, Any] | None = None


class Annotator(Protocol):
    """A loaded teacher; ``revision`` names its weights. All but :meth:`predict` may be called from any thread.

    Optional methods: ``start(batch)``, as :func:`start`; ``collate_again(batch, queries)``, as
    :func:`collate_again`. Optional attribute: ``shapes``, the
    :class:`~pipeline.annotators.padded_shapes.PaddedShapes` to which batches are padded. Optional class
    attribute: ``has_masks``, whether it predicts masks.
    """

    name: str
    revision: str

    def queries(self, caption: str, spans: Sequence[Span]) -> tuple[list[TextQuery], list[int]]:
        """(queries that hold each phrase once, indices of the phrases that no text can hold)."""

    def class_queries(self, names: Sequence[str]) -> list[TextQuery]:
        """Queries for boxes of classes; each name is a phrase.

        Raises:
            InputError: a name that no text can hold.
        """

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) at which the network will see an image of this size."""

    def prepare(self, image: Image.Image, size: tuple[int, int]) -> Prepared:
        """Resize an RGB image for the network; it may be decoded smaller than its stored ``size`` (height, width)."""

    def collate(self, images: Sequence[Prepared], queries: Sequence[TextQuery]) -> Batch:
        """The network's inputs for one query about each image."""

    def predict(self, batch: Batch) -> Sequence[RegionPredictions | ImageError]:
        """Run the network: the regions of every query. A batch too large for the memory is halved.

        An error, of a teacher whose answer may be unusable, means that the query's image is lost.
        """


def start(annotator: Annotator, batch: Batch) -> Callable[[], Sequence[RegionPredictions | ImageError]]:
    """Begin :meth:`Annotator.predict`; the function that is returned waits for its result, in any thread.

    On a GPU the network of the next batch can begin meanwhile.
    """
    own: Callable[[Batch], Callable[[], Sequence[RegionPredictions | ImageError]]] | None = getattr(
        annotator, "start", None
    )
    if own is not None:
        return own(batch)
    regions = annotator.predict(batch)
    return lambda: regions


def each_query(annotator: Annotator, first: Batch, queries: Sequence[TextQuery]) -> Iterator[Batch]:
    """The images of ``first``, which has the first of ``queries`` about each, with every query in turn.

    Without queries, ``first`` alone.
    """
    if len(queries) > 1:
        first = replace(first, of_images={})
    yield first
    for query in queries[1:]:
        yield collate_again(annotator, first, [query] * len(first.images))


def collate_again(annotator: Annotator, batch: Batch, queries: Sequence[TextQuery]) -> Batch:
    """The inputs for other queries about a batch's images."""
    own: Callable[[Batch, Sequence[TextQuery]], Batch] | None = getattr(annotator, "collate_again", None)
    return own(batch, queries) if own is not None else annotator.collate(batch.images, queries)


TEACHERS: Registry[Callable[[str, str, PseudoLabelConfig, str], Annotator]] = Registry(
    "annotators",
    {
        "florence2": "pipeline.annotators.florence2:Florence2Annotator",
        "glip": "pipeline.annotators.glip:GlipAnnotator",
        "http": "pipeline.annotators.http:HttpAnnotator",
        "grounding-dino": "pipeline.annotators.grounding_dino:GroundingDinoAnnotator",
        "mm-grounding-dino": "pipeline.annotators.grounding_dino:GroundingDinoAnnotator",
        "omdet-turbo": "pipeline.annotators.omdet_turbo:OmDetTurboAnnotator",
        "owlv2": "pipeline.annotators.owl:OwlAnnotator",
        "owlvit": "pipeline.annotators.owl:OwlAnnotator",
        "sam3": "pipeline.annotators.sam3:Sam3Annotator",
        "sam3_video": "pipeline.annotators.sam3:Sam3Annotator",
    },
)
"""model_type of a folder's config.json -> class; called with the folder, its revision, the settings and a device."""


def _model_config(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: found no JSON ({error}); want a model's configuration") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: found a {type(config).__name__}; want a model's configuration, an object")
    return config


def model_type(folder: str | Path) -> str:
    """Family of a teacher, by its model folder's configuration.

    Raises:
        InputError: no config.json, not a JSON object, or a family that is not known.
    """
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"{folder}: no config.json in it; want a model folder as save_pretrained writes it")
    found = str(_model_config(folder).get("model_type"))
    if found not in TEACHERS:
        raise InputError(
            f"{folder}/config.json: found model_type {found!r}; want one of {', '.join(sorted(TEACHERS.names()))}, "
            "or a family of your own: TEACHERS.register in a module that GLIP_SELF_TRAIN_PLUGINS names "
            "(docs/python.md, A teacher)"
        )
    return found


def own_score_agg(folder: str | Path) -> ScoreAggregation:
    """Aggregation of token scores that a model folder's configuration states; mean if it states none.

    Models trained by cross-entropy divide a phrase's probability among its tokens: theirs is sum.

    Raises:
        InputError: config.json is no JSON object.
    """
    aggregation: ScoreAggregation = _model_config(folder).get("score_aggregation") or "mean"
    return aggregation


def check_masks(folder: str | Path) -> None:
    """Raise InputError if the teacher in a model folder predicts no masks."""
    family = model_type(folder)
    if not getattr(TEACHERS.require(family, "teacher"), "has_masks", False):
        able = [name for name in TEACHERS.names() if getattr(TEACHERS.get(name), "has_masks", False)]
        raise InputError(
            f"masks: found the teacher {folder}, of model_type {family}, which predicts none; want "
            f"{' or '.join(able)}, or masks=false"
        )


def own_settings(folder: str | Path, config: PseudoLabelConfig, device: str) -> PseudoLabelConfig:
    """Settings with the teacher's own ``score_agg`` and the device's ``precision`` where they state none.

    Raises:
        InputError: as :func:`own_score_agg`, or masks are wanted of a teacher that predicts none.
    """
    if config.masks:
        check_masks(folder)
    own = {
        "score_agg": config.score_agg or own_score_agg(folder),
        "precision": resolved_precision(config.precision, device),
    }
    return config.model_copy(update=own)


@lru_cache(maxsize=1)
def _load(folder: str, revision: str, config: PseudoLabelConfig, device: str) -> Annotator:
    make = TEACHERS.require(model_type(folder), "teacher")
    return make(folder, revision, config, device)


def load_annotator(folder: str | Path, config: PseudoLabelConfig, device: str = "cpu") -> Annotator:
    """The teacher in a model folder, loaded once per process.

    ``score_agg`` None is the teacher's own, ``precision`` "auto" the device's.

    Raises:
        InputError: not a model folder, or of a family that is not known.
    """
    revision = model_revision(folder)
    return _load(str(folder), revision, own_settings(folder, config, device), device)
