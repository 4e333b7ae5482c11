"""SAM 3 as a teacher, by transformers' own class (arXiv 2511.16719).

Every phrase is a concept of its own. An image's features are computed once for all its phrases.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Sam3Model, Sam3Processor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.sam3.modeling_sam3 import Sam3MaskDecoderOutput, Sam3VisionEncoderOutput

from pipeline.annotators.base import Batch, RegionPredictions
from pipeline.annotators.loading import load_parts
from pipeline.annotators.network import PhraseAnnotator, PhraseInputs
from pipeline.config import PseudoLabelConfig

PHRASES_AT_ONCE = 16
"""Phrases that are encoded, and detected in their images, together."""


class Sam3Annotator(PhraseAnnotator):
    """An annotator (:class:`pipeline.annotators.base.Annotator`).

    A region's score is its probability, if the phrase is in the image, times the probability that it
    is (``presence``). Its three token scores are the first alone, so presence is score / token_mean.
    """

    name = "sam3"
    has_masks = True

    def __init__(self, folder: str, revision: str, config: PseudoLabelConfig, device: str) -> None:
        super().__init__(revision, config, device)
        self._model, processor = load_parts(folder, Sam3Model, device, Sam3Processor)
        if not config.masks:
            self._model.mask_decoder = _NoMasks()
        self._model.detr_decoder.box_head = _Float32(self._model.detr_decoder.box_head)
        self._tokenizer, self._images = processor.tokenizer, processor.image_processor
        self._limit = self._model.config.text_config.max_position_embeddings
        self._side = self._only_side(self._model.config.image_size)

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> list[RegionPredictions]:
        inputs: PhraseInputs = batch.inputs
        image = torch.repeat_interleave(torch.tensor([len(rows) for rows in inputs.rows])).to(self._device)
        row = torch.cat(inputs.rows).to(self._device)
        phrase = [number for query in batch.queries for number in query.phrases]
        parts: list[list[RegionPredictions]] = [[] for _ in batch.images]
        with self._autocast():
            features = self._model.get_vision_features(inputs.pixels.to(self._device))
            texts, mask = self._encoded(inputs.texts), inputs.texts["attention_mask"].to(self._device)
            for start in range(0, len(row), PHRASES_AT_ONCE):
                at = slice(start, start + PHRASES_AT_ONCE)
                outputs = self._model(
                    vision_embeds=self._of_images(features, image[at]), attention_mask=mask[row[at]],
                    text_embeds=BaseModelOutputWithPooling(pooler_output=texts[row[at]]),
                )  # fmt: skip
                probability = outputs.pred_logits.float().sigmoid()
                scores = probability * outputs.presence_logits.float().sigmoid()
                masks = [None] * len(scores) if outputs.pred_masks is None else outputs.pred_masks
                for i, number, own, score, boxes, of_boxes in zip(
                    image[at].tolist(), phrase[at], probability, scores, outputs.pred_boxes.float(), masks, strict=True
                ):
                    size = batch.images[i].size
                    parts[i].append(
                        self._regions(
                            score[:, None], boxes * boxes.new_tensor(size[::-1] * 2), size, (number,),
                            (own[:, None],) * 3, of_boxes,
                        )
                    )  # fmt: skip
        return [self._joined(of_image, image.size) for of_image, image in zip(parts, batch.images, strict=True)]

    def _encoded(self, texts: dict[str, Tensor]) -> Tensor:
        """(texts, T, D) features of each token."""
        parts = []
        for start in range(0, len(texts["input_ids"]), PHRASES_AT_ONCE):
            part = {name: value[start : start + PHRASES_AT_ONCE].to(self._device) for name, value in texts.items()}
            parts.append(self._model.get_text_features(**part).pooler_output)
        return torch.cat(parts)

    def _of_images(self, features: Any, image: Tensor) -> Sam3VisionEncoderOutput:
        """The features of one image a phrase; the finer levels, which only the mask decoder reads, if it is wanted."""
        levels = slice(None) if self._config.masks else slice(-2, None)
        return Sam3VisionEncoderOutput(
            fpn_hidden_states=tuple(level[image] for level in features.fpn_hidden_states[levels]),
            fpn_position_encoding=tuple(level[image] for level in features.fpn_position_encoding[levels]),
        )


class _NoMasks(torch.nn.Module):
    """In place of the mask decoder: boxes do not depend on masks, which take most of the memory."""

    def forward(self, **_: Any) -> Sam3MaskDecoderOutput:
        return Sam3MaskDecoderOutput()


class _Float32(torch.nn.Module):
    """A head that computes in float32: a box in bf16 would be off by up to 4 pixels in 1,000."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            boxes: Tensor = self.head(states.float())
        return boxes
