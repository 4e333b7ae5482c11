"""All pages and pictures of a run, from what its stages left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import SelfTrainConfig
from pipeline.io.paths import expand_shards
from pipeline.report.draw import write_montage
from pipeline.report.gallery import write_gallery
from pipeline.report.page import write_report
from pipeline.run_layout import RunLayout

PHOTO_NOTE = (
    "Real photographs, labelled by the demo's toy teacher, which has only ever seen tinted glyphs: its boxes mean little "
    "here. The path is the one that a released checkpoint takes."
)


def write_run_report(config: SelfTrainConfig, layout: RunLayout, summary: Mapping[str, Any]) -> Path:
    """``report/index.html`` with a gallery page of each round's labels, and of the photographs if there are any.

    Returns the page.
    """
    layout.report.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Path] = {}
    links: dict[str, str] = {}
    for round_number in range(1, config.rounds + 1):
        shards = _shards(layout.pseudo(round_number))
        if not shards:
            continue
        of_round = f" of round {round_number}" if config.rounds > 1 else ""
        page = f"labels-round-{round_number}.html"
        write_gallery(shards, layout.report / page, title=f"Pseudo-labels{of_round}", limit=36)
        links[f"More pseudo-labels{of_round}"] = page
        if round_number == config.rounds:
            pictures[f"Pseudo-labels{of_round} on crawled images"] = layout.report / "labels.png"
            write_montage(shards, layout.report / "labels.png", limit=8, columns=4)
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
