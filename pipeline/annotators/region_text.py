"""CLIP, SigLIP and SigLIP2 as scorers of regions, by the similarity of a box's crop and its phrase.

The rule is YOLO-World's (arXiv 2401.17270, appendix B): crop the box, embed crop and phrase, compare.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel

from pipeline.annotators.loading import load_parts
from pipeline.annotators.oom import OomRetryBatcher
from pipeline.annotators.tokenizers import tokenizer_lock
from pipeline.config import RescoreConfig
from pipeline.errors import InputError
from pipeline.io.model_folder import model_revision
from pipeline.system.devices import resolved_precision

Inputs = Mapping[str, Tensor]
FAMILIES = ("clip", "siglip", "siglip2")
TEXTS_AT_ONCE = 256
CROPS_AT_ONCE = 8
"""Crops of one image that are held at full size."""
LONGEST = 4
"""Maximum ratio of a crop's sides for scorers that use only the centre square; longer crops are cut."""


class RegionText:
    """A scorer. :meth:`crops` and :meth:`tokenize` may be called from any thread."""

    def __init__(self, folder: str, revision: str, config: RescoreConfig, device: str) -> None:
        self.revision = revision
        self._config = config
        self._device = torch.device(device)
        self._model, processor = load_parts(folder, AutoModel, device)
        self.name = self._model.config.model_type
        self._embed_crops = OomRetryBatcher(
            lambda i: self._embed(self._model.get_image_features, i), _count, _part, "crops"
        )
        self._embed_texts = OomRetryBatcher(
            lambda i: self._embed(self._model.get_text_features, i), _count, _part, "texts"
        )
        self._tokenizer, self._images = processor.tokenizer, processor.image_processor
        self._limit = self._model.config.text_config.max_position_embeddings

    def tokenize(self, phrases: Sequence[str]) -> tuple[list[dict[str, Tensor]], int]:
        """(the network's inputs for the phrases, some at a time; how many phrases were cut at the text limit)."""
        texts = [self._config.template.replace("{}", phrase) for phrase in phrases]
        parts, cut = [], 0
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = texts[start : start + TEXTS_AT_ONCE]
            with tokenizer_lock(self._tokenizer):
                whole = self._tokenizer(part, truncation=False, padding=False, verbose=False)["input_ids"]
                inputs = self._tokenizer(  # SigLIP saw texts of one length in training
                    part, padding="max_length", truncation=True, max_length=self._limit, return_tensors="pt"
                )
            cut += sum(len(ids) > self._limit for ids in whole)
            parts.append({name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs})
        return parts, cut

    @torch.inference_mode()
    def embed_texts(self, parts: Sequence[Inputs]) -> Tensor:
        """(phrases, D) embeddings of unit length; ``parts`` as :meth:`tokenize` gives them, at least one."""
        return torch.cat([embedding for part in parts for embedding in self._embed_texts(part)])

    def crops(self, image: Image.Image, boxes: np.ndarray) -> tuple[list[dict[str, Tensor]], np.ndarray]:
        """(the distinct crops as the network takes them, index of each box's crop (n,)).

        Args:
            boxes: (n, 4), xyxy in the image's pixels. A crop holds every pixel that its box touches,
                and one pixel at least.
        """
        limit = np.array([image.width, image.height] * 2)
        low = np.minimum(np.floor(boxes[:, :2]).clip(0), limit[:2] - 1)
        high = np.maximum(np.minimum(np.ceil(boxes[:, 2:]), limit[2:]), low + 1)
        edges, which = np.unique(np.concatenate([low, high], 1).astype(np.int64), axis=0, return_inverse=True)
        crops = []
        for start in range(0, len(edges), CROPS_AT_ONCE):
            cut = [image.crop(self._middle(*map(int, e))) for e in edges[start : start + CROPS_AT_ONCE]]
            inputs = self._images(cut, return_tensors="pt")
            crops += [{name: value[i] for name, value in inputs.items()} for i in range(len(cut))]
        return crops, which.reshape(-1)

    def _middle(self, left: int, top: int, right: int, bottom: int) -> tuple[int, int, int, int]:
        """The crop, or the middle of a very long one, which would take gigabytes at the network's size."""
        width, height = right - left, bottom - top
        if getattr(self._images, "do_center_crop", False):
            if width > LONGEST * height:
                left += (width - LONGEST * height) // 2
                right = left + LONGEST * height
            elif height > LONGEST * width:
                top += (height - LONGEST * width) // 2
                bottom = top + LONGEST * width
        return left, top, right, bottom

    @torch.inference_mode()
    def scores(self, crops: Mapping[str, Tensor], which: np.ndarray, texts: Tensor) -> np.ndarray:
        """Similarity of regions and their phrases (n,), float32 in 0..1.

        Args:
            crops: (m, ...), stacked. which: (n,), each region's crop. texts: (n, D), its phrase's embedding.
        """
        embeddings = torch.cat(self._embed_crops(crops))
        cosine = (embeddings[torch.from_numpy(which).to(self._device)] * texts).sum(-1)
        if self._config.similarity == "sigmoid":
            scores = (cosine * self._model.logit_scale.exp() + self._model.logit_bias).sigmoid()
        else:
            scores = cosine.clamp(min=0, max=1)
        return np.asarray(scores.float().cpu().numpy())

    def _embed(self, features: Any, inputs: Inputs) -> list[Tensor]:
        """Embeddings (n, D) of unit length."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.precision == "bf16"):
            outputs = features(**{name: value.to(self._device) for name, value in inputs.items()})
        return [torch.nn.functional.normalize(outputs.pooler_output.float(), dim=-1)]


def _count(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())))


def _part(inputs: Inputs, of: slice) -> Inputs:
    return {name: value[of] for name, value in inputs.items()}


def check_region_text(folder: str | Path, config: RescoreConfig) -> None:
    """Check that a model folder holds a scorer, before it is loaded.

    Raises:
        InputError: of a family that is not known, or that lacks the wanted similarity.
    """
    model_type = json.loads((Path(folder) / "config.json").read_text()).get("model_type")
    if model_type not in FAMILIES:
        raise InputError(
            f"{folder}/config.json: model_type {model_type!r} cannot score regions; known: {', '.join(FAMILIES)}"
        )
    if config.similarity == "sigmoid" and model_type == "clip":
        raise InputError(f"similarity: sigmoid is SigLIP's own; {folder} holds a {model_type}: want cosine")


@lru_cache(maxsize=1)
def _load(folder: str, revision: str, config: RescoreConfig, device: str) -> RegionText:
    check_region_text(folder, config)
    return RegionText(folder, revision, config, device)


def load_region_text(folder: str | Path, config: RescoreConfig, device: str = "cpu") -> RegionText:
    """The scorer in a model folder, loaded once per process; ``precision`` "auto" is the device's.

    Raises:
        InputError: not a model folder, or as :func:`check_region_text`.
    """
    config = config.model_copy(update={"precision": resolved_precision(config.precision, device)})
    return _load(str(folder), model_revision(folder), config, device)
