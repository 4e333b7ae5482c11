"""What a teacher is to the labelling stages: images, captions and spans in; boxes with their evidence out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from pipeline.config import PseudoLabelConfig
from pipeline.errors import InputError
from pipeline.io.hashing import model_revision
from pipeline.records import Span


@dataclass(frozen=True)
class Annotations:
    """The regions of one image's phrases, in no stated order.

    phrase (n,) int64: index into the phrases asked for. boxes (n, 4) float32: xyxy in pixels of the image as given.
    score, token_mean, token_min, token_max, centerness (n,) float32 in 0..1. missing: phrases that the text limit
    cut away, which therefore were not asked for.
    """

    phrase: np.ndarray
    boxes: np.ndarray
    score: np.ndarray
    token_mean: np.ndarray
    token_min: np.ndarray
    token_max: np.ndarray
    centerness: np.ndarray
    missing: list[int] = field(default_factory=list)


class Annotator(Protocol):
    """A loaded teacher. ``revision`` names its weights; ``max_tokens`` bounds a caption, specials included."""

    name: str
    revision: str
    max_tokens: int

    def token_count(self, text: str) -> int:
        """Tokens of a text, without specials."""
        ...

    def annotate(
        self,
        images: Sequence[Image.Image],
        captions: Sequence[str],
        spans: Sequence[Sequence[Sequence[Span]]],
    ) -> list[Annotations]:
        """Box every phrase (a list of character spans of its caption) of every image, in one forward pass."""
        ...


@lru_cache(maxsize=1)
def _load(folder: str, revision: str, settings: str, device: str) -> Annotator:
    config = PseudoLabelConfig.model_validate_json(settings)
    model_type = json.loads((Path(folder) / "config.json").read_text()).get("model_type")
    if model_type == "glip":
        from pipeline.annotators.glip import GlipAnnotator

        return GlipAnnotator(folder, revision, config, device)
    raise InputError(f"{folder}/config.json: model_type {model_type!r} is no known teacher; known: glip")


def load_annotator(folder: str | Path, config: PseudoLabelConfig, device: str = "cpu") -> Annotator:
    """The teacher in a model folder, loaded once a process.

    Raises:
        InputError: not a model folder, or of a family that is not known.
    """
    return _load(str(folder), model_revision(folder), config.model_dump_json(), device)
