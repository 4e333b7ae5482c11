"""Processor: images and captions (or class lists) to inputs, and outputs to boxes of phrases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import accumulate
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin, TextKwargs

from .grounding import SEPARATOR, Span, chunk_names, phrase_tokens, prompt_from_names
from .image_processing_glip import GlipImageProcessor
from .post_processing import check_number, check_sizes, detections

Text = str | Sequence[str] | Sequence[Sequence[str]]
Phrases = Sequence[Sequence[Span]] | Sequence[str]


@dataclass
class _Row:
    """Phrases of one row of text: their tokens, the first one's index in the image's list, those without tokens."""

    tokens: list[list[int]]
    first: int
    missing: list[int]


class GlipProcessor(ProcessorMixin):
    """Processor of a `GlipImageProcessor` and a BERT tokenizer.

    max_text_length: tokens at which captions are cut; longer class lists become several prompts.
    """

    text_kwargs: TextKwargs = {
        "padding": True, "truncation": True, "return_offsets_mapping": True, "return_token_type_ids": False,
        "return_tensors": "pt",
    }  # fmt: skip

    def __init__(self, image_processor: Any, tokenizer: Any, max_text_length: int = 256):
        super().__init__(image_processor, tokenizer)
        self.max_text_length = max_text_length
        separator = tokenizer.convert_tokens_to_ids(SEPARATOR.strip())
        image_processor.separator_token_id = None if separator == tokenizer.unk_token_id else separator

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call returns; class lists that take several prompts add `image_index`."""
        return [*self.image_processor.model_input_names, "input_ids", "attention_mask", "offset_mapping"]

    def chunk_names(self, names: Sequence[str], max_names: int | None = None) -> list[list[str]]:
        """Group class names to prompts that fit the text length; see `grounding.chunk_names`."""
        return chunk_names(names, self.tokenizer, self.max_text_length, max_names)

    def tokenize(
        self, captions: Sequence[str], padding: bool | str = "longest", max_length: int | None = None
    ) -> BatchFeature:
        """Tokenize captions, cut at `max_length` tokens; None: `max_text_length`.

        padding "max_length" pads to that length, as the original. Returns `input_ids`,
        `attention_mask` (B, T) and `offset_mapping` (B, T, 2) in characters.
        """
        settings = {**self.text_kwargs, "max_length": max_length or self.max_text_length, "padding": padding}
        return BatchFeature(dict(self.tokenizer(list(captions), **settings)))

    def _merge_kwargs(
        self, ModelProcessorKwargs: Any = None, tokenizer_init_kwargs: dict | None = None, **kwargs: Any
    ) -> dict[str, dict]:
        """Merge settings as transformers does, except that an unknown one is an error and texts are cut.

        A tokenizer's own `max_length` counts where it also pads to it: sentence encoders' folders
        carry one that is not this network's.
        """
        text, images = set(TextKwargs.__annotations__), set(self.image_processor.valid_kwargs.__annotations__)
        flat = {*self.valid_processor_kwargs.__annotations__, "common_kwargs", *text, *images}
        for where, known, given in (
            ("GlipProcessor", flat, kwargs),
            ("text_kwargs", text, kwargs.get("text_kwargs", {})),
            ("images_kwargs", images, kwargs.get("images_kwargs", {})),
        ):
            unknown = sorted(set(given) - known)
            if unknown:
                raise TypeError(f"{where}: found {', '.join(unknown)}; want some of {', '.join(sorted(known))}")
        own = dict(tokenizer_init_kwargs or {})
        if own.get("padding") != "max_length":
            own.pop("max_length", None)
        merged = super()._merge_kwargs(ModelProcessorKwargs, own, **kwargs)
        settings = merged["text_kwargs"]
        if settings.setdefault("max_length", self.max_text_length) is None:
            settings["max_length"] = self.max_text_length
        if settings["max_length"] < 2:
            raise ValueError(f"max_length: found {settings['max_length']}; want room for [CLS] and [SEP], 2 or more")
        for name in ("is_split_into_words", "return_overflowing_tokens", "text_pair"):
            if settings.get(name):
                raise ValueError(f"{name}: found {settings[name]!r}; want none: a caption is one row of tokens")
        return merged

    def __call__(self, images: Any = None, text: Text | None = None, **kwargs: Any) -> BatchFeature:
        """Make the model's inputs, `model(**processor(...))`.

        images: one image or a list; see `GlipImageProcessor`. text: a caption, a list of captions or
        of class lists, one per image; a class list becomes the prompt "person. traffic light", or
        several rows of text when it is too long for one (`image_index` is then the image of each
        row). For one image, or none, a flat list of names without "." is a class list, too, as
        GroundingDINO takes it. kwargs: settings of the tokenizer (`padding`, `truncation`,
        `max_length`, ...) and of the image processor, as they are or in `text_kwargs` and
        `images_kwargs`; tensors are PyTorch's unless `return_tensors` says otherwise. Raises
        TypeError for an unknown setting or text of another type, ValueError when counts differ or
        nothing is given.
        """
        if images is None and text is None:
            raise ValueError("You need to provide at least one input to call GlipProcessor: images or text")
        merged = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        features: dict[str, Any] = {}
        if images is not None:
            features.update(self.image_processor(images, **merged["images_kwargs"]))
        if text is not None:
            settings = merged["text_kwargs"]
            count = len(features["image_sizes"]) if features else None
            captions, owner = self._captions(text, images, count, settings["max_length"])
            features.update(self.tokenizer(captions, **settings))
            if owner != list(range(len(owner))):
                index = BatchFeature({"image_index": owner}, tensor_type=settings.get("return_tensors"))
                features["image_index"] = index["image_index"]
        return BatchFeature(features)

    def _captions(self, text: Text, images: Any, count: int | None, max_length: int) -> tuple[list[str], list[int]]:
        """List the rows of text, and the image of each: -1 where a text's list of images is empty."""
        rows: list[Any] = [text] if isinstance(text, str) else list(text) if _is_list(text) else [None]
        if not all(isinstance(row, str) or (_is_list(row) and all(isinstance(n, str) for n in row)) for row in rows):
            raise TypeError(f"text: found {text!r}; want a caption, captions or lists of class names")
        if not rows and count is None:
            raise ValueError("text: found none; want at least one caption")
        names = len(rows) > 1 and all(isinstance(row, str) and "." not in _bare(row) for row in rows)
        nested = isinstance(images, (list, tuple)) and all(isinstance(own, (list, tuple)) for own in images)
        per_text = nested and len(images) == len(rows) and max(map(len, images)) == 1
        if count in (None, 1) and names and not per_text:
            rows = [rows]
        place = list(range(len(rows)))
        if count is not None and len(rows) != count:
            if not per_text:
                raise ValueError(
                    f"found {count} images but {len(rows)} texts; want one each, a caption or a list of class names"
                )
            place = [before if own else -1 for own, before in zip(images, accumulate(map(len, images), initial=0))]
        captions: list[str] = []
        owner: list[int] = []
        for i, row in enumerate(rows):
            prompts = [row]
            if not isinstance(row, str):
                chunks = chunk_names([_bare(n) for n in row], self.tokenizer, min(max_length, self.max_text_length))
                prompts = [prompt_from_names(chunk)[0] for chunk in chunks] or [""]
            captions += prompts
            owner += [place[i]] * len(prompts)
        return captions, owner

    def post_process_grounded_object_detection(
        self,
        outputs: Any,
        input_ids: Tensor | Sequence | None = None,
        threshold: float = 0.05,
        text_threshold: float | None = None,
        target_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
        text_labels: Sequence[Sequence[str]] | None = None,
        *,
        phrases: Sequence[Phrases] | None = None,
        nms_threshold: float = 0.6,
        score_agg: str | None = None,
        max_detections: int = 100,
        text: Sequence[str] | None = None,
        offset_mapping: Tensor | None = None,
        pre_nms_top_n: int = 1000,
    ) -> list[dict[str, Any]]:
        """Find the boxes of every image's phrases.

        input_ids (B, T): for outputs that do not hold them; phrases in its place are `phrases`.
        threshold: on the mean token probability, before centerness. text_threshold: least
        probability of a phrase's likeliest token. target_sizes: (height, width) per image, usually
        the original's. text_labels: per image the class names that its prompt is made of. phrases:
        per image such names, or a list of phrases, each a list of character spans [start, end) of
        its caption. Without both, the phrases are the parts of the prompt between full stops, of a
        caption without any the whole. score_agg: see
        `post_processing.phrase_scores`; None: the model's own. max_detections: per image and
        prompt, as the original. text: the captions, for `text_labels` as written there; without it
        they are decoded from tokens. offset_mapping (B, T, 2): for a model that was called without
        it; only spans need it.

        Returns per image a dict: `scores` (k,), `boxes` (k, 4) xyxy in target_sizes' pixels,
        `labels` (k,) index into that image's phrases, `text_labels`, `token_mean`, `token_min`,
        `token_max`, `centerness`, and `missing_phrases`, indices of phrases without tokens (cut
        away by the text length). Raises ValueError when counts differ, when the names or `text` are
        not those of the prompt, or when token ids or offsets are unknown. Source: GLIP spec sections
        8 and 9.1.
        """
        if isinstance(input_ids, (list, tuple)) and not any(isinstance(x, int) for row in input_ids for x in row):
            input_ids, phrases = None, input_ids if phrases is None else phrases
        if phrases is not None and text_labels is not None:
            raise ValueError("found phrases and text_labels; want one of them")
        index = getattr(outputs, "image_index", None)
        owner: list[int] = list(range(len(outputs.logits))) if index is None else index.tolist()
        images = max(owner, default=-1) + 1
        if text_labels is not None and text_labels and isinstance(text_labels[0], str) and images == 1:
            text_labels = [text_labels]  # type: ignore[list-item]
        given = phrases if text_labels is None else text_labels
        name = "phrases" if text_labels is None else "text_labels"
        for what, value in ((name, given), ("text", text)):
            if value is not None and len(value) != images:
                raise ValueError(f"{what}: found {len(value)}; want one for each of the outputs' {images} images")
        for own in given or ():
            if own is not None and (not _is_list(own) or len({isinstance(x, str) for x in own}) > 1):
                raise ValueError(f"{name}: found {own!r}; want a list of class names for every image")
        if target_sizes is not None:
            target_sizes = check_sizes(target_sizes, images)
        if text_threshold is not None:
            check_number("text_threshold", text_threshold, most=1)
        ids = _row_ids(outputs, input_ids)
        offsets = offset_mapping if offset_mapping is not None else getattr(outputs, "offset_mapping", None)
        if offsets is not None and tuple(offsets.shape[:2]) != (len(owner), outputs.logits.shape[2]):
            raise ValueError(
                f"offset_mapping: found {tuple(offsets.shape)}; want the outputs' {len(owner)} rows of "
                f"{outputs.logits.shape[2]} tokens"
            )
        rows: dict[int, _Row] = {}
        names: list[list[str]] = []
        for image in range(images):
            mine = [r for r, o in enumerate(owner) if o == image]
            caption = None if text is None or not isinstance(text[image], str) else text[image]
            if caption is not None and ids is not None:
                self._check_caption(image, caption, ids[mine[0]], len(mine))
            own = None if given is None else given[image]
            if own is not None and not len(own):
                made, called = [_Row([], 0, []) for _ in mine], []
            elif own is not None and not isinstance(own[0], str):
                made = [self._spans(image, own, mine, offsets, caption)]
                called = self._span_names(own, caption, ids, mine[0], made[0])
            else:
                if ids is None:
                    raise ValueError("input_ids are unknown: call the model with them, or pass them here")
                row_ids = [ids[r] for r in mine]
                made, called = self._segments(row_ids) if own is None else self._listed(image, own, row_ids)
            rows.update(zip(mine, made, strict=True))
            names.append(called)
        found = detections(
            outputs,
            [rows[r].tokens for r in range(len(owner))],
            threshold=threshold,
            target_sizes=None if target_sizes is None else [target_sizes[i] for i in owner],
            nms_threshold=nms_threshold,
            score_agg=score_agg,
            max_detections=max_detections,
            pre_nms_top_n=pre_nms_top_n,
        )
        if text_threshold is not None:
            found = [{k: v[f["token_max"] > text_threshold] for k, v in f.items()} for f in found]
        results: list[dict[str, Any]] = []
        for image in range(images):
            mine = [r for r, o in enumerate(owner) if o == image]
            merged: dict[str, Any] = {
                k: torch.cat([found[0][k][:0], *(found[r][k] for r in mine)]) for k in found[0] if k != "labels"
            }
            merged["labels"] = torch.cat([found[0]["labels"][:0], *(found[r]["labels"] + rows[r].first for r in mine)])
            merged["text_labels"] = [names[image][k] for k in merged["labels"].tolist()]
            merged["missing_phrases"] = [k + rows[r].first for r in mine for k in rows[r].missing]
            results.append(merged)
        return results

    def _content(self, ids: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        special = {self.tokenizer.cls_token_id, self.tokenizer.sep_token_id, self.tokenizer.pad_token_id}
        return [(place, token) for place, token in ids if token not in special]

    def _plain_ids(self, texts: Iterable[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False, truncation=False)["input_ids"]

    def _separator(self) -> int:
        return self._plain_ids([SEPARATOR.strip()])[0][0]

    def _check_caption(self, image: int, caption: str, ids: list[tuple[int, int]], rows: int) -> None:
        want, found = self._plain_ids([caption])[0], [token for _, token in self._content(ids)]
        if rows > 1 or found != want[: len(found)] or (len(found) < len(want) and not self._is_full(ids)):
            raise ValueError(
                f"text of image {image}: found {caption!r}; want the prompt {self.tokenizer.decode(found)!r}"
            )

    def _is_full(self, ids: list[tuple[int, int]]) -> bool:
        """Return whether a row may have been cut: no padding follows."""
        return bool(ids) and ids[-1][1] != self.tokenizer.pad_token_id

    def _spans(self, image: int, phrases: Any, rows: list[int], offsets: Tensor | None, caption: str | None) -> _Row:
        if offsets is None:
            raise ValueError("offsets are unknown: call the model with the processor's offset_mapping, or pass it here")
        if len(rows) != 1:
            raise ValueError(
                f"image {image}: found spans for {len(rows)} rows of text; want the class names as phrases"
            )
        end = math.inf if caption is None else len(caption)
        for span in (span for spans in phrases for span in (spans if _is_list(spans) else [spans])):
            if not (_is_list(span) and len(span) == 2 and all(isinstance(x, Real) for x in span)):
                raise ValueError(
                    f"phrases of image {image}: found {span!r}; want spans [start, end), a list per phrase"
                )
            if not (0 <= span[0] <= span[1] <= end and all(x == int(x) for x in span)):
                text = "its caption" if caption is None else repr(caption)
                raise ValueError(f"phrases of image {image}: found the span {span}; want one within {text}")
        tokens, missing = phrase_tokens(offsets[rows[0]], phrases)
        return _Row(tokens, 0, missing)

    def _span_names(
        self, phrases: Any, caption: str | None, ids: list[list[tuple[int, int]]] | None, row: int, made: _Row
    ) -> list[str]:
        if caption is not None:
            return [" ".join(caption[int(s) : int(e)] for s, e in spans) for spans in phrases]
        if ids is None:
            return [""] * len(made.tokens)
        token_at = dict(ids[row])
        return [self.tokenizer.decode([token_at[t] for t in tokens]) if tokens else "" for tokens in made.tokens]

    def _segments(self, rows: list[list[tuple[int, int]]]) -> tuple[list[_Row], list[str]]:
        """Split prompts at their full stops: the phrases, and their words."""
        separator = self._separator()
        made: list[_Row] = []
        names: list[str] = []
        for ids in rows:
            parts: list[list[tuple[int, int]]] = [[]]
            for place, token in self._content(ids):
                if token == separator:
                    parts.append([])
                else:
                    parts[-1].append((place, token))
            parts = [part for part in parts if part]
            made.append(_Row([[place for place, _ in part] for part in parts], len(names), []))
            names += [self.tokenizer.decode([token for _, token in part]) for part in parts]
        return made, names

    def _listed(
        self, image: int, names: Sequence[str], rows: list[list[tuple[int, int]]]
    ) -> tuple[list[_Row], list[str]]:
        """Find class names in the prompts that they make, one after another.

        Raises ValueError that names both when the prompts are made of something else.
        """
        wanted, separator = self._plain_ids(map(_bare, names)), self._separator()
        stream = [pair for k, own in enumerate(wanted) for pair in (*((t, k) for t in own), (separator, -1))]
        at, row_of = 0, [0] * len(names)
        tokens: list[list[int]] = [[] for _ in names]
        fits = True
        for r, ids in enumerate(rows):
            content = self._content(ids)
            part = stream[at : at + len(content)]
            fits = fits and [t for t, _ in part] == [t for _, t in content]
            for (place, _), (_, k) in zip(content, part):
                if k >= 0:
                    tokens[k].append(place)
                    row_of[k] = r
            at += len(content)
            inside = 0 < at < len(stream) and stream[at][1] >= 0 and stream[at - 1][1] >= 0
            while inside and stream[at][1] >= 0:  # the text's limit cut a name: its rest is nowhere
                at += 1
            at += 1  # the separator after a prompt's last name is left out
            if inside or (r + 1 == len(rows) and at < len(stream)):
                fits = fits and self._is_full(ids) and (inside or len(ids) >= self.max_text_length)
        if not fits:
            texts = [self.tokenizer.decode([token for _, token in self._content(ids)]) for ids in rows]
            raise ValueError(
                f"phrases of image {image}: found the names {prompt_from_names(names)[0]!r}; want those of its prompt "
                f"{SEPARATOR.join(texts)!r}"
            )
        made = []
        row_of = list(accumulate(row_of, max))
        for r in range(len(rows)):
            own = [k for k in range(len(names)) if row_of[k] == r]
            whole = [tokens[k] if len(tokens[k]) == len(wanted[k]) else [] for k in own]
            made.append(_Row(whole, own[0] if own else 0, [i for i, found in enumerate(whole) if not found]))
        return made, [str(name) for name in names]

    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.05, target_sizes: Any = None, **settings: Any
    ):
        """Find boxes of whole captions; see `GlipImageProcessor.post_process_object_detection`."""
        return self.image_processor.post_process_object_detection(outputs, threshold, target_sizes, **settings)


def _is_list(value: Any) -> bool:
    """Tell whether a value has an order of its own, unlike a set or a dict's keys."""
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping, Set))


def _bare(name: str) -> str:
    """Strip the full stop that closes a class name: the prompt's separator says it already."""
    return name.rstrip(" .")


def _row_ids(outputs: Any, input_ids: Tensor | Sequence | None) -> list[list[tuple[int, int]]] | None:
    """List every row's (place, token), padding included, from the outputs or from `input_ids` (B, T).

    Raises ValueError when both are there and differ, or when the shape is not the outputs'.
    """
    own, want = getattr(outputs, "input_ids", None), (outputs.logits.shape[0], outputs.logits.shape[2])
    try:
        given = own if input_ids is None else torch.as_tensor(input_ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"input_ids: found {type(input_ids).__name__}; want token ids of {want}") from error
    if given is None:
        return None
    if tuple(given.shape) != want:
        found = tuple(given.shape) or input_ids
        raise ValueError(f"input_ids: found {found}; want the outputs' {want} rows and tokens")
    if own is not None and given is not own and not torch.equal(own.cpu(), given.cpu()):
        raise ValueError("input_ids: found other tokens than the outputs were computed with; want those")
    return [list(enumerate(row)) for row in given.tolist()]


__all__ = ["GlipImageProcessor", "GlipProcessor"]
