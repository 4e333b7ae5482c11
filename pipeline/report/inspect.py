"""A self-contained HTML page on shards: counts, histograms, phrases, problems, images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.data.images import ImageError, open_image
from pipeline.inspection.counts import Picture
from pipeline.inspection.summary import Summary
from pipeline.inspection.terminal import KINDS, number_rows
from pipeline.io.atomic import write_atomic
from pipeline.report.gallery import figure
from pipeline.report.templates import render


def write_page(summary: Summary, samples: Sequence[Picture], out: str | Path, *, title: str) -> None:
    """Write the page; images that cannot be decoded are added to the problems of ``summary``."""
    items = _figures(summary, samples)
    page = render(
        "inspect.html",
        title=title,
        summary=summary,
        what=f"{summary.shards:,} {KINDS[summary.kind]}",
        rows=number_rows(summary),
        histograms=summary.histograms.values(),
        items=items,
    )
    write_atomic(out, page)


def _figures(summary: Summary, samples: Sequence[Picture]) -> list[dict[str, Any]]:
    items = []
    for sample in samples:
        where = f"{sample.shard}/{sample.key}"
        if sample.image is None:
            _problem(summary, "picture_not_at_hand", f"{where}: drawing it needs its image (--shards)")
            continue
        try:
            image = open_image(sample.image)
        except ImageError as error:
            _problem(summary, "undecodable_when_drawn", f"{where}: {error}")
            continue
        items.append({**figure(image, sample.record), "key": where})
    return items


def _problem(summary: Summary, reason: str, note: str) -> None:
    summary.problems[reason] = summary.problems.get(reason, 0) + 1
    summary.notes.append(note)
