"""Thresholds fitted on gold, one a band of phrase frequency: the file between calibrate and
filter-boxes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import InputError
from pipeline.io.files import read_bytes

CALIBRATION_OVERRIDES: dict[str, Any] = {
    "threshold": 0.0, "include_equal": True, "ignore_above": None, "image_threshold": None, "min_image_score": None,
    "max_per_phrase_text": None, "balance_to": None, "min_regions": 0,
}  # fmt: skip
"""Settings while thresholds are fitted: what depends on the threshold, or on other images, is off.
"""
Status = Literal["fitted", "pooled", "closed"]


class Fit(BaseModel):
    """What was found for a set of labels. ``threshold`` None: no threshold reaches the precision,
    nothing is kept.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: int = Field(description="regions that the other rules keep, in images with gold boxes")
    correct: int = Field(description="of those, the ones that fit a gold box of their phrase")
    gold: int = Field(description="gold boxes")
    threshold: float | None = Field(description="regions scoring above it are kept")
    kept: int = Field(0, description="labels above the threshold")
    kept_correct: int = Field(0, description="of those, the correct ones")
    found: int = Field(0, description="gold boxes with a correct label above the threshold")
    precision: float | None = None
    low: float | None = Field(None, description="Wilson's 95 % interval of the precision")
    high: float | None = None
    best_precision: float | None = Field(None, description="the highest of any threshold that keeps enough labels")


class Band(Fit):
    """Phrases mentioned at least ``from_mentions`` times (and less often than the next band
    begins).

    ``status`` "fitted": the band's own threshold; "pooled": too few labels, so all bands' common
    one; "closed": no threshold reaches the precision, so nothing is kept.
    """

    from_mentions: int
    status: Status


class Thresholds(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    precision: float
    by: Literal["estimate", "lower"]
    min_labels: int
    iou: float
    rules: dict[str, Any] = Field(description="the settings of filter-boxes that it was fitted with")
    inputs: dict[str, str] = Field(description="digests of regions, gold and counts")
    pooled: Fit
    bands: tuple[Band, ...]

    @model_validator(mode="after")
    def _bands_rise_from_zero(self) -> Thresholds:
        starts = [b.from_mentions for b in self.bands]
        if not starts or starts[0] != 0 or sorted(set(starts)) != starts:
            raise ValueError(f"bands begin at {starts}: want rising numbers from 0")
        return self

    def differing(self, rules: dict[str, Any]) -> list[str]:
        """How rules differ from those it was fitted with, as words; they keep other regions than
        the sample's.
        """
        fitted, here = self.rules | CALIBRATION_OVERRIDES, rules | CALIBRATION_OVERRIDES
        return [
            f"{name}: {fitted.get(name)}, here {value}" for name, value in here.items() if fitted.get(name) != value
        ]

    @property
    def lowest(self) -> float:
        """No band keeps a region that does not score above this."""
        return min((b.threshold for b in self.bands if b.threshold is not None), default=1.0)

    def of(self, mentions: np.ndarray) -> np.ndarray:
        """(n,) float32 thresholds of phrases by how often they are mentioned; inf where nothing is
        kept.
        """
        values = [np.inf if b.threshold is None else b.threshold for b in self.bands]
        return np.array(values, np.float32)[self.band(mentions)]

    def band(self, mentions: np.ndarray) -> np.ndarray:
        """(n,) numbers of the bands."""
        return band_of([b.from_mentions for b in self.bands], mentions)


def band_of(starts: list[int], mentions: np.ndarray) -> np.ndarray:
    """(n,) the last band that begins at or below each number of mentions."""
    return np.searchsorted(np.array(starts), mentions, side="right") - 1


def read_thresholds(path: str | Path) -> Thresholds:
    """Read what calibrate wrote.

    Raises:
        InputError: no such file, or not one of calibrate's.
    """
    data = read_bytes(path)
    if data is None:
        raise InputError(f"{path}: no such file")
    try:
        return Thresholds.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        raise InputError(f"{path}: not what calibrate writes ({place}: {first['msg']})") from None
