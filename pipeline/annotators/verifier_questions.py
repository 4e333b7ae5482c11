"""Yes-or-no questions about regions for a vision-language model. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageOps

from pipeline.config import VerifierConfig
from pipeline.data.images import ImageError
from pipeline.drawing.boxes import outline_boxes

RED = (255, 0, 0)
MAX_ASPECT = 20
"""Maximum ratio of the sides of an image that is shown; longer ones get margins. Qwen-VL's processors refuse 200."""
WORDS = ("yes", "no")


class Answer(NamedTuple):
    """Log probabilities of the two words as the answer's first token, in all their forms."""

    yes: float
    no: float

    @property
    def score(self) -> float:
        """p(yes) / (p(yes) + p(no))."""
        return float(np.exp(self.yes - np.logaddexp(*self)))

    @property
    def clear(self) -> bool:
        """Whether yes and no together have at least half of the probability."""
        return bool(np.logaddexp(*self) >= np.log(0.5))


def word_of(token: str) -> str | None:
    """The word of WORDS that a token's text is, in any case and between any spaces; else None."""
    word = token.strip().casefold()
    return word if word in WORDS else None


@dataclass(frozen=True)
class Question:
    """text: with its phrase. picture: the image. boxes (n, 4): xyxy in its pixels. crop: inside of the box, if any."""

    text: str
    picture: Image.Image
    boxes: np.ndarray
    crop: Image.Image | None = None

    def images(self) -> list[Image.Image]:
        """The picture with its boxes and, if there is one, the crop."""
        drawn = outline_boxes(self.picture, self.boxes.tolist(), RED)
        return [_with_margins(image) for image in (drawn, self.crop) if image is not None]


class Verifier(Protocol):
    """A vision-language model; ``revision`` names its weights. ``tokens``: texts of each word's tokens, if known."""

    name: str
    revision: str
    tokens: dict[str, list[str]] | None

    def collate(self, questions: Sequence[Question]) -> Any:
        """The model's inputs for a batch. May be called from any thread."""

    def predict(self, batch: Any) -> Sequence[Answer | ImageError]:
        """The answer to each question, or the error of one that has none."""


class ImageQuestions:
    """Questions about one RGB image, which is resized once for all of them."""

    def __init__(self, image: Image.Image, config: VerifierConfig) -> None:
        self._image, self._config = image, config
        scale = min(1.0, float(np.sqrt(config.max_pixels / (image.width * image.height))))
        size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
        self._picture = image if scale == 1 else image.resize(size, Image.Resampling.BICUBIC)
        self._scale = np.array([size[0] / image.width, size[1] / image.height] * 2)

    def of_region(self, box: np.ndarray, phrase: str) -> Question:
        """Whether a box (4,), xyxy in the image's pixels, shows the phrase. The crop holds every pixel it touches."""
        width, height = self._image.size
        left, top = (int(min(max(np.floor(v), 0), side - 1)) for v, side in zip(box, (width, height), strict=False))
        right, bottom = (
            int(max(min(np.ceil(v), side), low + 1))
            for v, side, low in zip(box[2:], (width, height), (left, top), strict=True)
        )
        scale = self._config.crop_side / max(right - left, bottom - top)
        size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
        crop = self._image.resize(size, Image.Resampling.BICUBIC, (left, top, right, bottom))
        return self._question(self._config.question, phrase, box[None], crop)

    def of_more(self, boxes: np.ndarray, phrase: str) -> Question:
        """Whether the image has more of the phrase than boxes (n, 4), xyxy in the image's pixels."""
        return self._question(self._config.more_question, phrase, boxes)

    def _question(self, text: str, phrase: str, boxes: np.ndarray, crop: Image.Image | None = None) -> Question:
        return Question(text.replace("{phrase}", phrase), self._picture, boxes * self._scale, crop)


def _with_margins(image: Image.Image) -> Image.Image:
    """The image, or if it is very long its pixels between black margins."""
    width, height = image.size
    sides = max(width, -(-height // MAX_ASPECT)), max(height, -(-width // MAX_ASPECT))
    return image if sides == image.size else ImageOps.pad(image, sides)
