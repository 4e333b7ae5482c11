"""Match the boxes of a reviewed image with the stored regions: decisions on regions and phrases."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.data.records import Box, Span
from pipeline.data.verdicts import Decision
from pipeline.execution.reports import Tally
from pipeline.labelling.label_records import clipped_box
from pipeline.labelling.region_ids import folded, region_id
from pipeline.phrases.cleaning import plain_text
from pipeline.readers.reviewed import ReviewedBox, ReviewedImage

UNCHANGED, SAME = 0.99, 0.5
"""IoU from which a box is the region's own, and from which it is the region's, moved."""
ROUNDING = 0.02
"""Pixels by which the sides of an unchanged box may differ, as tools round; of small boxes the IoU is lower."""
_SPANNED = re.compile(r"(.*) \[(\d+):(\d+)\]", re.DOTALL)


@dataclass(frozen=True)
class Phrase:
    """A phrase of a caption with its span, or a class name."""

    text: str
    span: Span | None = None


@dataclass(frozen=True)
class StoredRegion:
    """A region. box: as stored; shown: clipped and rounded, as it was exported."""

    id: str
    phrase: Phrase
    box: Box
    shown: Box


@dataclass(frozen=True)
class Decided:
    """A decision on a region, or without ``box`` on a phrase."""

    verdict: Decision
    phrase: Phrase
    box: Box | None = None
    boxes: tuple[Box, ...] = ()


def stored_regions(rows: Iterable[Mapping[str, Any]]) -> list[StoredRegion]:
    """Regions of an image from its rows in a store; those without area in the image are left out."""
    regions: dict[str, StoredRegion] = {}
    for row in rows:
        if (shown := clipped_box(row, (row["height"], row["width"]))) is None:
            continue
        span, name = (row["start"], row["end"]), row.get("name")
        phrase = Phrase(row["phrase"], span) if name is None else Phrase(name)
        number = region_id((span,) if name is None else name, shown)
        box = (row["x1"], row["y1"], row["x2"], row["y2"])
        regions.setdefault(number, StoredRegion(number, phrase, box, shown))
    return list(regions.values())


class PhraseFinder:
    """The phrases of an image by their texts and spans."""

    def __init__(self, phrases: Iterable[Phrase]) -> None:
        self._of_span: dict[Span | None, Phrase] = {}
        self._of_text: dict[str, dict[Phrase, None]] = defaultdict(dict)
        for phrase in phrases:
            phrase = self._of_span.setdefault(phrase.span, phrase) if phrase.span else phrase
            for text in (phrase.text, plain_text(phrase.text) if phrase.span else phrase.text):
                self._of_text[folded(text)][phrase] = None

    def find(self, box: ReviewedBox, spans: Mapping[str, Span]) -> Phrase | str:
        """The phrase that a box is of, or why there is none."""
        span = box.span or spans.get(box.label)
        if span is not None:
            return self._of_span.get(span, "unknown_phrase")
        if len(found := self._of_text.get(folded(box.label), {})) == 1:
            return next(iter(found))
        if match := _SPANNED.fullmatch(box.label):
            return self._of_span.get((int(match[2]), int(match[3])), "unknown_phrase")
        return "ambiguous_phrase" if found else "unknown_phrase"


@dataclass
class ImageDecisions:
    """Decisions of an image. boxes, regions: of the image, exported ones; notes: (reason, name) of those left out."""

    decided: list[Decided] = field(default_factory=list)
    boxes: Tally = field(default_factory=Tally)
    regions: Tally = field(default_factory=Tally)
    notes: list[tuple[str, str]] = field(default_factory=list)


def decide(
    image: ReviewedImage, regions: Sequence[StoredRegion], exported: Sequence[str], phrases: PhraseFinder,
    size: tuple[int, int],
) -> ImageDecisions:  # fmt: skip
    """Compare a reviewed image's boxes with its regions.

    A box is of the region that it was made of, else of the one of its phrase with the highest IoU of at least SAME,
    exported or not. The region is accepted if the box is unchanged, else fixed. Other boxes are missing ones of their
    phrase, each once. Exported regions without a box are rejected; those that a box of an unknown phrase or another
    shape may be of are left without a decision.

    Args:
        regions: all of the image in the store. exported: ids of those that a person has seen.
        size: (height, width) of the image.
    """
    result = ImageDecisions()
    usable, unclear = list[tuple[ReviewedBox, Phrase, Box]](), list[tuple[ReviewedBox, Box | None]]()
    for box in image.boxes:
        corners = dict(zip(("x1", "y1", "x2", "y2"), box.box, strict=True)) if box.box else None
        shown, phrase = clipped_box(corners, size) if corners else None, phrases.find(box, image.spans)
        reason = "no_box" if box.box is None else "outside_image" if shown is None else phrase
        if isinstance(reason, str) or shown is None:
            result.boxes.drop(str(reason))
            result.notes.append((str(reason), repr(box.label)))
            unclear.append((box, shown))
        else:
            usable.append((box, reason, shown))
    pairs = _pairs(usable, regions)
    for number, region in pairs.items():
        _, phrase, shown = usable[number]
        same = _iou(shown, region.shown) >= UNCHANGED or _apart(shown, region.shown) <= ROUNDING
        new = () if same else (shown,)
        result.decided.append(Decided("accept" if same else "fixed", phrase, region.box, new))
    result.boxes.keep(len(pairs))
    placed: dict[Phrase, list[Box]] = defaultdict(list)
    for number in pairs:
        placed[usable[number][1]].append(usable[number][2])
    missing: dict[Phrase, list[Box]] = defaultdict(list)
    for number, (_, phrase, shown) in enumerate(usable):
        if number in pairs:
            continue
        if any(_iou(shown, other) >= UNCHANGED for other in placed[phrase]):
            result.boxes.drop("same_box_again")
            continue
        result.boxes.keep()
        placed[phrase].append(shown)
        missing[phrase].append(shown)
    result.decided += [Decided("missing", phrase, None, tuple(sorted(boxes))) for phrase, boxes in missing.items()]
    of_id, matched = {region.id: region for region in regions}, {region.id for region in pairs.values()}
    for identity in dict.fromkeys(exported):
        if (seen := of_id.get(identity)) is None:
            result.regions.drop("unknown_region")
            result.notes.append(("unknown_region", identity))
        elif identity in matched:
            result.regions.keep()
        elif any(box.region == identity or shown is None or _iou(shown, seen.shown) >= SAME for box, shown in unclear):
            result.regions.drop("unclear")
        else:
            result.regions.keep()
            result.decided.append(Decided("reject", seen.phrase, seen.box))
    return result


def _pairs(
    boxes: Sequence[tuple[ReviewedBox, Phrase, Box]], regions: Sequence[StoredRegion]
) -> dict[int, StoredRegion]:
    """Index of a box -> its region, one to one: by id, then the highest IoU first."""
    found = [
        (box.region != region.id, -_iou(shown, region.shown), number, region.id, region)
        for number, (box, phrase, shown) in enumerate(boxes)
        for region in regions
        if region.phrase == phrase and (box.region == region.id or _iou(shown, region.shown) >= SAME)
    ]
    pairs, taken = dict[int, StoredRegion](), set[str]()
    for *_, number, identity, region in sorted(found, key=lambda pair: pair[:4]):
        if number not in pairs and identity not in taken:
            pairs[number] = region
            taken.add(identity)
    return pairs


def _iou(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


def _apart(a: Box, b: Box) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))
