"""GroundingDINO and MM-GroundingDINO as teachers, by transformers' own classes.

Both score a box against every token of a text (arXiv 2303.05499, section 3.4), so a phrase's score comes from its tokens'.
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

from model.grounding import SEPARATOR, clean_name, phrase_tokens
from model.post_processing import phrase_scores
from pipeline.annotators.base import Batch, Prepared, RegionPredictions, TextQuery
from pipeline.annotators.loading import load_parts
from pipeline.annotators.oom import retry_in_halves
from pipeline.annotators.region_selection import choose, corners, token_evidence
from pipeline.annotators.tokenizers import token_counts, tokenizer_lock, tokenizer_words
from pipeline.annotators.windows import caption_queries, class_queries
from pipeline.config import PseudoLabelConfig
from pipeline.data.records import Span

SPECIALS = 3
"""[CLS], the full stop that ends every text, and [SEP]."""


@dataclass(frozen=True)
class _Inputs:
    """The network's arguments, and for each query the tokens of each phrase."""

    network: dict[str, Tensor]
    tokens: list[list[list[int]]]


class GroundingDinoAnnotator:
    """See :class:`pipeline.annotators.base.Annotator`.

    Texts are lower-cased by the checkpoint's own tokenizer, whose offsets stay those of the text as it was given.
    """

    def __init__(self, folder: str, revision: str, config: PseudoLabelConfig, device: str) -> None:
        self.revision = revision
        self._config = config
        self._device = torch.device(device)
        self._model, processor = load_parts(folder, AutoModelForZeroShotObjectDetection, device)
        self.name = self._model.config.model_type
        self._tokenizer, self._images = processor.tokenizer, processor.image_processor
        self._limit = self._model.config.max_text_len
        self._shortest = config.image_size or self._images.size.shortest_edge
        self._longest = config.max_image_size or self._images.size.longest_edge
        self._run_batch = retry_in_halves(self, self._forward)

    def queries(self, caption: str, spans: Sequence[Span]) -> tuple[list[TextQuery], list[int]]:
        """The caption, or windows of it."""
        return caption_queries(caption, spans, tokenizer_words(self._tokenizer, caption), self._limit, SPECIALS)

    def class_queries(self, names: Sequence[str]) -> list[TextQuery]:
        """ "person. traffic light", as few texts as hold all names."""
        clean = [clean_name(name).strip() for name in names]
        return list(class_queries(clean, self._token_count, self._limit, SEPARATOR))

    def _token_count(self, text: str) -> int:
        return token_counts(self._tokenizer, [text])[0]

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

    def predict(self, batch: Batch) -> list[RegionPredictions]:
        """One forward pass for all, or one a half when memory runs out."""
        return self._run_batch(batch)

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> list[RegionPredictions]:
        inputs: _Inputs = batch.inputs
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.precision == "bf16"):
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
        scores = phrase_scores(logits, tokens, self._config.score_agg)
        box, phrase, boxes = choose(scores, corners(boxes, size[1], size[0]), size, self._config)
        found = {"boxes": boxes[box], "score": scores[box, phrase]}
        found |= token_evidence(logits[box].sigmoid(), tokens, phrase)
        return RegionPredictions(
            phrase=np.asarray(query.phrases, np.int64)[phrase.cpu().numpy()],
            centerness=np.full(len(phrase), np.nan, np.float32),
            **{name: value.float().cpu().numpy() for name, value in found.items()},
        )


def closed(text: str) -> str:
    """The text with a full stop at its end, as these models were trained.

    Words attend to one another only between two stops, and the last ones only if a stop follows them.
    """
    return text if text.rstrip().endswith(".") else f"{text}."
