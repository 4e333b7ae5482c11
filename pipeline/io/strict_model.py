"""Immutable pydantic models without unknown fields, and lines about invalid ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class StrictModel(BaseModel):
    """Immutable model that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def problem_lines(
    error: ValidationError, where: str = "", hint: Callable[[tuple[Any, ...]], str] = lambda loc: ""
) -> list[str]:
    """``where: field: message`` for each problem, and for an unknown field the ``hint`` of its path."""
    start = f"{where}: " if where else ""
    return [
        f"{start}{'.'.join(map(str, e['loc']))}: {e['msg']}{hint(e['loc']) if e['type'] == 'extra_forbidden' else ''}"
        for e in error.errors()
    ]
