"""What a human-labelled format gives: images with their regions, checked, everything that went counted.

A reader works in two steps. ``fill`` walks once through the label files and puts what it needs of each image into an
index on disk; ``labelled`` turns one image's entry of it into regions, shard by shard, in any process.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pipeline.data.records import Box, Region, Span
from pipeline.errors import InputError
from pipeline.readers.index import Entry, Filling, Index
from pipeline.readers.sniff import refuse

Kind = Literal["detection", "grounding"]


@dataclass(frozen=True)
class SetFiles:
    """Where a set's files lie: paths or URLs. ``companions`` are further label files, by their role in the format."""

    name: str
    annotations: str
    companions: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


class Place(NamedTuple):
    """An image: a file below the set's image folders, or (with ``size``) bytes inside of a file.

    folder: which of the image folders, where they have names. absolute: the path stands as it is.
    base64: the bytes are in that encoding.
    """

    file: str
    folder: str | None = None
    offset: int = 0
    size: int | None = None
    base64: bool = False
    absolute: bool = False


class Labelled(NamedTuple):
    """One image of a set. ``lost`` counts regions that could not be used, by reason; ``boxless`` are the spans of those that
    went for their box alone, ``boxless_names`` their class names: what they name is in the picture.

    size: (height, width) that the file claims. relative: boxes are shares of the image's width and height.
    """

    key: str
    place: Place
    size: tuple[int, int] | None = None
    caption: str | None = None
    regions: tuple[Region, ...] = ()
    uncertain: tuple[Span, ...] = ()
    boxless: tuple[Span, ...] = ()
    boxless_names: tuple[str, ...] = ()
    verified_absent: tuple[str, ...] | None = None
    not_exhaustive: tuple[str, ...] | None = None
    relative: bool = False
    lost: Mapping[str, int] = MappingProxyType({})


LEFT_OUT = "left_out"
"""Counted of images that the set has, but that its readers leave out."""

UNREADABLE = frozenset(
    {"bad_box", "box_without_area", "no_span", "span_outside_caption", "unknown_category", "bad_image_id"}
)
"""Reasons to lose a region that tell of labels which are not as the reader expects them; others are of the set's nature."""

CUT = "cut_at_edge"
"""Counted beside the losses: boxes that were kept, but of which more than a tenth lay outside their image."""

Header = Mapping[str, Any]
"""What a reader knows of the whole set; ``label_space``: class names in their order, of a set labelled by name; ``frequency``: LVIS'."""


@dataclass(frozen=True)
class Format:
    """A reader. ``reads`` is what its annotations are, in words; ``companions`` the roles it knows, with their meaning.

    Attributes:
        fill: reads the files, fills the index, returns the header.
        labelled: one entry into regions, or into None if the set leaves the image out; a pure function.
        place: of an entry, where its image lies, without the rest of the work.
        needed: companions that must be given. options: names of its options, with their meaning.
    """

    kind: Kind
    reads: str
    fill: Callable[[SetFiles, Filling], dict[str, Any]]
    labelled: Callable[[Entry, Header], Labelled | None]
    place: Callable[[Any, Any], Place]
    companions: Mapping[str, str] = field(default_factory=dict)
    needed: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelledSet:
    """A whole set in memory. ``lost`` counts regions that belong to no image of the file."""

    kind: Kind
    images: tuple[Labelled, ...]
    label_space: tuple[str, ...] | None = None
    lost: Mapping[str, int] = field(default_factory=dict)


def build_index(format_: Format, files: SetFiles, path: str | Path) -> None:
    """Read a set's files into an index at ``path``.

    Raises:
        InputError: a file is missing or is not of the format; a companion or an option is unknown or missing; no annotation
            is of any image.
    """
    for role in format_.needed:
        if role not in files.companions:
            raise InputError(f"set {files.name}: want `companions: {{{role}: FILE}}`, {format_.companions[role]}")
    for given, known, word in (
        (files.companions, format_.companions, "companion"),
        (files.options, format_.options, "option"),
    ):
        for name in given:
            if name not in known:
                raise InputError(f"set {files.name}: unknown {word} {name!r}; this format knows {sorted(known)}")
    index = Filling(path, files.annotations)
    try:
        index.finish(format_.fill(files, index))
        index.refuse_unknown_ids()
    except (IsADirectoryError, NotADirectoryError) as error:  # a folder in a file's place, or a file in a folder's
        raise _wrong_kind(format_, files, str(error.filename or files.annotations)) from None
    except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:  # a row that is shaped otherwise
        words = f"{type(error).__name__}: {error}".splitlines()[0][:80]
        raise InputError(f"{files.annotations}: want {format_.reads}; found a row of another shape ({words})") from None
    finally:
        index.close()


def _wrong_kind(format_: Format, files: SetFiles, path: str) -> InputError:
    for role, given in files.companions.items():
        if path == given or path.startswith(f"{given.rstrip('/')}/"):
            return refuse(given, format_.companions[role])
    return refuse(files.annotations, format_.reads)


def read_set(format_: Format, files: SetFiles) -> LabelledSet:
    """All of a small set at once; ingest goes by the index.

    Raises:
        InputError: as :func:`build_index`.
    """
    with tempfile.TemporaryDirectory(prefix="glip-self-train-") as folder:
        build_index(format_, files, Path(folder) / "index")
        index = Index(Path(folder) / "index")
        try:
            entries = (entry for part in index.parts(1000) for entry in index.entries(part))
            images = [item for entry in entries if (item := format_.labelled(entry, index.header)) is not None]
            space = index.header.get("label_space")
            return LabelledSet(
                format_.kind,
                tuple(images),
                None if space is None else tuple(space),
                {**index.header.get("lost", {}), **index.orphan_annotations()},
            )
        finally:
            index.close()


# --- parts that readers share


def want(row: Any, name: str, where: str) -> Any:
    """A field that a row must have."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: want an object; found {str(row)[:40]!r}")
    if name not in row:
        raise InputError(f"{where}: want `{name}`; found {', '.join(f'`{k}`' for k in row) or 'nothing'}")
    return row[name]


def origin_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Score, annotator and root of a region, where a row has them, as export writes them."""
    found: dict[str, Any] = {}
    if number(row.get("score")):
        found["score"] = float(row["score"])
    return found | {name: row[name] for name in ("annotator", "root") if isinstance(row.get(name), str)}


def number(value: Any) -> bool:
    """Whether it is a finite number."""
    return type(value) in _NUMBERS and abs(value) < _TOO_LARGE


_NUMBERS = frozenset((int, float))
_TOO_LARGE = 1e15
"""No coordinate; nan is not below it either."""


def _four(bbox: Any, lost: Counter[str]) -> bool:
    four = type(bbox) in (list, tuple) and len(bbox) == 4 and _NUMBERS.issuperset(map(type, bbox))
    if four and abs(sum(bbox)) < _TOO_LARGE:  # which nan is not, nor what it is added to
        return True
    lost["bad_box"] += 1
    return False


def xywh_box(bbox: Any, size: tuple[int, int] | None, lost: Counter[str], xyxy: Any = None) -> Box | None:
    """xyxy of a COCO ``bbox``, clipped to the image; None (and counted) if nothing of it is left.

    ``xyxy`` is what export adds where x + w is not the corner to the last bit; one that tells of another box is passed over.
    """
    if not _four(bbox, lost):
        return None
    x, y, w, h = bbox
    box = (x, y, x + w, y + h)
    if type(xyxy) is list and len(xyxy) == 4 and all(number(v) and abs(v - b) < _A_BIT for v, b in zip(xyxy, box)):
        box = (xyxy[0], xyxy[1], xyxy[2], xyxy[3])
    return clipped(box, size, lost)


_A_BIT = 1e-6


def xyxy_box(bbox: Any, size: tuple[int, int] | None, lost: Counter[str], *, beyond: int = 0) -> Box | None:
    """The same of corners; ``beyond``: so far behind its x2 and y2 a box ends, 1 where they name its last pixel."""
    return clipped((bbox[0], bbox[1], bbox[2] + beyond, bbox[3] + beyond), size, lost) if _four(bbox, lost) else None


def clipped(box: Box, size: tuple[int, int] | None, lost: Counter[str]) -> Box | None:
    """The part of a box inside the image of (height, width), as floats; counted as ``CUT`` if that is much less than the whole."""
    x1, y1, x2, y2 = box
    if not (x2 > x1 and y2 > y1):
        lost["box_without_area"] += 1
        return None
    if size is not None and (x1 < 0 or y1 < 0 or x2 > size[1] or y2 > size[0]):
        x1, y1, x2, y2 = max(0.0, x1), max(0.0, y1), min(float(size[1]), x2), min(float(size[0]), y2)
        if not (x2 > x1 and y2 > y1):
            lost["box_outside_image"] += 1
            return None
        if (x2 - x1) * (y2 - y1) < 0.9 * (box[2] - box[0]) * (box[3] - box[1]):
            lost[CUT] += 1
    return float(x1), float(y1), float(x2), float(y2)


def spans_of(value: Any, length: int, lost: Counter[str]) -> tuple[Span, ...] | None:
    """``tokens_positive`` as spans of a caption of ``length`` characters; None (and counted) if they are not."""
    if not isinstance(value, list) or not value:
        lost["no_span"] += 1
        return None
    spans = []
    for pair in value:
        whole = isinstance(pair, list | tuple) and len(pair) == 2 and all(type(v) is int for v in pair)
        if not whole or not 0 <= pair[0] < pair[1] <= length:
            lost["span_outside_caption"] += 1
            return None
        spans.append((pair[0], pair[1]))
    return tuple(spans)


def uncertain_of(value: Any, length: int, lost: Counter[str]) -> tuple[Span, ...]:
    """Spans of a caption that are not to be taught as absent, as export writes them; none if there are none."""
    return (spans_of(value, length, lost) or ()) if value else ()


def unsure_of(item: Labelled, kept: Iterable[Region], gone: Iterable[Region] = ()) -> tuple[Span, ...]:
    """Spans not to be taught as absent: the set's own, and those of regions without a usable box that no kept one covers.

    kept, gone: what of the item's regions has a place in the image. An ignore region teaches nothing, so it covers nothing.
    """
    lost = dict.fromkeys([*item.boxless, *(span for region in gone for span in region.tokens_positive)])
    if not lost:
        return item.uncertain
    spans = [span for region in kept if not region.ignore for span in region.tokens_positive]
    covered = {at for start, end in spans for at in range(start, end)}
    known = set(item.uncertain)
    return item.uncertain + tuple(s for s in lost if s not in known and not covered.issuperset(range(*s)))


def known_of(item: Labelled, gone: Iterable[Region] = ()) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """``verified_absent`` and ``not_exhaustive``: the set's own, but what lost its box alone is not absent, and not all of it is boxed.

    gone: regions that have no place in the image.
    """
    names = {*item.boxless_names, *(region.phrase for region in gone)}
    if item.caption is not None or not names:
        return item.verified_absent, item.not_exhaustive
    absent = item.verified_absent
    if absent is not None and item.not_exhaustive is None:  # a federated set that does not say it of others
        return tuple(name for name in absent if name not in names), None
    more = tuple(sorted({*(item.not_exhaustive or ()), *names}))
    return None if absent is None else tuple(name for name in absent if name not in names), more


def phrase_of(caption: str, spans: tuple[Span, ...]) -> str:
    """What the spans cover."""
    return " ".join(caption[start:end] for start, end in spans)


def size_of(row: Mapping[str, Any], height: str = "height", width: str = "width") -> tuple[int, int] | None:
    """(height, width) that a row states, if it does."""
    found = [v for v in (row.get(height), row.get(width)) if v is not None and number(v) and v >= 1]
    return (int(found[0]), int(found[1])) if len(found) == 2 else None
