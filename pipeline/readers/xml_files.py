"""Functions for Pascal VOC's XML files and image lists."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

from pipeline.errors import InputError
from pipeline.io.files import listing_below, read_bytes
from pipeline.readers.sniff import wrong_format

WANTED_NAMES = "a list of names, one a line"
_NAME = re.compile(r'[^\s"{}<>,\0]+')
_MARKS = (["-1"], ["0"], ["1"])


def read_xml(path: str, wanted: str) -> ET.Element:
    """Root <annotation> of a file.

    Raises:
        InputError: missing, not XML, another root, or entity definitions (which could expand
            without limit).
    """
    data = _read(path)
    if b"<!ENTITY" in data:
        raise InputError(f"{path}: want {wanted}; found XML that defines entities")
    try:
        root = ET.fromstring(data)
    except (ET.ParseError, ValueError, LookupError) as error:
        if b"<annotation" in data[:1000]:
            raise InputError(f"{path}: want {wanted}; found one that is cut off or broken ({error})") from None
        raise wrong_format(path, wanted) from None
    if root.tag != "annotation":
        raise wrong_format(path, wanted)
    return root


def _read(path: str) -> bytes:
    data = read_bytes(path)
    if data is None:
        raise InputError(f"{path}: no such file")
    return data


def xml_names(folder: str, ids: str | None, wanted: str) -> list[str]:
    """Names of XML files without suffix: those listed in the file ``ids``, or all in the folder.

    Raises:
        InputError: no file; ``ids`` is missing or has another format.
    """
    names = [name.removesuffix(".xml") for name in listing_below(folder, ".xml")] if ids is None else listed_names(ids)
    if not names:
        raise wrong_format(folder, wanted)
    return names


def listed_names(path: str) -> list[str]:
    """Names of a split's images, one a line, without those marked -1 in a second column (VOC's
    lists of a class).
    """
    names = []
    for line in text_lines(path, WANTED_NAMES):
        name, *mark = line.split()
        if not _NAME.fullmatch(name) or (mark and mark not in _MARKS):
            raise wrong_format(path, WANTED_NAMES)
        if mark != ["-1"]:
            names.append(name)
    return names


def text_lines(path: str, wanted: str) -> list[str]:
    """Non-empty lines of a text file."""
    return [line for line in read_text(path, wanted).splitlines() if line.strip()]


def read_text(path: str, wanted: str) -> str:
    """Content of a small text file.

    Raises:
        InputError: missing, not UTF-8, or a Git LFS pointer.
    """
    data = _read(path)
    if data.startswith(b"version https://git-lfs"):
        raise wrong_format(path, wanted)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise wrong_format(path, wanted) from None


def stated_size(root: ET.Element) -> tuple[int, int] | None:
    """(height, width) of <size>; None if missing or zero."""
    sides = [root.findtext(f"size/{name}", "") for name in ("height", "width")]
    if all(text.strip().isdigit() and int(text) for text in sides):
        return int(sides[0]), int(sides[1])
    return None


def corners(box: ET.Element, first_pixel: int, *, either: bool = False) -> list[Any]:
    """[x1, y1, x2, y2] of a <bndbox> with x2 and y2 exclusive; None for what is not a number.

    Args:
        box: its coordinates are inclusive and start at ``first_pixel``.
        either: accept corners in either order; some of ImageNet's are exchanged.
    """
    values: list[Any] = [None] * 4
    for axis, pair in enumerate((("xmin", "xmax"), ("ymin", "ymax"))):
        try:
            low, high = (float(box.findtext(name, "")) for name in pair)
        except ValueError:
            continue
        if either and low > high:
            low, high = high, low
        values[axis], values[axis + 2] = low - first_pixel, high - first_pixel + 1
    return values
