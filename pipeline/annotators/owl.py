"""OWLv2 and OWL-ViT as teachers, by transformers' own classes.

Every phrase is a text of its own (arXiv 2205.06230, section 3.1; OWLv2 is arXiv 2306.09683):
there are no tokens of a caption to align.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForZeroShotObjectDetection

from pipeline.annotators.base import Batch, Prepared, RegionPredictions
from pipeline.annotators.loading import load_parts
from pipeline.annotators.network import PhraseAnnotator, PhraseInputs
from pipeline.annotators.region_selection import corners
from pipeline.config import PseudoLabelConfig
from pipeline.errors import InputError

PHRASES_AT_ONCE = 128
"""Phrases that are encoded, and scored against all boxes, together: a thousand class names do not fit at once."""


class OwlAnnotator(PhraseAnnotator):
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

    def prepare(self, image: Image.Image, size: tuple[int, int]) -> Prepared:
        """The network's pixels. A much larger image is first reduced: padded to a square it would take gigabytes."""
        factor = max(image.size) // (2 * self._side)
        if self._padded and factor > 1:
            image = image.reduce(factor)
        return super().prepare(image, size)

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> list[RegionPredictions]:
        inputs: PhraseInputs = batch.inputs
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
                phrases, size = batch.queries[i].phrases[start : start + PHRASES_AT_ONCE], batch.images[i].size
                height, width = (max(size), max(size)) if self._padded else size
                scores = logits[i, :, : len(of_image)].float().sigmoid()
                parts[i].append(self._regions(scores, corners(boxes[i], width, height), size, phrases))
        return [RegionPredictions.joined(of_image) for of_image in parts]

    def _encoded(self, texts: dict[str, Tensor]) -> Tensor:
        """(texts, D) embeddings of unit length."""
        parts = []
        for start in range(0, len(texts["input_ids"]), PHRASES_AT_ONCE):
            part = {name: value[start : start + PHRASES_AT_ONCE].to(self._device) for name, value in texts.items()}
            parts.append(self._model.base_model.get_text_features(**part).pooler_output)
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)
