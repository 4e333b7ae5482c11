"""GroundingDINO and MM-GroundingDINO as teachers, by transformers' own classes.

Both score a box against every token of a text (arXiv 2303.05499, section 3.4), so a phrase's score
comes from its tokens'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForZeroShotObjectDetection
from transformers.image_transforms import get_size_with_aspect_ratio

from model.grounding import phrase_tokens
from model.post_processing import phrase_scores
from pipeline.annotators.base import Batch, Prepared, RegionPredictions, TextQuery
from pipeline.annotators.loading import load_parts
from pipeline.annotators.network import NetworkAnnotator
from pipeline.annotators.region_selection import choose, corners, token_evidence
from pipeline.annotators.tokenizers import tokenizer_lock
from pipeline.config import PseudoLabelConfig


@dataclass(frozen=True)
class _Inputs:
    """The network's arguments, and for each query the tokens of each phrase."""

    network: dict[str, Tensor]
    tokens: list[list[list[int]]]


class GroundingDinoAnnotator(NetworkAnnotator):
    """An annotator (:class:`pipeline.annotators.base.Annotator`).

    The checkpoint's own tokenizer lower-cases texts; its offsets are those of the original text.
    """

    _specials = 3  # [CLS], the full stop that ends every text, and [SEP]

    def __init__(self, folder: str, revision: str, config: PseudoLabelConfig, device: str) -> None:
        super().__init__(revision, config, device)
        self._model, processor = load_parts(folder, AutoModelForZeroShotObjectDetection, device)
        self.name = self._model.config.model_type
        self._tokenizer, self._images = processor.tokenizer, processor.image_processor
        self._limit = self._model.config.max_text_len
        self._shortest = config.image_size or self._images.size.shortest_edge
        self._longest = config.max_image_size or self._images.size.longest_edge

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """DETR's resize: the shorter side to one length, the longer at most another."""
        rows, columns = get_size_with_aspect_ratio((height, width), self._shortest, self._longest)
        return max(rows, 1), max(columns, 1)

    def prepare(self, image: Image.Image, size: tuple[int, int]) -> Prepared:
        """Resized to :meth:`shape` of the stored size; normalised later, together with the padding."""
        height, width = self.shape(size[1], size[0])
        resized = self._images(
            image, size={"height": height, "width": width}, do_rescale=False, do_normalize=False, do_pad=False,
            return_tensors="pt",
        )  # fmt: skip
        return Prepared(resized["pixel_values"][0], size)

    def collate(self, images: Sequence[Prepared], queries: Sequence[TextQuery]) -> Batch:
        """Padded to the largest image and the longest text of the batch."""
        pixels = self._images(
            [image.pixels for image in images], do_resize=False, input_data_format="channels_first", return_tensors="pt"
        )
        with tokenizer_lock(self._tokenizer):
            text = self._tokenizer(
                [closed(q.text) for q in queries], padding=True, truncation=True, max_length=self._limit,
                return_offsets_mapping=True, return_tensors="pt",
            )  # fmt: skip
        offsets = text.pop("offset_mapping")
        tokens = [phrase_tokens(o, [[span] for span in q.spans])[0] for o, q in zip(offsets, queries, strict=True)]
        return Batch(_Inputs({**pixels, **text}, tokens), tuple(images), tuple(queries))

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> list[RegionPredictions]:
        inputs: _Inputs = batch.inputs
        with self._autocast():
            outputs = self._model(**{name: value.to(self._device) for name, value in inputs.network.items()})
        return [
            self._regions(logits.float(), boxes, tokens, image.size, query)
            for logits, boxes, tokens, image, query in zip(
                outputs.logits, outputs.pred_boxes, inputs.tokens, batch.images, batch.queries, strict=True
            )
        ]

    def _regions(
        self, logits: Tensor, boxes: Tensor, tokens: list[list[int]], size: tuple[int, int], query: TextQuery
    ) -> RegionPredictions:
        scores = phrase_scores(logits, tokens, self._config.score_agg or "mean")
        box, phrase, boxes = choose(scores, corners(boxes, size[1], size[0]), size, self._config)
        columns = {"boxes": boxes[box], "score": scores[box, phrase]}
        columns |= token_evidence(logits[box].sigmoid(), tokens, phrase)
        return RegionPredictions(
            phrase=np.asarray(query.phrases, np.int64)[phrase.cpu().numpy()],
            centerness=np.full(len(phrase), np.nan, np.float32),
            **{name: value.float().cpu().numpy() for name, value in columns.items()},
        )


def closed(text: str) -> str:
    """The text with a full stop at its end, as these models were trained.

    Words attend to one another only between two stops, and the last ones only if a stop follows them.
    """
    return text if text.rstrip().endswith(".") else f"{text}."
