"""All pages and pictures of a run, from what its stages left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.io.shard_patterns import expand_shards
from pipeline.report.gallery import write_gallery
from pipeline.report.page import write_report
from pipeline.report.round import gallery_name
from pipeline.runs.layout import RunLayout

PHOTO_NOTE = (
    "Real photographs, labelled by the demo's toy teacher, which has only ever seen tinted glyphs: its boxes mean little "
    "here. The path is the one that a released checkpoint takes."
)


def write_run_report(layout: RunLayout, summary: Mapping[str, Any]) -> Path:
    """``report/index.html`` with links to the rounds' pages (:func:`pipeline.report.round.write_round` has made them), and a gallery of the
    photographs if there are any.

    Returns the page.
    """
    layout.report.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Path] = {}
    links: dict[str, str] = {}
    rounds = summary["rounds"]
    for number in range(1, rounds + 1):
        of_round = f" of round {number}" if rounds > 1 else ""
        links[f"Round {number}: metrics, gates, labels"] = f"round-{number}.html"
        if (layout.report / gallery_name(number)).is_file():
            links[f"More pseudo-labels{of_round}"] = gallery_name(number)
        if number == rounds and (picture := layout.report / f"labels-round-{number}.png").is_file():
            pictures[f"Pseudo-labels{of_round} on crawled images"] = picture
    if photos := _shards(layout.photos / "train"):
        write_gallery(photos, layout.report / "photos.html", title="Photographs", note=PHOTO_NOTE, limit=20)
        links["Real photographs through the same stages"] = "photos.html"
    index = layout.report / "index.html"
    write_report(summary, index, pictures=pictures, links=links, curves=training_curves(layout))
    return index


def training_curves(layout: RunLayout) -> dict[str, Any]:
    """Model -> rows of its training curve."""
    curves = {}
    for folder in sorted((layout.root / "checkpoints").glob("*")):
        if (folder / "report.json").is_file():
            curves[folder.name] = json.loads((folder / "report.json").read_text())["curve"]
    return curves


def _shards(folder: Path) -> list[str]:
    return expand_shards(str(folder)) if any(folder.glob("*.tar")) else []
