"""Base class of all settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Immutable settings that refuse unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")
