"""Pascal VOC's kind of XML: one file an image, with boxes in corners."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

from pipeline.errors import InputError
from pipeline.io.files import read_bytes
from pipeline.readers.sniff import refuse

WANTED_NAMES = "a list of names, one a line"
_NAME = re.compile(r'[^\s"{}<>,\0]+')
_MARKS = (["-1"], ["0"], ["1"])


def read_xml(path: str, wanted: str) -> ET.Element:
    """The root <annotation> of a file.

    Raises:
        InputError: missing, not XML, or another root. Entities are not expanded, so none can grow.
    """
    data = read_bytes(path)
    if data is None:
        raise InputError(f"{path}: no such file")
    if b"<!ENTITY" in data:
        raise InputError(f"{path}: want {wanted}; found XML that defines entities")
    try:
        root = ET.fromstring(data)
    except (ET.ParseError, ValueError, LookupError) as error:
        if b"<annotation" in data[:1000]:
            raise InputError(f"{path}: want {wanted}; found one that is cut off or broken ({error})") from None
        raise refuse(path, wanted) from None
    if root.tag != "annotation":
        raise refuse(path, wanted)
    return root


def listed_names(path: str) -> list[str]:
    """Names of a split's images, one a line; those that a second column marks with -1 are left out (VOC's lists of a class).

    Raises:
        InputError: missing, or another kind of file.
    """
    names = []
    for line in text_lines(path, WANTED_NAMES):
        name, *mark = line.split()
        if not _NAME.fullmatch(name) or (mark and mark not in _MARKS):
            raise refuse(path, WANTED_NAMES)
        if mark != ["-1"]:
            names.append(name)
    return names


def text_lines(path: str, wanted: str) -> list[str]:
    """Lines of a small text file, without the empty ones.

    Raises:
        InputError: missing, not UTF-8, or a pointer in the file's place.
    """
    data = read_bytes(path)
    if data is None:
        raise InputError(f"{path}: no such file")
    if data.startswith(b"version https://git-lfs"):
        raise refuse(path, wanted)
    try:
        return [line for line in data.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise refuse(path, wanted) from None


def stated_size(root: ET.Element) -> tuple[int, int] | None:
    """(height, width) of <size>, if it is there and not zero."""
    found = [root.findtext(f"size/{name}", "") for name in ("height", "width")]
    if all(text.strip().isdigit() and int(text) for text in found):
        return int(found[0]), int(found[1])
    return None


def corners(box: ET.Element, first_pixel: int, *, either: bool = False) -> list[Any]:
    """[x1, y1, x2, y2) of a <bndbox> whose corners are both inside and are counted from ``first_pixel``; None for no number.

    either: take corners in either order; some of ImageNet's are exchanged.
    """
    values: list[Any] = [None] * 4
    for at, pair in enumerate((("xmin", "xmax"), ("ymin", "ymax"))):
        try:
            low, high = (float(box.findtext(name, "")) for name in pair)
        except ValueError:
            continue
        if either and low > high:
            low, high = high, low
        values[at], values[at + 2] = low - first_pixel, high - first_pixel + 1
    return values
