"""Interface of the readers of human-labelled formats, and functions that they share.

A reader works in two steps: ``fill`` reads the annotation files once and writes the needed parts of
each image to an index on disk; ``labelled`` converts one entry of the index to regions, shard by
shard, in any process. Everything dropped is counted by reason.
"""

from __future__ import annotations

import logging
import math
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

from pipeline.data.records import Box, Region, Span
from pipeline.errors import InputError, did_you_mean
from pipeline.io.paths import is_url, join
from pipeline.readers.index import Entry, IndexWriter
from pipeline.readers.sniff import beside, wrong_format

Kind = Literal["detection", "grounding"]
log = logging.getLogger("glip_self_train")


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
    image folder. base64: the content is base64. column: the content is this column's value in row
    ``offset`` of a Parquet table.
    """

    file: str
    folder: str | None = None
    offset: int = 0
    size: int | None = None
    base64: bool = False
    absolute: bool = False
    column: str | None = None


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

LISTED_TWICE = "listed_twice"
"""Reason under which further rows of one image file are counted, whose labels are merged."""

UNREADABLE = frozenset({
    "bad_box", "box_without_area", "no_span", "span_outside_caption", "unknown_category", "bad_image_id", "bad_flag",
    "bad_row", "label_contradicts",
})  # fmt: skip
"""Reasons for dropping a region that indicate an unexpected format; the others occur in any set."""

CUT = "cut_at_edge"
"""Counted with the losses: kept boxes with over a tenth of their area outside the image."""

Header = Mapping[str, Any]
"""Data of the set. ``label_space``: class names in order; ``frequency``: LVIS'."""


class Losses(Counter[str]):
    """Number of dropped regions by reason. examples: the first dropped label of each reason."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples: dict[str, str] = {}


def lose(lost: Counter[str], reason: str, found: Any = None) -> None:
    """Count a dropped region. ``found``: the label, for messages."""
    lost[reason] += 1
    if found is not None and isinstance(lost, Losses):
        lost.examples.setdefault(reason, str(found)[:160])


class LabelCollector:
    """Collects the regions of one image. lost: number of dropped regions by reason."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.lost = Losses()
        self._boxless, self._boxless_names = list[Span](), list[str]()
        self._seen = set[Any]()

    def add(
        self, box: Box | None, phrase: str, spans: tuple[Span, ...] = (), *, ignore: bool | str = False, **fields: Any
    ) -> None:
        """Add a region, or record its spans or class name as boxless if its box was dropped.

        A region that is there already is counted as ``same_box_again``. ``ignore``: as
        :func:`flag_of` returns it.
        """
        if isinstance(ignore, str):
            if box is not None:
                lose(self.lost, "bad_flag", ignore)
            box = None
        if box is not None:
            if ignore:  # a default is not validated
                fields["ignore"] = True
            if spans:
                fields["tokens_positive"] = spans
            seen = (box, phrase, *fields.items())
            if seen in self._seen:
                self.lost["same_box_again"] += 1
                return
            self._seen.add(seen)
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


MAX_BAD_ROWS = 100
"""The set is refused if its first rows, this many, are all invalid."""
ROW_ERRORS = (InputError, AttributeError, TypeError, KeyError, IndexError, ValueError)
"""Errors of a row of unexpected content."""


class BadRows:
    """Counts rows of an annotation file that cannot be read: each costs itself.

    Attributes:
        good: number of rows that were read.
        notes: messages of the first bad ones.
    """

    def __init__(self) -> None:
        self.good = 0
        self.notes: list[str] = []
        self._counts = {"samples": 0, "regions": 0}
        self._first: Exception | None = None

    def add(self, error: Exception, where: str = "", unit: str = "samples") -> None:
        """Count a row. Raises the first row's error if no row of the file is good so far, and there
        are many.
        """
        self._first = self._first or error
        self._counts[unit] += 1
        if len(self.notes) < 10:
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            self.notes.append(f"{where}{': ' if where else ''}{kind}{error}".splitlines()[0][:300])
        if not self.good and sum(self._counts.values()) >= MAX_BAD_ROWS:
            raise self._first

    def header(self) -> dict[str, Any]:
        """Fields of the set's header; none if no row is bad. Raises the first error if no row is good."""
        if self._first is None:
            return {}
        if not self.good:
            raise self._first
        fields: dict[str, Any] = {"notes": self.notes}
        if self._counts["samples"]:
            fields["lost_samples"] = {"bad_labels": self._counts["samples"]}
        if self._counts["regions"]:
            fields["lost"] = {"bad_row": self._counts["regions"]}
        return fields


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
    index = IndexWriter(path, files.annotations, partial(_identity, files.image_folders))
    try:
        index.finish(format_.fill(files, index))
        index.refuse_unknown_ids()
    except (IsADirectoryError, NotADirectoryError) as error:  # a folder instead of a file, or vice versa
        raise _wrong_kind(format_, files, str(error.filename or files.annotations)) from None
    except FileNotFoundError as error:
        missing = str(error.filename or files.annotations)
        raise InputError(f"{missing}: no such file{beside(missing)}") from None
    except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:  # a row with unexpected types
        cause = f"{type(error).__name__}: {error}".splitlines()[0][:80]
        raise InputError(f"{files.annotations}: want {format_.reads}; found a row of another shape ({cause})") from None
    finally:
        index.close()


def image_paths(folders: Iterable[str], file: str) -> list[str]:
    """Paths that an image may have, in search order: its name may be as on Windows, or
    percent-encoded; and it may be an absolute path.
    """
    slashed = file.replace("\\", "/")
    names = dict.fromkeys((file, slashed, unquote(file), unquote(slashed)))
    return [join(folder, name) for folder in folders for name in names] + [file] * file.startswith("/")


def _identity(folders: Iterable[str], file: str) -> str:
    """A text that is the same for all names of one local file; for others the name's plain form."""
    for path in image_paths((folder for folder in folders if not is_url(folder)), file):
        with suppress(OSError, ValueError):
            status = os.stat(path)
            return f"{status.st_dev}:{status.st_ino}"
    return posixpath.normpath(unquote(file.replace("\\", "/")))


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


_FLAGS = {
    **dict.fromkeys(("0", "0.0", "false", "no", "n", "f", "off", "", "none", "null", "nan", "unspecified"), False),
    **dict.fromkeys(("1", "1.0", "true", "yes", "y", "t", "on"), True),
}


def flag_of(row: Mapping[str, Any], *names: str) -> bool | str:
    """Whether any of the flags is set, as JSON's values or as words; a text about the first that is
    neither.
    """
    found = False
    for name in names:
        value = row.get(name)
        if value is None or value is False:
            continue
        if (flag := _FLAGS.get(str(value).strip().lower())) is None:
            return f"`{name}` {value!r}; want 0 or 1"
        found |= flag
    return found


def ignore_flag(row: Mapping[str, Any]) -> bool | str:
    """Whether an annotation, or its ``attributes`` as labelling tools write them, says that the box
    is to be ignored; as :func:`flag_of`.
    """
    attributes = row.get("attributes")
    found = flag_of(row, *_IGNORE)
    return found or (flag_of(attributes, *_IGNORE) if isinstance(attributes, dict) else False)


_IGNORE = ("iscrowd", "ignore", "difficult", "is_crowd", "isCrowd", "isIgnore", "is_ignore")


def option_flag(files: SetFiles, name: str) -> bool:
    """An option that is true or false.

    Raises:
        InputError: it is neither.
    """
    flag = flag_of(files.options, name)
    if isinstance(flag, str):
        raise InputError(f"set {files.name}: options.{name}: found {files.options[name]!r}; want true or false")
    return flag


def class_name(value: Any) -> str:
    """A class's name without white space and invisible characters around it; "" if it is no text."""
    return " ".join(value.split()).strip(_INVISIBLE) if isinstance(value, str) else ""


_INVISIBLE = " \0\u200b\u200e\u200f\u2060\ufeff"


def known_names(names: Mapping[Any, str]) -> str:
    """The first ids of classes with their names, for messages."""
    return f"known: {', '.join(f'{number!r} ({name})' for number, name in [*names.items()][:6])}" + (
        ", ..." if len(names) > 6 else ""
    )


def warn_of_unboxed(path: str, space: Iterable[str], boxed: Iterable[str]) -> None:
    """Warn of classes without a box in the whole set, as they are taken as looked for and absent."""
    names, there = list(space), set(boxed)
    without = [name for name in names if name not in there]
    if without and there:
        log.warning(
            "%s: %d of %d classes have no box (%s): each is taken as looked for and absent in all images",
            path, len(without), len(names), ", ".join(without[:5]) + (", ..." if len(without) > 5 else ""),
        )  # fmt: skip


def is_near(one: float, other: float) -> bool:
    """Whether two sizes differ by a hundredth at most."""
    return abs(one - other) <= 0.01 * max(abs(one), abs(other))


def turned(bbox: Any, degrees: Any) -> Any:
    """The box (x, y, width, height) around ``bbox`` turned about its centre; ``bbox`` itself if it
    or ``degrees`` is no number, or nothing is turned.
    """
    try:
        angle, (x, y, w, h) = math.radians(float(degrees)), map(float, bbox)
    except (TypeError, ValueError):
        return bbox
    if not math.isfinite(angle) or not math.fmod(angle, math.pi):
        return bbox
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    wide, high = w * cos + h * sin, w * sin + h * cos
    return [round(v, 6) for v in (x + (w - wide) / 2, y + (h - high) / 2, wide, high)]


def _is_box(bbox: Any, lost: Counter[str]) -> bool:
    four = type(bbox) in (list, tuple) and len(bbox) == 4 and _NUMBERS.issuperset(map(type, bbox))
    if four and abs(sum(bbox)) < _TOO_LARGE:  # false if any of them is nan
        return True
    rotated = " (of rotated boxes want those around them)" if type(bbox) in (list, tuple) and len(bbox) > 4 else ""
    lose(lost, "bad_box", f"{bbox!r}; want four numbers{rotated}")
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
        lose(lost, "box_without_area", f"the corners {list(box)}")
        return None
    if size is not None and (x1 < 0 or y1 < 0 or x2 > size[1] or y2 > size[0]):
        x1, y1, x2, y2 = max(0.0, x1), max(0.0, y1), min(float(size[1]), x2), min(float(size[0]), y2)
        if not (x2 > x1 and y2 > y1):
            lose(lost, "box_outside_image", _outside(box, size))
            return None
        if (x2 - x1) * (y2 - y1) < 0.9 * (box[2] - box[0]) * (box[3] - box[1]):
            lose(lost, CUT, _outside(box, size))
    return float(x1), float(y1), float(x2), float(y2)


def _outside(box: Box, size: tuple[int, int]) -> str:
    limits = "0 to 1, shares of the image" if size == (1, 1) else f"an image of {size[1]} x {size[0]}"
    return f"the corners {list(box)}; want them in {limits}"


def spans_of(value: Any, length: int, lost: Counter[str]) -> tuple[Span, ...] | None:
    """``tokens_positive`` as spans of a caption of ``length``; None, and counted, if invalid."""
    if not isinstance(value, list) or not value:
        lose(lost, "no_span", f"`tokens_positive` {value!r}")
        return None
    spans = []
    for pair in value:
        integers = isinstance(pair, list | tuple) and len(pair) == 2 and all(type(v) is int for v in pair)
        if not integers or not 0 <= pair[0] < pair[1] <= length:
            lose(lost, "span_outside_caption", f"`tokens_positive` {value} of {length} characters")
            return None
        spans.append((pair[0], pair[1]))
    return tuple(spans)


def stated_uncertain(value: Any, length: int, lost: Counter[str]) -> tuple[Span, ...]:
    """``uncertain`` spans as export-labels writes them; () if absent or invalid."""
    return (spans_of(value, length, lost) or ()) if value else ()


def merged(one: LabelledImage, other: LabelledImage) -> LabelledImage:
    """One image of the labels of two rows of the same file."""
    regions = tuple(dict.fromkeys((*one.regions, *other.regions)))
    lost = Losses(one.lost)
    lost.update(other.lost)
    lost["same_box_again"] += len(one.regions) + len(other.regions) - len(regions)
    present = {region.phrase for region in regions}
    absent, incomplete = one.verified_absent, one.not_exhaustive
    if other.verified_absent is not None:
        absent = tuple(sorted({*(absent or ()), *other.verified_absent} - present))
    if other.not_exhaustive is not None:
        incomplete = tuple(sorted({*(incomplete or ()), *other.not_exhaustive}))
    return one._replace(
        size=one.size or other.size, regions=regions, boxless_names=(*one.boxless_names, *other.boxless_names),
        verified_absent=absent, not_exhaustive=incomplete, lost=lost,
    )  # fmt: skip


@dataclass(frozen=True)
class ClassRenaming:
    """Renaming of a detection set's classes; several may get one name.

    names: name -> new name. sources: new name -> all names that become it.
    """

    names: Mapping[str, str]
    sources: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, names: Mapping[str, str], space: Iterable[str], where: str) -> ClassRenaming:
        """The renaming of a manifest, for a set of classes ``space``.

        Raises:
            InputError: a name is no class of the set, or a new name is empty.
        """
        space = set(space)
        for name, new in names.items():
            if name not in space:
                raise InputError(f"{where}: names: found {name!r}{did_you_mean(name, sorted(space))}; want a class")
            if not new.strip():
                raise InputError(f"{where}: names: found no new name of {name!r}; want one")
        sources = {new: frozenset(n for n in space if names.get(n, n) == new) for new in names.values()}
        return cls(names, sources)

    def header(self, header: Header) -> dict[str, Any]:
        """The set's data with the new names; of classes that are merged, the highest frequency."""
        space = list(dict.fromkeys(self.names.get(name, name) for name in header["label_space"]))
        frequency: dict[str, str] = {}
        for name, letter in (header.get("frequency") or {}).items():
            new = self.names.get(name, name)
            frequency[new] = min(letter, frequency.get(new, letter), key="fcr".index)
        return {**header, "label_space": space, "frequency": frequency or None}

    def apply(self, item: LabelledImage) -> LabelledImage:
        """An image with the new names. A class is verified as absent if all that it is made of are."""

        def new_names(names: Iterable[str]) -> set[str]:
            return {self.names.get(name, name) for name in names}

        renamed = [
            region.model_copy(update={"phrase": self.names[region.phrase]}) if region.phrase in self.names else region
            for region in item.regions
        ]
        regions, lost = tuple(dict.fromkeys(renamed)), Losses(item.lost)
        if len(regions) < len(renamed):
            lost["same_box_again"] += len(renamed) - len(regions)
        lost.examples = getattr(item.lost, "examples", {})
        boxless = new_names(item.boxless_names)
        absent, incomplete = item.verified_absent, item.not_exhaustive
        if absent is not None:
            present = {region.phrase for region in regions} | boxless
            whole = {name for name in new_names(absent) if self.sources.get(name, frozenset()) <= {*absent}}
            absent = tuple(sorted(whole - present))
        if incomplete is not None:
            incomplete = tuple(sorted(new_names(incomplete)))
        return item._replace(
            regions=regions, boxless_names=tuple(sorted(boxless)), verified_absent=absent, not_exhaustive=incomplete,
            lost=lost,
        )  # fmt: skip


def unclear_names(present: Iterable[str], above: Mapping[str, Iterable[str]]) -> set[str]:
    """Names that must not be taught as absent beside those ``present``: the classes above them, and
    those below, as any of them may be meant. ``above``: class -> its superclasses.
    """
    present = set(present)
    upper = {name for lower in present for name in above.get(lower, ())}
    return (upper | {name for name, uppers in above.items() if present.intersection(uppers)}) - present


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
