"""Interface of the readers of human-labelled formats, and functions that they share.

A reader works in two steps: ``fill`` reads the annotation files once and writes the needed parts of
each image to an index on disk; ``labelled`` converts one entry of the index to regions, shard by
shard, in any process. Everything dropped is counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pipeline.data.records import Box, Region, Span
from pipeline.errors import InputError
from pipeline.readers.index import Entry, IndexWriter
from pipeline.readers.sniff import wrong_format

Kind = Literal["detection", "grounding"]


@dataclass(frozen=True)
class SetFiles:
    """Paths or URLs of a set's files. ``companions``: further annotation files, by role.
    ``image_folders``: to search in order.
    """

    name: str
    annotations: str
    companions: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    image_folders: tuple[str, ...] = ()


class ImageLocation(NamedTuple):
    """Location of an image: a file below the set's image folders or, with ``size``, a byte range of
    a file.

    folder: name of the image folder, if they are named. absolute: ``file`` is not relative to an
    image folder. base64: the content is base64.
    """

    file: str
    folder: str | None = None
    offset: int = 0
    size: int | None = None
    base64: bool = False
    absolute: bool = False


class LabelledImage(NamedTuple):
    """One image of a set with its labels.

    Attributes:
        size: (height, width) stated in the annotations.
        boxless: spans of regions dropped only for their box: their objects are in the image.
        boxless_names: class names of such regions.
        relative: boxes are fractions of the image's width and height.
        crawled: the image is as a crawler stored it, and relative boxes are of the original.
        original_size: (height, width) of the original, if stated.
        lost: number of dropped regions by reason.
    """

    key: str
    location: ImageLocation
    size: tuple[int, int] | None = None
    caption: str | None = None
    regions: tuple[Region, ...] = ()
    uncertain: tuple[Span, ...] = ()
    boxless: tuple[Span, ...] = ()
    boxless_names: tuple[str, ...] = ()
    verified_absent: tuple[str, ...] | None = None
    not_exhaustive: tuple[str, ...] | None = None
    relative: bool = False
    crawled: bool = False
    original_size: tuple[int, int] | None = None
    lost: Mapping[str, int] = MappingProxyType({})


LEFT_OUT = "left_out"
"""Reason under which images are counted that ``labelled`` excludes."""

UNREADABLE = frozenset(
    {"bad_box", "box_without_area", "no_span", "span_outside_caption", "unknown_category", "bad_image_id"}
)
"""Reasons for dropping a region that indicate an unexpected format; the others occur in any set."""

CUT = "cut_at_edge"
"""Counted with the losses: kept boxes with over a tenth of their area outside the image."""

Header = Mapping[str, Any]
"""Data of the set. ``label_space``: class names in order; ``frequency``: LVIS'."""


class LabelCollector:
    """Collects the regions of one image. lost: number of dropped regions by reason."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.lost: Counter[str] = Counter()
        self._boxless, self._boxless_names = list[Span](), list[str]()

    def add(self, box: Box | None, phrase: str, spans: tuple[Span, ...] = (), **fields: Any) -> None:
        """Add a region, or record its spans or class name as boxless if its box was dropped."""
        if box is not None:
            if spans:  # a default is not validated
                fields["tokens_positive"] = spans
            self.regions.append(Region(box=box, phrase=phrase, **fields))
        elif spans:
            self._boxless += spans
        else:
            self._boxless_names.append(phrase)

    def image(
        self, key: str, location: ImageLocation, size: tuple[int, int] | None = None, **fields: Any
    ) -> LabelledImage:
        """The image with the collected regions; ``fields`` as of :class:`LabelledImage`."""
        return LabelledImage(
            key, location, size, regions=tuple(self.regions), boxless=tuple(self._boxless),
            boxless_names=tuple(self._boxless_names), lost=self.lost, **fields,
        )  # fmt: skip


def first_field(number: Any, image: Any) -> ImageLocation:
    """Location of an image whose file is the first field of its index data."""
    return ImageLocation(image[0])


@dataclass(frozen=True)
class Format:
    """Reader of a format.

    Attributes:
        reads: description of the annotation file, for error messages.
        fill: reads the files, writes the index, returns the header; raises InputError for files of
            another layout, or two images with the same id.
        labelled: converts an entry to a labelled image, or to None to exclude it; a pure function.
            Reasons for dropping regions are UNREADABLE, ``box_outside_image``, and the format's own.
        location: (id, image) of an entry -> location of the image.
        companions: role of further annotation files -> description.
        needed: roles that are required.
        options: name -> description.
    """

    kind: Kind
    reads: str
    fill: Callable[[SetFiles, IndexWriter], dict[str, Any]]
    labelled: Callable[[Entry, Header], LabelledImage | None]
    location: Callable[[Any, Any], ImageLocation] = first_field
    companions: Mapping[str, str] = field(default_factory=dict)
    needed: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)


def build_index(format_: Format, files: SetFiles, path: str | Path) -> None:
    """Read a set's files into an index at ``path``.

    Raises:
        InputError: a file is missing or not of the format, a companion or option is unknown or
            missing, or no annotation refers to a listed image.
    """
    for role in format_.needed:
        if role not in files.companions:
            raise InputError(f"set {files.name}: want `companions: {{{role}: FILE}}`, {format_.companions[role]}")
    given: tuple[tuple[str, Mapping[str, Any], Mapping[str, str]], ...] = (
        ("companion", files.companions, format_.companions),
        ("option", files.options, format_.options),
    )
    for term, names, known in given:
        for name in names:
            if name not in known:
                raise InputError(f"set {files.name}: unknown {term} {name!r}; this format knows {sorted(known)}")
    index = IndexWriter(path, files.annotations)
    try:
        index.finish(format_.fill(files, index))
        index.refuse_unknown_ids()
    except (IsADirectoryError, NotADirectoryError) as error:  # a folder instead of a file, or vice versa
        raise _wrong_kind(format_, files, str(error.filename or files.annotations)) from None
    except FileNotFoundError as error:
        raise InputError(f"{error.filename or files.annotations}: no such file") from None
    except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:  # a row with unexpected types
        cause = f"{type(error).__name__}: {error}".splitlines()[0][:80]
        raise InputError(f"{files.annotations}: want {format_.reads}; found a row of another shape ({cause})") from None
    finally:
        index.close()


def _wrong_kind(format_: Format, files: SetFiles, path: str) -> InputError:
    for role, given in files.companions.items():
        if path == given or path.startswith(f"{given.rstrip('/')}/"):
            return wrong_format(given, format_.companions[role])
    return wrong_format(files.annotations, format_.reads)


# --- functions that readers share


def want(row: Any, name: str, where: str) -> Any:
    """Value of a required field.

    Raises:
        InputError: ``row`` is not an object, or the field is missing; names ``where``.
    """
    if not isinstance(row, dict):
        raise InputError(f"{where}: want an object; found {str(row)[:40]!r}")
    if name not in row:
        raise InputError(f"{where}: want `{name}`; found {', '.join(f'`{k}`' for k in row) or 'nothing'}")
    return row[name]


def provenance_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Score, annotator and root of a region if given, as export-labels writes them."""
    score = {"score": float(row["score"])} if is_number(row.get("score")) else {}
    return score | {name: row[name] for name in ("annotator", "root") if isinstance(row.get(name), str)}


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite int or float of a plausible magnitude."""
    return type(value) in _NUMBERS and abs(value) < _TOO_LARGE


_NUMBERS = frozenset((int, float))
_TOO_LARGE = 1e15
"""Larger than any coordinate. Comparison with it also excludes nan."""


def _is_box(bbox: Any, lost: Counter[str]) -> bool:
    four = type(bbox) in (list, tuple) and len(bbox) == 4 and _NUMBERS.issuperset(map(type, bbox))
    if four and abs(sum(bbox)) < _TOO_LARGE:  # false if any of them is nan
        return True
    lost["bad_box"] += 1
    return False


def xywh_box(bbox: Any, size: tuple[int, int] | None, lost: Counter[str], xyxy: Any = None) -> Box | None:
    """COCO ``bbox`` (x, y, width, height) -> xyxy clipped to the image; None, and counted in
    ``lost``, if invalid.

    Args:
        bbox: from the annotation, of any type.
        size: (height, width) of the image, if known.
        lost: counts the reason.
        xyxy: exact corners, which export-labels adds where x + width is rounded; ignored if they
            differ from ``bbox``.
    """
    if not _is_box(bbox, lost):
        return None
    x, y, w, h = bbox
    box = (x, y, x + w, y + h)
    if type(xyxy) is list and len(xyxy) == 4 and all(is_number(v) and abs(v - b) < 1e-6 for v, b in zip(xyxy, box)):
        box = (xyxy[0], xyxy[1], xyxy[2], xyxy[3])
    return clipped(box, size, lost)


def xyxy_box(bbox: Any, size: tuple[int, int] | None, lost: Counter[str], *, beyond: int = 0) -> Box | None:
    """As :func:`xywh_box`, of corners. ``beyond``: added to x2 and y2; 1 if they are inclusive."""
    return clipped((bbox[0], bbox[1], bbox[2] + beyond, bbox[3] + beyond), size, lost) if _is_box(bbox, lost) else None


def clipped(box: Box, size: tuple[int, int] | None, lost: Counter[str]) -> Box | None:
    """Clip a box to an image of (height, width); None, and counted, if no area is left.

    A kept box that loses more than a tenth of its area is counted as ``CUT``.
    """
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
    """``tokens_positive`` as spans of a caption of ``length``; None, and counted, if invalid."""
    if not isinstance(value, list) or not value:
        lost["no_span"] += 1
        return None
    spans = []
    for pair in value:
        integers = isinstance(pair, list | tuple) and len(pair) == 2 and all(type(v) is int for v in pair)
        if not integers or not 0 <= pair[0] < pair[1] <= length:
            lost["span_outside_caption"] += 1
            return None
        spans.append((pair[0], pair[1]))
    return tuple(spans)


def stated_uncertain(value: Any, length: int, lost: Counter[str]) -> tuple[Span, ...]:
    """``uncertain`` spans as export-labels writes them; () if absent or invalid."""
    return (spans_of(value, length, lost) or ()) if value else ()


def uncertain_spans(item: LabelledImage, kept: Iterable[Region], outside: Iterable[Region] = ()) -> tuple[Span, ...]:
    """Spans that must not be trained as absent: stated ones, and those of dropped boxes that no
    kept region covers.

    Args:
        kept: the item's regions with a box in the image. Ignore regions cover nothing, as they are
            not trained on.
        outside: the item's regions whose box is outside the image.
    """
    dropped = dict.fromkeys([*item.boxless, *(span for region in outside for span in region.tokens_positive)])
    if not dropped:
        return item.uncertain
    spans = [span for region in kept if not region.ignore for span in region.tokens_positive]
    covered = {position for start, end in spans for position in range(start, end)}
    stated = set(item.uncertain)
    return item.uncertain + tuple(s for s in dropped if s not in stated and not covered.issuperset(range(*s)))


def presence_of(
    item: LabelledImage, outside: Iterable[Region] = ()
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """(verified_absent, not_exhaustive), corrected for classes of which a box was dropped.

    Such a class is not absent, and not all of its instances have boxes. ``outside``: the item's
    regions whose box is outside the image.
    """
    names = {*item.boxless_names, *(region.phrase for region in outside)}
    if item.caption is not None or not names:
        return item.verified_absent, item.not_exhaustive
    absent = item.verified_absent and tuple(name for name in item.verified_absent if name not in names)
    if absent is not None and item.not_exhaustive is None:  # a federated set that does not state not_exhaustive
        return absent, None
    return absent, tuple(sorted({*(item.not_exhaustive or ()), *names}))


def phrase_of(caption: str, spans: tuple[Span, ...]) -> str:
    """Text of the spans, joined by spaces."""
    return " ".join(caption[start:end] for start, end in spans)


def size_of(row: Mapping[str, Any], height: str = "height", width: str = "width") -> tuple[int, int] | None:
    """(height, width) stated in a row; None if missing or invalid."""
    sides: list[Any] = [row.get(height), row.get(width)]
    return (int(sides[0]), int(sides[1])) if all(is_number(v) and v >= 1 for v in sides) else None
