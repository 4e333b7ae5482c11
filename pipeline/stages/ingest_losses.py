"""Checks of an ingest's losses: many point to a wrong path, file or format."""

from __future__ import annotations

import re

from pipeline.config import IngestConfig
from pipeline.errors import RunError
from pipeline.execution.commit import read_report
from pipeline.execution.reports import StageReport, Tally
from pipeline.io.files import listing
from pipeline.io.paths import stem
from pipeline.readers.base import LEFT_OUT, UNREADABLE


def refuse_losses(config: IngestConfig, name: str, report: StageReport, out: str) -> None:
    """Check that a set lost at most the allowed share of images, and of regions by bad labels.

    Raises:
        RunError: more is lost; the message quotes the first note and names the report with the
            others.
    """
    samples, regions = (report.tallies.get(unit, Tally()) for unit in ("samples", "regions"))
    unreadable = {reason: n for reason, n in regions.dropped.items() if reason in UNREADABLE}
    seen_regions = regions.seen - regions.dropped.get("unknown_image", 0)  # most of a file may be of other splits
    lost_images = {reason: n for reason, n in samples.dropped.items() if reason != LEFT_OUT}
    for unit, seen, dropped in (("images", samples.seen, lost_images), ("regions", seen_regions, unreadable)):
        lost = sum(dropped.values())
        if lost > config.max_failed_share * max(seen, 1):
            others = f", and {regions.dropped} of the regions" if unit == "images" and regions.dropped else ""
            raise RunError(
                f"set {name}: {lost} of {seen} {unit} lost ({dropped}{others}); "
                f"allowed share: {config.max_failed_share} (ingest.max_failed_share)" + _first_note(name, out)
            )


REGIONS_CUT = "regions_cut_at_edge"
_MANY_CUT = 0.1
"""Suspicious share of cut boxes; corners read as x, y, width, height give about a half."""


def cut_boxes(report: StageReport) -> str | None:
    """Return a warning if suspiciously many boxes were cut at the image's edge."""
    kept, cut = report.tallies.get("regions", Tally()).kept, int(report.numbers.get(REGIONS_CUT, 0))
    if cut <= _MANY_CUT * kept:
        return None
    return (
        f"{cut:,} of {kept:,} boxes reached outside their image by more than a tenth and were cut there: "
        "look at some with `inspect`; are they corners where the format has x, y, width, height, or of images of "
        "another size?"
    )


def _first_note(name: str, out: str) -> str:
    """Return the first note of the set's reports, and the report that has more."""
    for path in listing(out, ".report.json"):
        if re.fullmatch(rf"{re.escape(name)}-\d{{6,}}", stem(path)):
            report = read_report(out, stem(path))
            if report is not None and report.notes:
                return f"; the first: {report.notes[0]} (more in {path})"
    return ""
