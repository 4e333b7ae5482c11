"""Checks of an ingest's losses: many point to a wrong path, file or format."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipeline.config import IngestConfig
from pipeline.data.records import Region
from pipeline.errors import RunError
from pipeline.execution.commit import read_report
from pipeline.execution.reports import StageReport, Tally
from pipeline.io.files import listing
from pipeline.io.paths import stem
from pipeline.readers.base import LEFT_OUT, LISTED_TWICE, UNREADABLE, Kind


def refuse_losses(config: IngestConfig, name: str, report: StageReport, out: str) -> None:
    """Check that a set lost at most the allowed share of images, and of regions by bad labels.

    Raises:
        RunError: more is lost; the message quotes the first note and names the report with the
            others.
    """
    samples, regions = (report.tallies.get(unit, Tally()) for unit in ("samples", "regions"))
    unusable = UNREADABLE if regions.kept else UNREADABLE | {"box_outside_image"}
    unreadable = {reason: n for reason, n in regions.dropped.items() if reason in unusable}
    seen_regions = regions.seen - regions.dropped.get("unknown_image", 0)  # most of a file may be of other splits
    lost_images = {reason: n for reason, n in samples.dropped.items() if reason not in (LEFT_OUT, LISTED_TWICE)}
    for unit, seen, dropped in (("images", samples.seen, lost_images), ("regions", seen_regions, unreadable)):
        lost = sum(dropped.values())
        if lost > config.max_failed_share * max(seen, 1):
            others = f", and {regions.dropped} of the regions" if unit == "images" and regions.dropped else ""
            raise RunError(
                f"set {name}: {lost} of {seen} {unit} lost ({dropped}{others}); "
                f"allowed share: {config.max_failed_share} (ingest.max_failed_share)"
                + _first_note(name, out, (*dropped, *unreadable))
            )


REGIONS_CUT = "regions_cut_at_edge"
_MANY_CUT = 0.1
"""Suspicious share of cut boxes; corners read as x, y, width, height give about a half."""


_TOP_LEFT = "regions_in_the_top_left"
_IN_WORDS = "regions_within_words"
_NEARLY_ALL = 0.95
_SHARES = {_IN_WORDS: 0.4}
"""Suspicious shares of boxes; by default nearly all."""
_ODD = {
    "regions_ignored": "ignore regions, which teach nothing: are `iscrowd`, `ignore`, `difficult`, IsGroupOf right?",
    "regions_under_a_pixel": "smaller than a pixel: are they shares of the image (0 to 1), and the format has pixels?",
    _IN_WORDS: "of phrases that begin or end within a word: are `tokens_positive` characters of this caption?",
    _TOP_LEFT: "in the top left of their images: are they shares, percent, or of another size of the images?",
}
"""Counts of boxes that are suspicious if they are those of nearly a whole set, and the doubt."""
_WORD = re.compile("[A-Za-z]{2}")
_FEW = 20
"""Boxes of which all may well be in a quarter of their images."""


class Oddities:
    """Counts of a shard's kept boxes that would be odd if all were so."""

    def __init__(self) -> None:
        self.boxes = 0
        self._counts = dict.fromkeys(_ODD, 0)

    def look(self, regions: Iterable[Region], size: tuple[int, int], caption: str | None) -> None:
        """Count an image's regions; ``size``: (height, width)."""
        height, width = size
        for region in regions:
            x1, y1, x2, y2 = region.box
            self.boxes += 1
            self._counts["regions_ignored"] += region.ignore
            self._counts["regions_under_a_pixel"] += x2 - x1 <= 1 and y2 - y1 <= 1
            edges = [edge for span in region.tokens_positive for edge in span]
            self._counts[_IN_WORDS] += any(edge > 0 and _WORD.match(caption or "", edge - 1) for edge in edges)
            right, low = (100, 100) if 18_000 < width * height < 40_000 else (width / 2, height / 2)
            self._counts[_TOP_LEFT] += x2 <= right and y2 <= low

    def numbers(self) -> dict[str, float]:
        """The counts that are nearly all of the shard's boxes."""
        numbers = {
            name: float(n) for name, n in self._counts.items() if n and n >= _SHARES.get(name, _NEARLY_ALL) * self.boxes
        }
        if self.boxes < _FEW or "regions_under_a_pixel" in numbers:  # which says more
            numbers.pop(_TOP_LEFT, None)
        return numbers


def doubts(report: StageReport, kind: Kind) -> list[str]:
    """Warnings of what is implausible of a set as a whole."""
    regions = report.tallies.get("regions", Tally())
    kept, outside = regions.kept, regions.dropped.get("box_outside_image", 0)
    found = []
    for name, doubt in _ODD.items():
        n = int(report.numbers.get(name, 0))
        if n and n >= _SHARES.get(name, _NEARLY_ALL) * kept:
            found.append(f"{n:,} of {kept:,} boxes are {doubt}")
    if not kept:
        absent = "every class would be taught as absent" if kind == "detection" else "no word has a box"
        lost = ", ".join(f"{reason} {n:,}" for reason, n in regions.dropped.items()) or "none is in the labels"
        found.append(f"no box in all of {report.tallies.get('samples', Tally()).kept:,} images ({lost}): {absent}")
    cut = int(report.numbers.get(REGIONS_CUT, 0))
    if cut + outside > _MANY_CUT * (kept + outside):
        found.append(
            f"{cut + outside:,} of {kept + outside:,} boxes reached outside their image by more than a tenth"
            + (f", {outside:,} of them wholly," if outside else "")
            + " and were cut there: look at some with `inspect`; are they corners where the format has x, y, width, "
            "height, in pixels where it has shares, or of images of another size?"
        )
    return found


def _first_note(name: str, out: str, reasons: Iterable[str]) -> str:
    """Return the first note of the set's reports, of one of the reasons if there is one, and the
    report that has more.
    """
    first = ""
    for path in listing(out, ".report.json"):
        if re.fullmatch(rf"{re.escape(name)}-\d{{6,}}", stem(path)):
            report = read_report(out, stem(path))
            notes = report.notes if report is not None else []
            fitting = [note for note in notes if any(f": {reason}:" in note for reason in reasons)]
            if fitting:
                return f"; the first: {fitting[0]} (more in {path})"
            if notes and not first:
                first = f"; the first: {notes[0]} (more in {path})"
    return first
