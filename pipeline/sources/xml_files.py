"""Pascal VOC's kind of XML: one file an image, with boxes in corners."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

from pipeline.errors import InputError
from pipeline.io.files import read_bytes
from pipeline.sources.looks import refuse


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
    except (ET.ParseError, ValueError, LookupError):
        raise refuse(path, wanted) from None
    if root.tag != "annotation":
        raise refuse(path, wanted)
    return root


def stated_size(root: ET.Element) -> tuple[int, int] | None:
    """(height, width) of <size>, if it is there and not zero."""
    found = [root.findtext(f"size/{name}", "") for name in ("height", "width")]
    if all(text.strip().isdigit() and int(text) for text in found):
        return int(found[0]), int(found[1])
    return None


def corners(box: ET.Element, first_pixel: int) -> list[Any]:
    """[x1, y1, x2, y2) of a <bndbox> whose corners are both inside and are counted from ``first_pixel``; None for no number."""
    values: list[Any] = []
    for name, shift in (("xmin", 0), ("ymin", 0), ("xmax", 1), ("ymax", 1)):
        try:
            values.append(float(box.findtext(name, "")) - first_pixel + shift)
        except ValueError:
            values.append(None)
    return values
