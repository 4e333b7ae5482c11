"""A self-contained HTML page on shards: counts, histograms, phrases, problems, images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.data.images import ImageError
from pipeline.inspection.counts import Picture
from pipeline.inspection.summary import Summary
from pipeline.inspection.terminal import KINDS, number_rows
from pipeline.io.atomic import write_atomic
from pipeline.report.figures import embedded_figure
from pipeline.report.provenance import provenance
from pipeline.report.templates import render


def write_page(summary: Summary, pictures: Sequence[Picture], out: str | Path, *, title: str) -> None:
    """Write the page; images that cannot be decoded are added to the problems of ``summary``."""
    items: list[dict[str, Any]] = []
    for picture in pictures:
        if picture.sample is None or picture.image is None:
            continue  # a problem of the summary already
        try:
            items.append(embedded_figure(picture.sample, picture.image))
        except ImageError as error:
            summary.problems["undecodable_when_drawn"] = summary.problems.get("undecodable_when_drawn", 0) + 1
            summary.notes.append(f"{picture.shard}/{picture.key}: {error}")
    page = render(
        "inspect.html",
        title=title,
        summary=summary,
        what=f"{summary.shards:,} {KINDS[summary.kind]}",
        rows=number_rows(summary),
        histograms=summary.histograms.values(),
        items=items,
        made=provenance(),
    )
    write_atomic(out, page)
