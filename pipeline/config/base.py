"""Base class of all settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.io.strict_model import StrictModel

UnitFloat = Annotated[float, Field(ge=0, le=1)]
"""Share, probability or score."""
Iou = Annotated[float, Field(gt=0, le=1)]
ScoreAggregation = Literal["mean", "max", "geometric", "sum"]


class Config(StrictModel):
    """Base class of settings."""
