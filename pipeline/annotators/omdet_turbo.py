"""OmDet-Turbo as a teacher, by transformers' own class (arXiv 2403.06892).

A box is compared with each phrase's own text; a second text names all phrases, as the task: "Detect a
red car, a dog.". Phrases that do not fit in one task are detected in several, from the same image features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest

import torch
from torch import Tensor
from transformers import AutoModelForZeroShotObjectDetection

from pipeline.annotators.base import Batch, Prepared, RegionPredictions, TextQuery
from pipeline.annotators.loading import load_parts
from pipeline.annotators.network import PhraseAnnotator, PhraseInputs, phrase_texts
from pipeline.annotators.region_selection import corners
from pipeline.annotators.tokenizers import token_counts
from pipeline.config import PseudoLabelConfig

TEXTS_AT_ONCE = 128
"""Phrases that are encoded together."""


@dataclass(frozen=True)
class _Step:
    """One task of each of several images.

    images (n,): their numbers in the batch. phrases: for each image the first and last (exclusive) of
    its query's phrases. task: the texts, tokenized.
    """

    images: Tensor
    phrases: list[tuple[int, int]]
    task: dict[str, Tensor]


@dataclass(frozen=True)
class _Inputs(PhraseInputs):
    """The phrases' inputs, and the tasks."""

    steps: list[_Step]


class OmDetTurboAnnotator(PhraseAnnotator):
    """An annotator (:class:`pipeline.annotators.base.Annotator`). A region's three token scores are its score."""

    name = "omdet-turbo"

    def __init__(self, folder: str, revision: str, config: PseudoLabelConfig, device: str) -> None:
        super().__init__(revision, config, device)
        self._model, processor = load_parts(folder, AutoModelForZeroShotObjectDetection, device)
        self._tokenizer, self._images = processor.tokenizer, processor.image_processor
        self._limit = self._model.config.text_config.max_position_embeddings
        self._specials += sum(token_counts(self._tokenizer, ["Detect", "."]))
        self._side = self._only_side(self._images.size.height)
        self._tasks = lru_cache(maxsize=64)(self._make_tasks)

    def _make_tasks(self, texts: tuple[str, ...]) -> list[tuple[int, int]]:
        """[first, last) phrases of each task: as few as hold all phrases in order."""
        tasks, start = [], 0
        for stop in range(1, len(texts) + 1):
            (count,) = token_counts(self._tokenizer, [_task(texts[start:stop])])
            if count > self._limit - 2 and stop > start + 1:
                tasks.append((start, stop - 1))
                start = stop - 1
        return [*tasks, (start, len(texts))] if texts else []

    def collate(self, images: Sequence[Prepared], queries: Sequence[TextQuery]) -> Batch:
        """Each distinct phrase once, and each image's tasks."""
        pixels = torch.stack([image.pixels for image in images])
        of_image = [tuple(phrase_texts(query)) for query in queries]
        steps = []
        for tasks in zip_longest(*map(self._tasks, of_image)):
            present = [(i, task) for i, task in enumerate(tasks) if task]
            texts = [_task(of_image[i][slice(*task)]) for i, task in present]
            steps.append(
                _Step(torch.tensor([i for i, _ in present]), [task for _, task in present], self._tokenized(texts))
            )
        return Batch(_Inputs(pixels, *self._distinct(queries), steps), tuple(images), tuple(queries))

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> list[RegionPredictions]:
        inputs: _Inputs = batch.inputs
        with self._autocast():
            features = self._model.vision_backbone(inputs.pixels.to(self._device))
            levels = self._model.encoder(features).extracted_states
            texts = self._encoded(inputs.texts).float()
            tasks = [
                self._model.get_cached_task_embeddings(*(step.task[n].to(self._device) for n in _TASK_INPUTS))
                for step in inputs.steps
            ]
        parts: list[list[RegionPredictions]] = [[] for _ in batch.images]
        for step, (task, mask) in zip(inputs.steps, tasks, strict=True):
            at = step.images.to(self._device)
            # fewer phrases are filled up with their first: of transformers' zeros the head makes a class of its own
            most = max(stop - start for start, stop in step.phrases)
            rows = [
                torch.cat([own := inputs.rows[i][start:stop], own[:1].expand(most - len(own))])
                for i, (start, stop) in zip(step.images.tolist(), step.phrases, strict=True)
            ]
            classes = texts[torch.stack(rows, 1).to(self._device)]
            # in float32: a box in bf16 would be off by up to 4 pixels in 1,000
            outputs = self._model.decoder([level[at].float() for level in levels], classes, task.float(), mask)
            for n, (i, (start, stop)) in enumerate(zip(step.images.tolist(), step.phrases, strict=True)):
                size = batch.images[i].size
                scores = outputs.decoder_classes[-1][n, :, : stop - start].sigmoid()
                boxes = corners(outputs.decoder_coords[-1][n], size[1], size[0])
                parts[i].append(self._regions(scores, boxes, size, batch.queries[i].phrases[start:stop]))
        return [self._joined(of_image, image.size) for of_image, image in zip(parts, batch.images, strict=True)]

    def _encoded(self, texts: dict[str, Tensor]) -> Tensor:
        """(texts, D) features."""
        parts = texts["input_ids"].to(self._device).split(TEXTS_AT_ONCE)
        return torch.cat([self._model.language_backbone(part, encode_type="class") for part in parts])


_TASK_INPUTS = ("input_ids", "attention_mask")


def _task(phrases: Sequence[str]) -> str:
    """The task of these phrases, as the processor of transformers writes it."""
    return f"Detect {', '.join(phrases)}."
