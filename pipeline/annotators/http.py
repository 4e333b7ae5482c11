"""Vision-language models behind an OpenAI-style chat endpoint, such as vLLM's, as teachers.

The model folder holds a config.json alone (:class:`HttpTeacherConfig`). Loads no torch.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field, field_validator, model_validator

from pipeline.annotators.base import Batch, Prepared, RegionPredictions, TextQuery
from pipeline.annotators.chat_endpoint import EXCERPT, ChatEndpoint, ChatEndpointConfig, image_part
from pipeline.config import PseudoLabelConfig
from pipeline.config.base import UnitFloat
from pipeline.config.recipes import build
from pipeline.data.images import ImageError
from pipeline.data.records import Span
from pipeline.errors import InputError, StageError
from pipeline.filtering.nms import suppress

log = logging.getLogger("glip_self_train")


class HttpTeacherConfig(ChatEndpointConfig):
    """The config.json of an HTTP teacher."""

    prompt: str = Field(description="text of a request: {phrases} and {caption} are replaced")
    separator: str = Field(", ", description="text between the phrases of a request")
    phrases_per_request: int = Field(1, ge=1, description="with 1, every box of an answer is the phrase's")
    boxes: Literal["json_xyxy_1000", "json_xyxy_absolute", "rex_omni"] = Field(
        description="how answers state boxes: JSON objects with bbox_2d (or bbox) and label, in thousandths of the "
        "image (Qwen3-VL) or in pixels of the image that is sent (Qwen2.5-VL); or Rex-Omni's tokens"
    )
    score: Literal["logprobs", "field"] | UnitFloat = Field(
        "logprobs",
        description="logprobs: geometric mean of the probabilities of the tokens of a box's coordinates; field: the "
        "JSON objects' score; or a number, which all boxes get",
    )
    multiple: int = Field(1, ge=1, description="sides of the image that is sent are multiples of this (Qwen2.5-VL: 28)")
    max_pixels: int = Field(1_003_520, ge=1, description="larger images are sent smaller")
    max_tokens: int = Field(2048, ge=1, description="of an answer; a longer one is lost")

    @field_validator("prompt")
    @classmethod
    def _names_the_phrases(cls, prompt: str) -> str:
        if "{phrases}" not in prompt:
            raise ValueError(f"{prompt!r}: want {{phrases}} in it")
        return prompt

    @model_validator(mode="after")
    def _fits_together(self) -> HttpTeacherConfig:
        if self.boxes == "json_xyxy_absolute" and self.multiple == 1:
            raise ValueError("boxes json_xyxy_absolute: want the multiple that the model resizes images to, such as 28")
        if self.boxes == "rex_omni" and self.score == "field":
            raise ValueError("score field: rex_omni has none; want logprobs, or a number")
        return self


@dataclass(frozen=True)
class AnswerBox:
    """A box of an answer. label: None if it has none. box: xyxy as written. span: characters of its coordinates."""

    label: str | None
    box: tuple[float, ...]
    span: Span
    score: float | None = None


def json_boxes(text: str) -> Iterator[AnswerBox]:
    """Boxes of an answer in JSON: ``[{"bbox_2d": [x1, y1, x2, y2], "label": "dog"}]``, with any text around it.

    Raises:
        ValueError: neither objects with boxes, nor an empty list.
    """
    objects = list(re.finditer(r"\{[^{}]*\}", text))
    if not objects and not re.search(r"\[\s*\]", text):
        raise ValueError("no JSON list of boxes")
    for found in objects:
        values = json.loads(found[0])
        name = "bbox_2d" if "bbox_2d" in values else "bbox"
        numbers = re.search(rf'"{name}"\s*:\s*(\[[^\[\]]*\])', found[0])
        if numbers is None:
            raise ValueError(f"no bbox_2d in {found[0]}")
        box, label, score = values[name], values.get("label"), values.get("score")
        if len(box) != 4 or not all(isinstance(v, int | float) and math.isfinite(v) for v in box):
            raise ValueError(f"no four numbers in {found[0]}")
        span = found.start() + numbers.start(1), found.start() + numbers.end(1)
        yield AnswerBox(None if label is None else str(label), tuple(map(float, box)), span, score)


_REX_GROUP = re.compile(
    r"<\|object_ref_start\|>(.*?)<\|object_ref_end\|>\s*<\|box_start\|>(.*?)<\|box_end\|>", re.DOTALL
)
_REX_BOX = re.compile(r"\s*,?\s*<(\d{1,3})>\s*<(\d{1,3})>\s*<(\d{1,3})>\s*<(\d{1,3})>")


def rex_boxes(text: str) -> Iterator[AnswerBox]:
    """Boxes of an answer of Rex-Omni ("Detect Anything via Next Point Prediction"), in 0 to 999.

    ``<|object_ref_start|>dog<|object_ref_end|><|box_start|><x1><y1><x2><y2>,...<|box_end|>``, with None for no box.

    Raises:
        ValueError: no such tokens, or others among them.
    """
    groups = list(_REX_GROUP.finditer(text))
    if not groups:
        raise ValueError("no <|object_ref_start|> ... <|box_end|>; are special tokens skipped?")
    for group in groups:
        position, end = group.span(2)
        if group[2].strip() in {"None", ""}:
            continue
        while position < end:
            found = _REX_BOX.match(text, position, end)
            if found is None:
                if text[position:end].strip():
                    raise ValueError(f"no box in {text[position:end]}")
                break
            yield AnswerBox(group[1].strip(), tuple(map(float, found.groups())), (found.start(1) - 1, found.end()))
            position = found.end()


GRAMMARS = {
    "json_xyxy_1000": (json_boxes, 1000.0), "json_xyxy_absolute": (json_boxes, None), "rex_omni": (rex_boxes, 999.0),
}  # fmt: skip
"""Grammar -> its parser and the coordinate of the image's far edge; None: coordinates are pixels."""


class HttpAnnotator:
    """An annotator (:class:`pipeline.annotators.base.Annotator`). ``device`` is not used."""

    name = "http"

    def __init__(self, folder: str, revision: str, config: PseudoLabelConfig, device: str) -> None:
        path = Path(folder) / "config.json"
        self.revision, self._config = revision, config
        self._about = about = build(HttpTeacherConfig, json.loads(path.read_bytes()), where=str(path))
        for name in ("image_size", "max_image_size"):
            if getattr(config, name) is not None:
                raise InputError(f"{name}: {path} sets the size of images, by max_pixels")
        if not isinstance(about.score, str) and about.score <= config.floor:
            raise InputError(f"{path}: score: found {about.score}; want more than the floor, {config.floor}")
        self._endpoint = ChatEndpoint(about, path)
        self._unknown = 0  # boxes whose label is no phrase

    def queries(self, caption: str, spans: Sequence[Span]) -> tuple[list[TextQuery], list[int]]:
        """Queries of ``phrases_per_request`` phrases each."""
        some, every = self._about.phrases_per_request, range(len(spans))
        parts = [tuple(every[start : start + some]) for start in every[::some]]
        return [TextQuery(caption, tuple(spans[i] for i in part), part, len(caption)) for part in parts], []

    def class_queries(self, names: Sequence[str]) -> list[TextQuery]:
        """Queries of ``phrases_per_request`` names each."""
        separator = self._about.separator
        starts = np.cumsum([0, *(len(name) + len(separator) for name in names)]).tolist()
        spans = [(start, start + len(name)) for start, name in zip(starts, names, strict=False)]
        return self.queries(separator.join(names), spans)[0]

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """The size that is sent: sides of ``multiple``, about ``max_pixels`` at most. Qwen's processors leave it so."""
        multiple, area = self._about.multiple, height * width
        scale = min(1.0, math.sqrt(self._about.max_pixels / area))
        scale = max(scale, 2 * multiple / math.sqrt(area))
        rounded = round if scale == 1 else math.ceil if scale > 1 else math.floor
        sides = [max(multiple, rounded(side * scale / multiple) * multiple) for side in (height, width)]
        return sides[0], sides[1]

    def prepare(self, image: Image.Image, size: tuple[int, int]) -> Prepared:
        """The message part of the image at :meth:`shape` of its stored size."""
        height, width = self.shape(size[1], size[0])
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return Prepared(image_part(resized, self._about.image_format), size)

    def collate(self, images: Sequence[Prepared], queries: Sequence[TextQuery]) -> Batch:
        """The images and queries as they are."""
        return Batch(None, tuple(images), tuple(queries))

    def predict(self, batch: Batch) -> list[RegionPredictions | ImageError]:
        """Send ``concurrency`` requests at a time.

        Raises:
            StageError: the endpoint is down, refuses the key or the model, or gives no chat completions
                or no logprobs.
        """
        return list(self._endpoint.pool.map(self._regions, batch.images, batch.queries))

    def _regions(self, image: Prepared, query: TextQuery) -> RegionPredictions | ImageError:
        try:
            return self._parsed(self._answer(image, query), image.size, query)
        except ImageError as error:
            return error

    def _parsed(self, choice: dict[str, Any], size: tuple[int, int], query: TextQuery) -> RegionPredictions:
        """Regions of an answer.

        Raises:
            ImageError: the answer does not follow the grammar, or is not whole.
        """
        if choice.get("finish_reason") == "length":
            raise ImageError("answer_truncated", f"longer than max_tokens={self._about.max_tokens}")
        text = (choice.get("message") or {}).get("content")
        parse, edge = GRAMMARS[self._about.boxes]
        try:
            found = list(parse((text or "").rpartition("</think>")[2])) if text else []
            if not text:
                raise ValueError("an empty answer")
        except (ValueError, TypeError, KeyError) as error:
            raise ImageError("answer_malformed", " ".join(str(error).split())[:EXCERPT]) from None
        evidence = self._evidence(found, choice, text)
        phrases: dict[str, list[int]] = {}
        for i, (start, end) in zip(query.phrases, query.spans, strict=True):
            phrases.setdefault(query.text[start:end].strip().casefold(), []).append(i)
        rows = []
        for answered, tokens in zip(found, evidence, strict=True):
            label = (answered.label or "").strip().casefold()
            of = query.phrases if len(query.phrases) == 1 else phrases.get(label, ())
            if not of:
                self._warn_of_label(answered.label)
            rows += [(phrase, answered.box, tokens) for phrase in of]
        sent = self.shape(size[1], size[0])
        scale = [stored / (edge or side) for stored, side in zip(size[::-1], sent[::-1], strict=True)]
        boxes = np.array([box for _, box, _ in rows], np.float64).reshape(-1, 4) * [*scale, *scale]
        boxes = np.clip(boxes, 0, [size[1], size[0]] * 2)
        scores = np.array([tokens for *_, tokens in rows], np.float32).reshape(-1, 4)
        phrase = np.array([phrase for phrase, _, _ in rows], np.int64)
        stays = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & (scores[:, 0] > self._config.floor)
        boxes, scores, phrase = boxes[stays], scores[stays], phrase[stays]
        best = ~suppress(boxes, scores[:, 0], phrase, self._config.nms_threshold)
        score, mean, least, most = scores[best].T
        return RegionPredictions(
            phrase=phrase[best], boxes=boxes[best].astype(np.float32), score=score, token_mean=mean, token_min=least,
            token_max=most, centerness=np.full(len(score), np.nan, np.float32),
        )  # fmt: skip

    def _evidence(self, found: Sequence[AnswerBox], choice: dict[str, Any], text: str) -> list[tuple[float, ...]]:
        """Score, and mean, minimum and maximum of the token probabilities, of each box."""
        if self._about.score == "logprobs":
            return _token_evidence(found, choice, text, self._endpoint.url) if found else []
        scores = [answered.score if self._about.score == "field" else self._about.score for answered in found]
        evidence: list[tuple[float, ...]] = []
        for score in scores:
            if not isinstance(score, int | float) or not 0 <= score <= 1:
                raise ImageError("answer_malformed", "a box without a score from 0 to 1")
            evidence.append((float(score),) * 4)
        return evidence

    def _warn_of_label(self, label: str | None) -> None:
        self._unknown += 1
        level = logging.WARNING if self._unknown & (self._unknown - 1) == 0 else logging.DEBUG  # 1, 2, 4, 8, ...
        words = "left out: a box with the label %r, which is no phrase of its request (%d so far)"
        log.log(level, words, label, self._unknown)

    def _answer(self, image: Prepared, query: TextQuery) -> dict[str, Any]:
        """The first choice of the endpoint's answer.

        Raises:
            ImageError: it refuses this request. StageError: it would refuse others, too.
        """
        about = self._about
        names = about.separator.join(query.text[start:end] for start, end in query.spans)
        prompt = about.prompt.replace("{phrases}", names).replace("{caption}", query.text)
        fields = {"max_tokens": about.max_tokens, **({"logprobs": True} if about.score == "logprobs" else {})}
        return self._endpoint.choice([image.pixels, {"type": "text", "text": prompt}], fields)


def _token_evidence(found: Sequence[AnswerBox], choice: dict[str, Any], text: str, url: str) -> list[tuple[float, ...]]:
    """Geometric mean, mean, minimum and maximum of the probabilities of the tokens of each box's coordinates.

    Raises:
        StageError: the answer has no logprobs. ImageError: they are of another text.
    """
    tokens = (choice.get("logprobs") or {}).get("content")
    if not tokens:
        raise StageError(
            f"{url}: found no logprobs in its answers; want an endpoint that gives them, or in config.json as score "
            'a number, which all boxes get, or "field"'
        )
    parts = [bytes(t["bytes"]) if t.get("bytes") is not None else t["token"].encode() for t in tokens]
    ends = np.cumsum([len(part) for part in parts])
    # the parser read what follows the model's reasoning
    answer = text.rpartition("</think>")[2].encode()
    offset = b"".join(parts).rfind(answer)
    if offset < 0:
        raise ImageError("answer_malformed", "its logprobs are of another text")
    logprobs = np.array([t["logprob"] for t in tokens], np.float64)
    evidence: list[tuple[float, ...]] = []
    for box in found:
        start, end = (offset + len(answer.decode()[:at].encode()) for at in box.span)
        of_box = logprobs[np.searchsorted(ends, start, "right") : np.searchsorted(ends, end, "left") + 1]
        p = np.exp(of_box)
        evidence.append((float(np.exp(of_box.mean())), float(p.mean()), float(p.min()), float(p.max())))
    return evidence
