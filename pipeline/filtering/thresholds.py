"""Thresholds by band of phrase frequency, as calibrate writes and filter-boxes reads, or by class name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import not_
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from pipeline.data.name_list import NameList
from pipeline.errors import InputError, did_you_mean
from pipeline.io.files import read_bytes
from pipeline.io.strict_model import StrictModel, problem_lines

CALIBRATION_OVERRIDES: dict[str, Any] = {
    "threshold": 0.0, "include_equal": True, "ignore_above": None, "image_threshold": None, "min_image_score": None,
    "max_per_phrase_text": None, "balance_to": None, "min_regions": 0, "uncertain_above": 0.0,
}  # fmt: skip
"""Settings during calibration, without rules that depend on the threshold or on other images."""
Status = Literal["fitted", "pooled", "closed"]


class Fit(StrictModel):
    """Result for a set of labels. ``threshold`` None: none reaches the precision, nothing is kept."""

    labels: int = Field(description="regions kept by the other rules, in images with gold boxes")
    correct: int = Field(description="labels that match a gold box of their phrase")
    gold: int = Field(description="number of gold boxes")
    threshold: float | None = Field(description="regions with a higher score are kept")
    kept: int = Field(0, description="labels above the threshold")
    kept_correct: int = Field(0, description="correct labels above the threshold")
    found: int = Field(0, description="gold boxes with a correct label above the threshold")
    precision: float | None = None
    low: float | None = Field(None, description="lower end of the precision's 95 % Wilson interval")
    high: float | None = Field(None, description="upper end")
    best_precision: float | None = Field(None, description="highest precision of a threshold that keeps enough labels")


class Band(Fit):
    """Result for phrases with at least ``from_mentions`` mentions, and fewer than the next band's.

    ``status``: "fitted": its own threshold; "pooled": the threshold of all bands together, as it
    has too few labels; "closed": no threshold reaches the precision, so nothing is kept.
    """

    from_mentions: int
    status: Status


class NameFit(Fit):
    """Result for a class name, with the status of a :class:`Band`."""

    name: str
    status: Status


class Thresholds(StrictModel):
    """Content of the file; of class names without counts the file is a :class:`NameThresholds` made of ``names``."""

    version: Literal[1] = 1
    precision: float
    by: Literal["estimate", "lower"]
    min_labels: int
    iou: float
    rules: dict[str, Any] = Field(description="settings of filter-boxes during calibration")
    inputs: dict[str, str] = Field(description="digests of regions, gold and counts")
    pooled: Fit
    bands: tuple[Band, ...]
    names: tuple[NameFit, ...] = Field((), exclude_if=not_)

    @model_validator(mode="after")
    def _bands_rise_from_zero(self) -> Thresholds:
        starts = [b.from_mentions for b in self.bands]
        if not starts or starts[0] != 0 or sorted(set(starts)) != starts:
            raise ValueError(f"bands begin at {starts}: want ascending numbers from 0")
        return self

    def differing(self, rules: dict[str, Any]) -> list[str]:
        """Descriptions of differences between ``rules`` and those during calibration."""
        fitted, current = self.rules | CALIBRATION_OVERRIDES, rules | CALIBRATION_OVERRIDES
        return [
            f"{name}: {fitted.get(name)}, here {current.get(name)}"
            for name in fitted | current
            if fitted.get(name) != current.get(name)
        ]

    @property
    def lowest(self) -> float:
        """Lowest threshold of all bands."""
        return min((b.threshold for b in self.bands if b.threshold is not None), default=1.0)

    def of(self, mentions: np.ndarray) -> np.ndarray:
        """(n,) float32 thresholds by a phrase's mentions (n,); inf if nothing is kept."""
        values = [np.inf if b.threshold is None else b.threshold for b in self.bands]
        return np.array(values, np.float32).take(band_of([b.from_mentions for b in self.bands], mentions))


def band_of(starts: list[int], mentions: np.ndarray) -> np.ndarray:
    """(n,) indices of the bands, which begin at ``starts``, of numbers of mentions (n,)."""
    return np.searchsorted(np.array(starts), mentions, side="right") - 1


@dataclass(frozen=True)
class NameThresholds:
    """Thresholds by class name: a JSON object of names and numbers; null: nothing is kept of the name.

    Other names have the setting's.
    """

    path: str
    by_name: Mapping[str, float | None]

    @property
    def lowest(self) -> float:
        """Lowest threshold in the file."""
        return min((value for value in self.by_name.values() if value is not None), default=1.0)

    def of(self, texts: Sequence[str], default: float) -> np.ndarray:
        """(n,) float32 thresholds of names (n,) in lower case; ``default`` for those not in the file."""
        lower = {name.lower(): np.inf if value is None else value for name, value in self.by_name.items()}
        return np.array([lower.get(text, default) for text in texts], np.float32)

    def check(self, names: NameList | None, regions: str) -> None:
        """Raise InputError unless ``regions`` are of class names, and the file's among them."""
        if names is None:
            raise InputError(
                f"{self.path}: found thresholds by name, and {regions} of captions; want what calibrate wrote"
            )
        known = {name.lower() for name in names.names}
        for name in self.by_name:
            if name.lower() not in known:
                raise InputError(
                    f"{self.path}: found the name {name!r}; want those of {regions}{did_you_mean(name, names.names)}"
                )


def read_thresholds(path: str | Path) -> Thresholds | NameThresholds:
    """Read a file of calibrate, or a JSON object of class names and thresholds.

    Raises:
        InputError: no such file, or neither of these.
    """
    data = read_bytes(path)
    if data is None:
        raise InputError(f"{path}: no such file")
    try:
        by_name = json.loads(data)
    except ValueError:
        by_name = None
    if isinstance(by_name, dict) and by_name and not by_name.keys() & Thresholds.model_fields.keys():
        for name, value in by_name.items():
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InputError(f"{path}: found {value!r} for {name!r}; want a threshold between 0 and 1, or null")
        return NameThresholds(str(path), by_name)
    try:
        return Thresholds.model_validate_json(data)
    except ValidationError as error:
        raise InputError(
            f"{path}: not what calibrate writes ({problem_lines(error)[0]}), nor an object of names and thresholds"
        ) from None
