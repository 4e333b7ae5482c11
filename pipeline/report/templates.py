"""Renders the package's Jinja templates, with autoescape; every page has one style and one script."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.inspection.selection import KINDS, Query


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["rgb"] = lambda c: f"rgb({c[0]},{c[1]},{c[2]})"
    environment.filters["number"] = lambda v: "–" if v is None else f"{v:,.1f}" if isinstance(v, float) else f"{v:,}"
    environment.filters["signed"] = lambda v: "–" if v is None else f"{v:+.1f}"
    environment.filters["interval"] = lambda v: f"{v[0]:+.1f} to {v[1]:+.1f}" if v else ""
    environment.filters["pair"] = lambda text: (text, text)
    script = resources.files("pipeline.report").joinpath("pages.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {
        "script": Markup(script), "script_hash": f"sha256-{digest}", "all_kinds": KINDS, "query": Query(), "live": False
    }  # fmt: skip
    return environment


def render(name: str, **values: Any) -> str:
    """Render a template of ``pipeline/report``; ``made``: the footer (:mod:`pipeline.report.provenance`).

    Text is escaped, and the page runs no other script than its own, by its hash.
    """
    return _environment().get_template(name).render(**values)
