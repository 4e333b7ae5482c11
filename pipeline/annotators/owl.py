"""OWLv2 and OWL-ViT as teachers, by transformers' own classes.

Every phrase is a text of its own (arXiv 2205.06230, section 3.1; OWLv2 is arXiv 2306.09683):
there are no tokens of a caption to align.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForZeroShotObjectDetection

from model.grounding import SEPARATOR, clean_name
from pipeline.annotators.base import Batch, Prepared, RegionPredictions, TextQuery
from pipeline.annotators.loading import load_parts
from pipeline.annotators.network import NetworkAnnotator
from pipeline.annotators.region_selection import choose, corners
from pipeline.annotators.tokenizers import token_counts, tokenizer_lock
from pipeline.config import PseudoLabelConfig
from pipeline.data.records import Span
from pipeline.errors import InputError

PHRASES_AT_ONCE = 128
"""Phrases that are encoded, and scored against all boxes, together: a thousand class names do not fit at once."""


@dataclass(frozen=True)
class _Inputs:
    """Pixels (B, 3, S, S); the batch's distinct phrases, tokenized; and for each image its phrases' rows in them."""

    pixels: Tensor
    texts: dict[str, Tensor]
    rows: list[Tensor]


class OwlAnnotator(NetworkAnnotator):
    """An annotator (:class:`pipeline.annotators.base.Annotator`). A region's three token scores are its score."""

    def __init__(self, folder: str, revision: str, config: PseudoLabelConfig, device: str) -> None:
        super().__init__(revision, config, device)
        self._model, processor = load_parts(folder, AutoModelForZeroShotObjectDetection, device)
        self.name = self._model.config.model_type
        self._tokenizer, self._images = processor.tokenizer, processor.image_processor
        self._limit = self._model.config.text_config.max_position_embeddings
        self._side, self._interpolated = self._sides()
        # OWLv2 makes an image square by padding it at its right or bottom, OWL-ViT by squeezing it
        self._padded = bool(getattr(self._images, "do_pad", False))

    def _sides(self) -> tuple[int, bool]:
        """(side of the network's square input, whether its positions are interpolated to that side)."""
        vision, patch = self._model.config.vision_config.image_size, self._model.config.vision_config.patch_size
        wanted = self._config.image_size or self._images.size.height
        wanted = min(wanted, self._config.max_image_size or wanted)
        side = wanted // patch * patch
        if side == 0:
            raise InputError(f"image_size: {wanted} pixels are less than one patch of the teacher's, {patch}")
        return side, side != vision

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
        """The network's pixels. A much larger image is first reduced: padded to a square it would take gigabytes."""
        factor = max(image.size) // (2 * self._side)
        if self._padded and factor > 1:
            image = image.reduce(factor)
        inputs = self._images(image, size={"height": self._side, "width": self._side}, return_tensors="pt")
        return Prepared(inputs["pixel_values"][0], size)

    def collate(self, images: Sequence[Prepared], queries: Sequence[TextQuery]) -> Batch:
        """Each distinct phrase once."""
        texts = [[q.text[start:end] for start, end in q.spans] for q in queries]
        rows = {text: row for row, text in enumerate(dict.fromkeys(chain.from_iterable(texts)))}
        with tokenizer_lock(self._tokenizer):
            encoded = self._tokenizer(
                list(rows) or [""], padding="max_length", truncation=True, max_length=self._limit, return_tensors="pt"
            )
        of_image = [torch.tensor([rows[text] for text in phrases], dtype=torch.long) for phrases in texts]
        pixels = torch.stack([image.pixels for image in images])
        return Batch(_Inputs(pixels, dict(encoded), of_image), tuple(images), tuple(queries))

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> list[RegionPredictions]:
        inputs: _Inputs = batch.inputs
        with self._autocast():
            grid, _ = self._model.image_embedder(
                inputs.pixels.to(self._device), interpolate_pos_encoding=self._interpolated
            )
            texts = self._encoded(inputs.texts).float()
        # the heads in float32: a box in bf16 would be off by up to 4 pixels in 1,000
        grid = grid.float()
        patches = grid.flatten(1, 2)
        boxes = self._model.box_predictor(patches, grid, self._interpolated)
        parts: list[list[RegionPredictions]] = [[] for _ in batch.images]
        most = max(map(len, inputs.rows), default=0)
        for start in range(0, max(most, 1), PHRASES_AT_ONCE):
            rows = [of_image[start : start + PHRASES_AT_ONCE] for of_image in inputs.rows]
            padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self._device)
            logits, _ = self._model.class_predictor(patches, texts[padded])
            for i, of_image in enumerate(rows):
                phrases = batch.queries[i].phrases[start : start + PHRASES_AT_ONCE]
                parts[i].append(self._regions(logits[i, :, : len(of_image)], boxes[i], batch.images[i].size, phrases))
        return [RegionPredictions.joined(of_image) for of_image in parts]

    def _encoded(self, texts: dict[str, Tensor]) -> Tensor:
        """(texts, D) embeddings of unit length."""
        parts = []
        for start in range(0, len(texts["input_ids"]), PHRASES_AT_ONCE):
            part = {name: value[start : start + PHRASES_AT_ONCE].to(self._device) for name, value in texts.items()}
            parts.append(self._model.base_model.get_text_features(**part).pooler_output)
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)

    def _regions(
        self, logits: Tensor, boxes: Tensor, size: tuple[int, int], phrases: Sequence[int]
    ) -> RegionPredictions:
        """Regions of an image of ``size`` (height, width) from logits (patches, phrases) and boxes (patches, 4)."""
        height, width = (max(size), max(size)) if self._padded else size
        scores = logits.float().sigmoid()
        box, phrase, boxes = choose(scores, corners(boxes, width, height), size, self._config)
        score = scores[box, phrase].cpu().numpy()
        return RegionPredictions(
            phrase=np.asarray(phrases, np.int64)[phrase.cpu().numpy()], boxes=boxes[box].cpu().numpy(),
            score=score, token_mean=score, token_min=score, token_max=score,
            centerness=np.full(len(score), np.nan, np.float32),
        )  # fmt: skip
