"""When an ingest lost or changed too much: a wrong path or the wrong file is likelier than so many broken images."""

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
    """See that no more than the allowed share of a set is lost: images of any reason; regions of those that tell of labels that we could not read.

    Raises:
        RunError: more is lost; tells the first of it, and the report that has more.
    """
    samples, regions = (report.tallies.get(what, Tally()) for what in ("samples", "regions"))
    unread = {reason: n for reason, n in regions.dropped.items() if reason in UNREADABLE}
    ours = regions.seen - regions.dropped.get("unknown_image", 0)  # of a split, most of a file's may be of other images
    gone = {reason: n for reason, n in samples.dropped.items() if reason != LEFT_OUT}
    for what, seen, dropped in (("images", samples.seen, gone), ("regions", ours, unread)):
        lost = sum(dropped.values())
        if lost > config.max_failed_share * max(seen, 1):
            others = f", and {regions.dropped} of the regions" if what == "images" and regions.dropped else ""
            raise RunError(
                f"set {name}: {lost} of {seen} {what} lost ({dropped}{others}); "
                f"allowed share: {config.max_failed_share} (ingest.max_failed_share)" + _first_note(name, out)
            )


REGIONS_CUT = "regions_cut_at_edge"
_MANY_CUT = 0.1
"""Of a set whose boxes are what they are said to be, few reach so far outside; corners read as x, y, width, height do by the half."""


def cut_boxes(report: StageReport) -> str | None:
    """What to say of a set of whose boxes suspiciously many lost more than a tenth at their image's edge."""
    kept, cut = report.tallies.get("regions", Tally()).kept, int(report.numbers.get(REGIONS_CUT, 0))
    if cut <= _MANY_CUT * kept:
        return None
    return (
        f"{cut:,} of {kept:,} boxes reached outside their image by more than a tenth and were cut there: "
        "look at some with `inspect`; are they corners where the format has x, y, width, height, or of images of another size?"
    )


def _first_note(name: str, out: str) -> str:
    """What one of the lost was, and where the others are told."""
    for path in listing(out, ".report.json"):
        if re.fullmatch(rf"{re.escape(name)}-\d{{6,}}", stem(path)):
            report = read_report(out, stem(path))
            if report is not None and report.notes:
                return f"; the first: {report.notes[0]} (more in {path})"
    return ""
