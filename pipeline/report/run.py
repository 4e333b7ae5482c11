"""HTML report of a run, made from its outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.io.atomic import write_atomic
from pipeline.io.shard_patterns import expand_shards
from pipeline.report.gallery import write_gallery
from pipeline.report.page import comparison, groups, stage_rows
from pipeline.report.plots import loss_curves, precision_by_score
from pipeline.report.round import gallery_name
from pipeline.report.templates import render
from pipeline.report.urls import png_url
from pipeline.runs.layout import RunLayout
from pipeline.runs.summary import columns, origin

PHOTO_NOTE = (
    "Real photographs, labelled by the demo's toy teacher, which was trained on tinted glyphs only: its boxes mean "
    "little here, but the stages are those that a released checkpoint would run."
)


def write_run_report(layout: RunLayout, summary: Mapping[str, Any]) -> Path:
    """Write ``report/index.html`` and, if any, a gallery of photographs; returns the page.

    It links to the rounds' pages, which :func:`pipeline.report.round.write_round` wrote before.
    """
    layout.report.mkdir(parents=True, exist_ok=True)
    images: dict[str, str] = {}
    links: dict[str, str] = {}
    rounds = summary["rounds"]
    for number in range(1, rounds + 1):
        of_round = f" of round {number}" if rounds > 1 else ""
        links[f"Round {number}: metrics, gates, labels"] = f"round-{number}.html"
        if (layout.report / gallery_name(number)).is_file():
            links[f"More pseudo-labels{of_round}"] = gallery_name(number)
        if number == rounds and (montage := layout.report / f"labels-round-{number}.png").is_file():
            images[f"Pseudo-labels{of_round} on crawled images"] = png_url(montage)
    photos = layout.photos / "train"
    if any(photos.glob("*.tar")):
        shards = expand_shards(str(photos))
        write_gallery(shards, layout.report / "photos.html", title="Photographs", note=PHOTO_NOTE, limit=20)
        links["Real photographs through the same stages"] = "photos.html"
    quality = summary.get("pseudo_labels")
    tallies = {stage: (entry.get("report") or {}).get("tallies") for stage, entry in summary.get("stages", {}).items()}
    page = render(
        "page.html",
        title="GLIP self-training",
        summary=summary,
        origin=origin(summary, "teacher"),
        has_control="control" in summary,
        table=comparison(summary),
        metrics=columns(summary),
        quality=quality,
        groups=groups(quality) if quality else (),
        quality_plot=Markup(precision_by_score(quality["by_score"])) if quality else "",
        curves=Markup(loss_curves(training_curves(layout))),
        tallies={stage: units for stage, units in tallies.items() if units},
        stages=stage_rows(summary),
        images=images,
        links=links,
    )
    index = layout.report / "index.html"
    write_atomic(index, page)
    return index


def training_curves(layout: RunLayout) -> dict[str, Any]:
    """Model -> rows of its training curve."""
    reports = sorted((layout.root / "checkpoints").glob("*/report.json"))
    return {report.parent.name: json.loads(report.read_text())["curve"] for report in reports}
