"""Processor: images and captions (or class lists) to inputs, and outputs to boxes of phrases."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .grounding import Span, chunk_names, phrase_tokens, prompt_from_names
from .image_processing_glip import GlipImageProcessor
from .post_processing import detections

Text = str | Sequence[str] | Sequence[Sequence[str]]
Phrases = Sequence[Sequence[Span]] | Sequence[str]


class GlipProcessor(ProcessorMixin):
    """Processor of a `GlipImageProcessor` and a BERT tokenizer.

    max_text_length: tokens at which captions are cut; longer class lists become several prompts.
    """

    def __init__(self, image_processor: Any, tokenizer: Any, max_text_length: int = 256):
        super().__init__(image_processor, tokenizer)
        self.max_text_length = max_text_length

    def chunk_names(self, names: Sequence[str], max_names: int | None = None) -> list[list[str]]:
        """Group class names to prompts that fit the text length; see `grounding.chunk_names`."""
        return chunk_names(names, self.tokenizer, self.max_text_length, max_names)

    def tokenize(self, captions: Sequence[str], padding: bool | str = "longest") -> BatchFeature:
        """Tokenize captions, cut at `max_text_length` tokens.

        padding "max_length" pads to that length, as the original. Returns `input_ids`,
        `attention_mask` (B, T) and `offset_mapping` (B, T, 2) in characters.
        """
        encoded = self.tokenizer(
            list(captions),
            padding=padding,
            truncation=True,
            max_length=self.max_text_length,
            return_offsets_mapping=True,
            return_token_type_ids=False,
            return_tensors="pt",
        )
        return BatchFeature(dict(encoded))

    def __call__(
        self,
        images: Any = None,
        text: Text | None = None,
        do_resize: bool | None = None,
        return_tensors: str = "pt",
        padding: bool | str = "longest",
        **image_settings: Any,
    ) -> BatchFeature:
        """Make the model's inputs, `model(**processor(...))`.

        images: one image or a list. text: a caption, a list of captions, or a list of class lists,
        one per image; a class list becomes the prompt "person. traffic light", or several rows of
        text when it is too long for one. `image_index` is then the image of each row. Raises
        ValueError when counts differ or return_tensors is not "pt".
        """
        if return_tensors != "pt":
            raise ValueError(f'return_tensors={return_tensors!r}: only "pt" is offered')
        features: dict[str, Any] = {}
        if images is not None:
            features.update(self.image_processor(images, do_resize=do_resize, return_tensors="pt", **image_settings))
        if text is not None:
            rows: list[Any] = [text] if isinstance(text, str) else list(text)
            captions: list[str] = []
            owner: list[int] = []
            for i, row in enumerate(rows):
                prompts = [row] if isinstance(row, str) else [prompt_from_names(c)[0] for c in self.chunk_names(row)]
                captions += prompts or [""]
                owner += [i] * max(len(prompts), 1)
            if images is not None and len(rows) != features["pixel_values"].shape[0]:
                raise ValueError(f"{features['pixel_values'].shape[0]} images but {len(rows)} texts")
            features.update(self.tokenize(captions, padding))
            if len(owner) > len(rows):
                features["image_index"] = torch.tensor(owner)
        return BatchFeature(features)

    def post_process_grounded_object_detection(
        self,
        outputs: Any,
        phrases: Sequence[Phrases],
        threshold: float = 0.05,
        target_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
        nms_threshold: float = 0.6,
        score_agg: str | None = None,
        max_detections: int = 100,
        text: Sequence[str] | None = None,
        offset_mapping: Tensor | None = None,
        pre_nms_top_n: int = 1000,
    ) -> list[dict[str, Any]]:
        """Find the boxes of every image's phrases.

        phrases: per image a list of phrases, each a list of character spans [start, end) of its
        caption; or per image the class names that were given as text. threshold: on the mean token
        probability. target_sizes: (height, width) per image, usually the original's. score_agg: see
        `post_processing.phrase_scores`; None: the model's own. max_detections: per image and
        prompt, as the original. text: the captions, for `text_labels` as written there; without it
        they are decoded from tokens. offset_mapping: for a model that was called without it.

        Returns per image a dict: `scores` (k,), `boxes` (k, 4) xyxy in target_sizes' pixels,
        `labels` (k,) index into that image's phrases, `text_labels`, `token_mean`, `token_min`,
        `token_max`, `centerness`, and `missing_phrases`, indices of phrases without tokens (cut
        away by the text length). Raises ValueError when counts differ or offsets are unknown.
        Source: GLIP spec sections 8 and 9.1.
        """
        offsets = offset_mapping if offset_mapping is not None else getattr(outputs, "offset_mapping", None)
        if offsets is None:
            raise ValueError("offsets are unknown: call the model with the processor's offset_mapping, or pass it here")
        index = getattr(outputs, "image_index", None)
        owner = list(range(len(outputs.logits))) if index is None else index.tolist()
        if len(phrases) != max(owner, default=-1) + 1:
            raise ValueError(f"phrases for {len(phrases)} images, outputs of {max(owner, default=-1) + 1}")
        rows = self._rows(phrases, owner)
        mapped = [phrase_tokens(o, spans) for o, (spans, _) in zip(offsets, rows)]
        by_row = detections(
            outputs,
            [tokens for tokens, _ in mapped],
            threshold=threshold,
            target_sizes=None if target_sizes is None else [tuple(map(int, target_sizes[i])) for i in owner],
            nms_threshold=nms_threshold,
            score_agg=score_agg,
            max_detections=max_detections,
            pre_nms_top_n=pre_nms_top_n,
        )
        results: list[dict[str, Any]] = []
        for image, given in enumerate(phrases):
            mine = [r for r, o in enumerate(owner) if o == image]
            merged = {k: torch.cat([by_row[r][k] for r in mine]) for k in by_row[mine[0]] if k != "labels"}
            merged["labels"] = torch.cat([by_row[r]["labels"] + rows[r][1] for r in mine])
            caption = None if text is None or not isinstance(text[image], str) else text[image]
            names = self._names(given, caption, outputs, mine[0], mapped[mine[0]][0])
            merged["text_labels"] = [names[k] for k in merged["labels"].tolist()]
            merged["missing_phrases"] = [k + rows[r][1] for r in mine for k in mapped[r][1]]
            results.append(merged)
        return results

    def _rows(self, phrases: Sequence[Phrases], owner: list[int]) -> list[tuple[list, int]]:
        """List each text row's phrases' spans, and the first one's index in the image's list."""
        rows: list[tuple[list, int]] = []
        for image, given in enumerate(phrases):
            made: list[tuple[list, int]] = [(list(given), 0)]
            if given and isinstance(given[0], str):
                chunks = self.chunk_names(given)
                starts = accumulate(map(len, chunks), initial=0)
                made = [(prompt_from_names(chunk)[1], start) for chunk, start in zip(chunks, starts)]
            if len(made) != owner.count(image):
                raise ValueError(
                    f"image {image}: {owner.count(image)} rows of text but its phrases make {len(made)}; "
                    "give the class names as phrases"
                )
            rows += made
        return rows

    def _names(self, given: Phrases, caption: str | None, outputs: Any, row: int, tokens: list[list[int]]) -> list[str]:
        if given and isinstance(given[0], str):
            return [str(name) for name in given]
        if caption is not None:
            return [" ".join(caption[int(s) : int(e)] for s, e in spans) for spans in given]  # type: ignore[str-unpack]
        ids = getattr(outputs, "input_ids", None)
        if ids is None:
            return [""] * len(given)
        return [self.tokenizer.decode(ids[row][t]) if t else "" for t in tokens]

    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.05, target_sizes: Any = None, **settings: Any
    ):
        """Find boxes of whole captions; see `GlipImageProcessor.post_process_object_detection`."""
        return self.image_processor.post_process_object_detection(outputs, threshold, target_sizes, **settings)


__all__ = ["GlipImageProcessor", "GlipProcessor"]
