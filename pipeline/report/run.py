"""HTML report of a run, made from its outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.config import SelfTrainConfig
from pipeline.drawing.figures import inline_svg
from pipeline.inspection.samples import TrainingStore, evenly_spaced
from pipeline.io.atomic import write_atomic
from pipeline.io.shard_patterns import expand_shards
from pipeline.report.figures import store_figures, write_gallery
from pipeline.report.page import comparison, headline, quality_rows, stage_rows
from pipeline.report.plots import loss_curves, precision_by_score
from pipeline.report.provenance import provenance, recipe_text, run_provenance
from pipeline.report.round import SHOWN, gallery_name, label_store
from pipeline.report.templates import render
from pipeline.runs.layout import RunLayout
from pipeline.runs.summary import columns, origin

PHOTO_NOTE = (
    "Real photographs, labelled by the demo's toy teacher, which was trained on tinted glyphs only: its boxes mean "
    "little here, but the stages are those that a released checkpoint would run."
)


def write_run_report(config: SelfTrainConfig, layout: RunLayout, summary: Mapping[str, Any]) -> Path:
    """Write ``report/index.html`` and, if any, a gallery of photographs; returns the page.

    It links to the rounds' pages, which :func:`pipeline.report.round.write_round` wrote before.
    """
    layout.report.mkdir(parents=True, exist_ok=True)
    items: list[dict[str, Any]] = []
    links: dict[str, str] = {}
    rounds = summary["rounds"]
    for number in range(1, rounds + 1):
        of_round = f" of round {number}" if rounds > 1 else ""
        links[f"Round {number}: metrics, gates, labels"] = f"round-{number}.html"
        if (layout.report / gallery_name(number)).is_file():
            links[f"More pseudo-labels{of_round}"] = gallery_name(number)
        if number == rounds and layout.labels(number).is_dir():
            store = label_store(config, layout, number)
            items = store_figures(store, evenly_spaced(store, SHOWN))
    for page in sorted(layout.report.glob("evaluation-*.html")):
        links[page.stem.replace("-", " of ", 1).capitalize()] = page.name
    photos = layout.photos / "train"
    if any(photos.glob("*.tar")):
        write_gallery(
            TrainingStore(expand_shards(str(photos))), layout.report / "photos.html", title="Photographs",
            note=PHOTO_NOTE, limit=20, made=run_provenance(config),
        )  # fmt: skip
        links["Real photographs through the same stages"] = "photos.html"
    quality = summary.get("pseudo_labels")
    tallies = {stage: (entry.get("report") or {}).get("tallies") for stage, entry in summary.get("stages", {}).items()}
    demo, curves = "chance" in summary, training_curves(layout)
    plots = precision_by_score(quality["by_score"]) if quality else b"", loss_curves(curves)
    quality_plot, loss_plot = (Markup(inline_svg(plot)) if plot else "" for plot in plots)
    content = render(
        "page.html",
        title="GLIP self-training",
        summary=summary,
        origin=origin(summary, "teacher"),
        has_control="control" in summary,
        table=comparison(summary),
        metrics=columns(summary),
        headline=headline(summary),
        demo=demo,
        quality=quality,
        quality_rows=quality_rows(quality, demo) if quality else [],
        quality_plot=quality_plot,
        curves=loss_plot,
        tallies={stage: units for stage, units in tallies.items() if units},
        stages=stage_rows(summary),
        items=items,
        labels_title="Pseudo-labels" + (f" of round {rounds}" if rounds > 1 else "") + " on crawled images",
        links=links,
        made=provenance(recipe_text(config)),
    )
    index = layout.report / "index.html"
    write_atomic(index, content)
    return index


def training_curves(layout: RunLayout) -> dict[str, Any]:
    """Model -> rows of its training curve."""
    reports = sorted((layout.root / "checkpoints").glob("*/report.json"))
    curves = {}
    for report in reports:
        data = json.loads(report.read_text())
        curves[report.parent.name] = data["curve"]
        if validation := data.get("validation"):
            curves[f"{report.parent.name}, validation"] = validation
    return curves
