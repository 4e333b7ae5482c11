"""Interface of the readers of human-labelled formats.

A reader works in two steps: ``fill`` reads the annotation files once and writes the needed parts of
each image to an index on disk; ``labelled`` converts one entry of the index to regions, shard by
shard, in any process. Everything dropped is counted by reason.
"""

from __future__ import annotations

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

from pipeline.data.keys import image_key
from pipeline.data.records import Box, Region, Span
from pipeline.errors import InputError
from pipeline.io.paths import is_url, join
from pipeline.readers.index import Entry, IndexWriter
from pipeline.readers.sniff import beside, wrong_format

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


def known_names(names: Mapping[Any, str]) -> str:
    """The first ids of classes with their names, for messages."""
    return f"known: {', '.join(f'{number!r} ({name})' for number, name in [*names.items()][:6])}" + (
        ", ..." if len(names) > 6 else ""
    )


def first_field(number: Any, image: Any) -> ImageLocation:
    """Location of an image whose file is the first field of its index data."""
    return ImageLocation(image[0])


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

    def lose(self, reason: str, found: Any) -> None:
        """Count a dropped region, as :func:`lose`."""
        lose(self.lost, reason, found)

    def unknown(self, found: str, names: Mapping[Any, str] | None) -> None:
        """Count a region of a class that is not among ``names``."""
        lose(self.lost, "unknown_category", found if names is None else f"{found}; {known_names(names)}")

    def image(
        self,
        entry: Entry,
        size: tuple[int, int] | None = None,
        *,
        key: str | None = None,
        location: Callable[[Any, Any], ImageLocation] = first_field,
        **fields: Any,
    ) -> LabelledImage:
        """The entry's image with the collected regions; ``fields`` as of :class:`LabelledImage`.

        Args:
            key: by default made of the entry's id.
            location: as of :class:`Format`.
        """
        return LabelledImage(
            key or image_key(entry.id), location(entry.id, entry.image), size, regions=tuple(self.regions),
            boxless=tuple(self._boxless), boxless_names=tuple(self._boxless_names), lost=self.lost, **fields,
        )  # fmt: skip


@dataclass(frozen=True)
class Format:
    """Reader of a format.

    Attributes:
        reads: description of the annotation file, for error messages.
        fill: reads the files, writes the index, returns the header; raises InputError for files of
            another layout, or two images with the same id. Rows that cannot be read are counted by
            ``index.bad``.
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
    index = IndexWriter(path, files.annotations, partial(_identity, files.image_folders))
    try:
        header = format_.fill(files, index)
        index.finish(header | index.bad.header())
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
