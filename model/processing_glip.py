"""Images and captions (or class lists) to network inputs, and network outputs to boxes of phrases."""

from __future__ import annotations

from collections.abc import Sequence
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
    """max_text_length: tokens at which captions are cut; class lists longer than that become several prompts."""

    def __init__(self, image_processor: Any, tokenizer: Any, max_text_length: int = 256):
        super().__init__(image_processor, tokenizer)
        self.max_text_length = max_text_length

    def chunk_names(self, names: Sequence[str], max_names: int | None = None) -> list[list[str]]:
        """Class names in groups whose prompts fit the text length; see `grounding.chunk_names`."""
        return chunk_names(names, self.tokenizer, self.max_text_length, max_names)

    def tokenize(self, captions: Sequence[str], padding: bool | str = "longest") -> BatchFeature:
        """Captions -> `input_ids`, `attention_mask` (B, T) and `offset_mapping` (B, T, 2) character offsets.

        Cut at `max_text_length` tokens. padding "max_length" pads to that, as the original does.
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
        """Inputs for the model; `model(**processor(...))`.

        images: one image or a list. text: a caption, a list of captions, or a list of class lists, one an image; a
        class list becomes the prompt "person. traffic light". A class list too long for one prompt takes several
        rows of text; `image_index` then says which image each row belongs to. Raises ValueError when
        counts differ or return_tensors is not "pt".
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
        """Boxes of every image's phrases.

        phrases: per image a list of phrases, each a list of character spans [start, end) of its caption; or per
        image the class names that were given as text. threshold: on the mean token probability. target_sizes:
        (height, width) a image, usually the original's. score_agg: "mean", "max", "geometric" or "sum"; None: the model's own (mean). max_detections: an
        image and prompt (a class list of several prompts may have that many for each, as the original).
        text: the captions, for `text_labels` in their own letters; without it they are decoded from tokens.
        offset_mapping: only needed when the model was called without it.

        Returns per image a dict: `scores` (k,), `boxes` (k, 4) xyxy in target_sizes' pixels, `labels` (k,) index
        into that image's phrases, `text_labels`, `token_mean`, `token_min`, `token_max`, `centerness`, and
        `missing_phrases`, indices of phrases without tokens (cut away by the text length).
        Source: GLIP spec sections 8 and 9.1. Raises ValueError when counts differ or offsets are unknown.
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
        found = detections(
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
            merged = {k: torch.cat([found[r][k] for r in mine]) for k in found[mine[0]] if k != "labels"}
            merged["labels"] = torch.cat([found[r]["labels"] + rows[r][1] for r in mine])
            caption = None if text is None or not isinstance(text[image], str) else text[image]
            names = self._names(given, caption, outputs, mine[0], mapped[mine[0]][0])
            merged["text_labels"] = [names[k] for k in merged["labels"].tolist()]
            merged["missing_phrases"] = [k + rows[r][1] for r in mine for k in mapped[r][1]]
            results.append(merged)
        return results

    def _rows(self, phrases: Sequence[Phrases], owner: list[int]) -> list[tuple[list, int]]:
        """Per row of text: its phrases' spans and the index of the first of them in the image's list."""
        rows: list[tuple[list, int]] = []
        for image, given in enumerate(phrases):
            count = owner.count(image)
            if given and isinstance(given[0], str):
                start = 0
                chunks = self.chunk_names(given)
                for chunk in chunks:
                    rows.append((prompt_from_names(chunk)[1], start))
                    start += len(chunk)
                made = len(chunks)
            else:
                rows.append((list(given), 0))
                made = 1
            if made != count:
                raise ValueError(
                    f"image {image}: {count} rows of text but its phrases make {made}; give the class names as phrases"
                )
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
        """Detections with each whole caption as one phrase; see `GlipImageProcessor.post_process_object_detection`."""
        return self.image_processor.post_process_object_detection(outputs, threshold, target_sizes, **settings)


__all__ = ["GlipImageProcessor", "GlipProcessor"]
