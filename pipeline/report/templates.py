"""Renders the package's Jinja templates, with autoescape."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(name: str, **values: Any) -> str:
    """Render a template of ``pipeline/report``."""
    loader = PackageLoader("pipeline", "report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["rgb"] = lambda c: f"rgb({c[0]},{c[1]},{c[2]})"
    environment.filters["number"] = lambda v: "–" if v is None else f"{v:,.1f}" if isinstance(v, float) else f"{v:,}"
    return environment.get_template(name).render(**values)
