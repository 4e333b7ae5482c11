"""The part of an annotator that all families share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.grounding import SEPARATOR, clean_name
from pipeline.annotators.base import Batch, Prepared, RegionPredictions, TextQuery
from pipeline.annotators.oom import OomRetryBatcher
from pipeline.annotators.region_selection import choose, rle_masks
from pipeline.annotators.tokenizers import token_counts, tokenizer_lock, tokenizer_words
from pipeline.annotators.windows import caption_queries, class_queries
from pipeline.config import PseudoLabelConfig
from pipeline.data.records import Span
from pipeline.errors import InputError


class NetworkAnnotator(ABC):
    """An annotator by one network, whose texts are whole captions.

    ``_limit``: the text limit in tokens, of which ``_specials`` are the tokenizer's own.
    """

    _tokenizer: Any
    _limit: int
    _specials = 2

    def __init__(self, revision: str, config: PseudoLabelConfig, device: str) -> None:
        self.revision, self._config, self._device = revision, config, torch.device(device)
        self._in_halves = OomRetryBatcher(
            lambda batch: self._forward(batch),
            lambda batch: len(batch.images),
            lambda batch, part: self.collate(batch.images[part], batch.queries[part]),
            "images",
        )

    def queries(self, caption: str, spans: Sequence[Span]) -> tuple[list[TextQuery], list[int]]:
        """The caption, or windows of it."""
        return caption_queries(caption, spans, tokenizer_words(self._tokenizer, caption), self._limit, self._specials)

    def class_queries(self, names: Sequence[str]) -> list[TextQuery]:
        """ "person. traffic light", as few texts as hold all names."""
        clean = [clean_name(name).strip() for name in names]
        return list(class_queries(clean, lambda t: token_counts(self._tokenizer, [t])[0], self._limit, SEPARATOR))

    @abstractmethod
    def collate(self, images: Sequence[Prepared], queries: Sequence[TextQuery]) -> Batch:
        """One query about each image, as the network's inputs."""

    def predict(self, batch: Batch) -> list[RegionPredictions]:
        """One forward pass for all, or one a half when memory runs out."""
        return self._in_halves(batch)

    @abstractmethod
    def _forward(self, batch: Batch) -> list[Any]:
        """The regions of each query, or what :meth:`predict` makes them of."""

    def _autocast(self) -> torch.autocast:
        """bfloat16 arithmetic if the settings want it."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.precision == "bf16")


@dataclass(frozen=True)
class PhraseInputs:
    """Pixels (B, 3, S, S); the batch's distinct phrases, tokenized; and for each image its phrases' rows in them."""

    pixels: Tensor
    texts: dict[str, Tensor]
    rows: list[Tensor]


class PhraseAnnotator(NetworkAnnotator):
    """A network whose texts are single phrases, without their caption, and whose images are squeezed to one square.

    ``_images``: the image processor. ``_side``: of the square, in pixels.
    """

    _images: Any
    _side: int

    def queries(self, caption: str, spans: Sequence[Span]) -> tuple[list[TextQuery], list[int]]:
        """One query of all phrases; those beyond the text limit are missing."""
        counts = token_counts(self._tokenizer, [caption[start:end] for start, end in spans])
        fits = [i for i, n in enumerate(counts) if 0 < n <= self._limit - self._specials]
        missing = sorted(set(range(len(spans))) - set(fits))
        if not fits:
            return [], missing
        return [TextQuery(caption, tuple(spans[i] for i in fits), tuple(fits), self._limit * len(fits))], missing

    def class_queries(self, names: Sequence[str]) -> list[TextQuery]:
        """One query of all names."""
        clean = [clean_name(name).strip() for name in names]
        for name, n in zip(clean, token_counts(self._tokenizer, clean), strict=True):
            if not 0 < n <= self._limit - self._specials:
                raise InputError(
                    f"class name {name!r} takes {n} tokens; a query has 1 to {self._limit - self._specials}"
                )
        starts = np.cumsum([0, *(len(name) + len(SEPARATOR) for name in clean)]).tolist()
        spans = tuple((start, start + len(name)) for start, name in zip(starts, clean, strict=False))
        return [TextQuery(SEPARATOR.join(clean), spans, tuple(range(len(clean))), self._limit * len(clean))]

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """The same square for all images."""
        return self._side, self._side

    def prepare(self, image: Image.Image, size: tuple[int, int]) -> Prepared:
        """The network's pixels."""
        inputs = self._images(image, size={"height": self._side, "width": self._side}, return_tensors="pt")
        return Prepared(inputs["pixel_values"][0], size)

    def collate(self, images: Sequence[Prepared], queries: Sequence[TextQuery]) -> Batch:
        """Each distinct phrase once."""
        pixels = torch.stack([image.pixels for image in images])
        return Batch(PhraseInputs(pixels, *self._distinct(queries)), tuple(images), tuple(queries))

    def _only_side(self, side: int) -> int:
        """The side of a network that takes no other.

        Raises:
            InputError: the settings want another.
        """
        wanted = self._config.image_size or side
        wanted = min(wanted, self._config.max_image_size or wanted)
        if wanted != side:
            raise InputError(f"image_size: found {wanted}; want {side} pixels, the only size that this teacher takes")
        return side

    def _distinct(self, queries: Sequence[TextQuery]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """(the distinct phrases, tokenized to the full length; for each query its phrases' rows among them)."""
        texts = [phrase_texts(query) for query in queries]
        rows = {text: row for row, text in enumerate(dict.fromkeys(chain.from_iterable(texts)))}
        encoded = self._tokenized(list(rows) or [""])
        return encoded, [torch.tensor([rows[text] for text in phrases], dtype=torch.long) for phrases in texts]

    def _tokenized(self, texts: list[str]) -> dict[str, Tensor]:
        with tokenizer_lock(self._tokenizer):
            return dict(
                self._tokenizer(
                    texts, padding="max_length", truncation=True, max_length=self._limit, return_tensors="pt"
                )
            )

    def _regions(
        self,
        scores: Tensor,
        boxes: Tensor,
        size: tuple[int, int],
        phrases: Sequence[int],
        evidence: tuple[Tensor, Tensor, Tensor] | None = None,
        masks: Tensor | None = None,
    ) -> RegionPredictions:
        """Regions of an image of ``size`` (height, width).

        scores (n, phrases). boxes (n, 4): xyxy in pixels. phrases: as in :class:`TextQuery`.
        evidence: the mean, least and largest token score, (n, phrases) each; the score if there are no tokens.
        masks: (n, h, w) logits of each box's pixels, of any size.
        """
        box, phrase, boxes = choose(scores, boxes, size, self._config)
        columns = dict(zip(("token_mean", "token_min", "token_max"), evidence or (scores, scores, scores), strict=True))
        columns = {name: values[box, phrase] for name, values in {**columns, "score": scores}.items()}
        return RegionPredictions(
            phrase=np.asarray(phrases, np.int64)[phrase.cpu().numpy()],
            centerness=np.full(len(phrase), np.nan, np.float32),
            mask=None if masks is None else rle_masks(masks[box], size),
            **{name: values.float().cpu().numpy() for name, values in {**columns, "boxes": boxes[box]}.items()},
        )

    def _joined(self, parts: Sequence[RegionPredictions], size: tuple[int, int]) -> RegionPredictions:
        """All regions of an image, of which there may be no part."""
        masks = torch.zeros(0, 1, 1) if self._config.masks else None
        return RegionPredictions.joined(
            parts or [self._regions(torch.zeros(0, 0), torch.zeros(0, 4), size, (), masks=masks)]
        )


def phrase_texts(query: TextQuery) -> list[str]:
    """The texts of a query's phrases."""
    return [query.text[start:end] for start, end in query.spans]
