"""How every plot of ours looks and is written: the same bytes each time."""

from __future__ import annotations

import io
from typing import Any


def figure(width: float, height: float) -> tuple[Any, Any]:
    """(figure, axes) of so many inches, open at the top and on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return made, axes


def svg(made: Any) -> bytes:
    """A figure as an SVG file, and the end of the figure."""
    from matplotlib import pyplot, rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "glip-self-train"}):  # ids are random otherwise
        made.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(made)
    return buffer.getvalue()
