"""Style and deterministic SVG output of plots."""

from __future__ import annotations

import io
from typing import Any


def figure(width: float, height: float) -> tuple[Any, Any]:
    """(figure, axes) of a size in inches, without the top and right spines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    plot, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return plot, axes


def svg(plot: Any) -> bytes:
    """Render a figure as SVG, and close it."""
    from matplotlib import pyplot, rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "glip-self-train"}):  # ids are random otherwise
        plot.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(plot)
    return buffer.getvalue()


def inline_svg(image: bytes) -> str:
    """An image of :func:`svg` as an element of a page, in the page's text colour and on its paper."""
    text = image.decode()
    for old, new in (
        ("#000000", "currentColor"),
        ("#5d6878", "currentColor"),
        ("fill: #ffffff", "fill: none"),
        ("<svg ", '<svg fill="currentColor" '),
    ):
        text = text.replace(old, new)
    return text[text.index("<svg") :]
