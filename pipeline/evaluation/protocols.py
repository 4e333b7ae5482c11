"""Protocols of evaluation sets: text queries, limits of detections, gold phrases (GLIP spec 13)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.annotators.base import Annotator, RegionPredictions, TextQuery
from pipeline.config import EvaluateConfig, EvaluationProtocol, PseudoLabelConfig
from pipeline.data.records import ClassPrompt, GroundingRecord, Span
from pipeline.errors import InputError
from pipeline.io.hashing import digest_json

CAPTION_PROTOCOLS = ("flickr", "refcoco")
OWN_PROTOCOLS = (*CAPTION_PROTOCOLS, "cgf1")
"""Protocols whose queries are each image's own phrases."""
THRESHOLD_PROTOCOLS = ("coco", "lvis", "odinw", "flickr")
"""Protocols of GLIP's published figures, which leave out detections below PUBLISHED_THRESHOLD."""
PUBLISHED_THRESHOLD = 0.05


@dataclass(frozen=True)
class SetSpec:
    """Inputs of predictions other than shards.

    names: class names, none if the queries are each image's own phrases. prompts: of each name; none
    if all are prompted as they are.
    """

    name: str
    protocol: EvaluationProtocol
    names: tuple[str, ...]
    prompts: tuple[ClassPrompt, ...] = ()

    @property
    def own_phrases(self) -> bool:
        """Whether the queries are each image's own phrases instead of the set's class names."""
        return self.protocol in OWN_PROTOCOLS

    @property
    def digest(self) -> str:
        """Digest of names and prompts."""
        prompts = [prompt.model_dump(mode="json") for prompt in self.prompts]
        return digest_json([list(self.names), prompts] if prompts else list(self.names))

    def limit(self, config: EvaluateConfig) -> int | None:
        """Maximum number of detections of an image over all prompts; None: no limit."""
        if self.protocol == "lvis":
            return None
        if self.protocol == "detection":
            return max(config.max_detections, 10 * len(self.names))
        return config.max_detections

    def threshold(self, config: EvaluateConfig) -> float:
        """Minimum probability of a detection; by default the protocol's."""
        if config.threshold is not None:
            return config.threshold
        return PUBLISHED_THRESHOLD if self.protocol in THRESHOLD_PROTOCOLS else 0.0

    def label_config(self, config: EvaluateConfig) -> PseudoLabelConfig:
        """Settings of the annotator."""
        return PseudoLabelConfig(
            floor=self.threshold(config),
            score_agg=config.score_agg,
            max_regions_per_phrase=config.chunk_detections if self.protocol == "lvis" else config.max_detections,
            image_size=config.image_size,
            max_image_size=config.max_image_size,
            precision=config.precision,
        )


def class_chunks(spec: SetSpec, annotator: Annotator, config: EvaluateConfig) -> list[list[TextQuery]]:
    """Text queries for all class names, by chunk; ``TextQuery.phrases`` index the set's names.

    Raises:
        InputError: a name is longer than the text limit.
    """
    chunks, size = [], config.chunk_names if spec.protocol == "lvis" else max(len(spec.names), 1)
    for start in range(0, len(spec.names), size):
        names, prompts = spec.names[start : start + size], spec.prompts[start : start + size]
        queries = _prompted(names, prompts, annotator) if prompts else annotator.class_queries(names)
        chunks.append([replace(q, phrases=tuple(p + start for p in q.phrases)) for q in queries])
    return chunks


def _prompted(names: Sequence[str], prompts: Sequence[ClassPrompt], annotator: Annotator) -> list[TextQuery]:
    """As few texts as hold all prompts in order, each whole."""
    from model.grounding import SEPARATOR, clean_name  # imports torch, which a finished evaluation does not need

    queries: list[TextQuery] = []
    text, spans = "", list[Span]()
    for i, (name, prompt) in enumerate(zip(names, prompts, strict=True)):
        clean = clean_name(prompt.prompt_name or name).strip()
        for before in (text + SEPARATOR, "") if text else ("",):
            start = len(before) + len(prompt.prefix)
            text = f"{before}{prompt.prefix}{clean}{prompt.suffix}"
            spans = [*(spans if before else ()), (start, start + len(clean))]
            made, missing = annotator.queries(text, spans)
            if [query.text for query in made] == [text] and not missing:
                break
        else:
            raise InputError(f"class name {name!r}: its prompt is longer than the model's text limit: {text[:60]!r}")
        phrases = range(i + 1 - len(spans), i + 1)
        queries[len(queries) - bool(before) :] = [replace(made[0], phrases=tuple(phrases[p] for p in made[0].phrases))]
    return queries


@dataclass(frozen=True)
class GoldPhrase:
    """A phrase of a caption, its span, and its gold boxes (n, 4)."""

    span: Span
    phrase: str
    boxes: np.ndarray


def named_phrases(record: GroundingRecord, protocol: EvaluationProtocol) -> list[GoldPhrase]:
    """The phrases of a caption that have boxes, in order of their first region.

    Every span is a phrase, as Flickr30k Entities marks them, and its gold are all boxes of regions
    with that span: an entity named twice is two phrases with the same boxes. Spans of a region that
    touch are one phrase in pieces. RefCOCO's phrase is the whole expression.

    Raises:
        InputError: the record is not a grounding record.
    """
    if record.kind != "grounding":
        raise InputError(f"record {record.key}: a {record.kind} record in a set of captions; want grounding records")
    caption = record.caption or ""
    boxes: dict[Span, list[tuple[float, ...]]] = {}
    for region in record.regions:
        if region.ignore:
            continue
        spans = [(0, len(caption))] if protocol == "refcoco" else _phrase_spans(region.tokens_positive)
        for span in spans:
            boxes.setdefault(span, []).append(region.box)
    return [GoldPhrase(span, caption[span[0] : span[1]], np.array(b, np.float64)) for span, b in boxes.items()]


def present_and_absent(record: GroundingRecord) -> tuple[list[str], list[str]]:
    """The phrases of a record's regions, and those that are verified as absent; each once, in order.

    A phrase that has ignore regions only is neither.
    """
    present = list(dict.fromkeys(region.phrase for region in record.regions if not region.ignore))
    known = {region.phrase for region in record.regions}
    return present, [name for name in dict.fromkeys(record.verified_absent or ()) if name not in known]


def own_phrases(record: GroundingRecord) -> list[str]:
    """The phrases of :func:`present_and_absent` in alphabetical order: the prompt, and the labels, of ``cgf1``."""
    return sorted(itertools.chain(*present_and_absent(record)))


def _phrase_spans(spans: Sequence[Span]) -> list[Span]:
    """Distinct spans in order, those that touch (word pieces) joined."""
    joined: list[Span] = []
    for start, end in sorted(set(spans)):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def best(regions: RegionPredictions, limit: int | None) -> RegionPredictions:
    """The ``limit`` best regions by falling score; ties keep their order."""
    order = np.argsort(-regions.score, kind="stable")[:limit]
    values = {name: getattr(regions, name) for name in RegionPredictions.__dataclass_fields__}
    columns: dict[str, Any] = {name: None if of is None else of[order] for name, of in values.items()}
    return RegionPredictions(**columns)


def joined(parts: Sequence[RegionPredictions]) -> RegionPredictions:
    """Regions of an image's queries, concatenated; ``parts`` may be empty."""
    if parts:
        return RegionPredictions.joined(parts)
    empty = np.zeros(0, np.float32)
    return RegionPredictions(np.zeros(0, np.int64), np.zeros((0, 4), np.float32), empty, empty, empty, empty, empty)
