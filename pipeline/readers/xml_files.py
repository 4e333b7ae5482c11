"""Functions for Pascal VOC's XML files and image lists."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

from pipeline.errors import InputError
from pipeline.io.files import file_size, listing_below, read_bytes
from pipeline.io.paths import is_hidden, join
from pipeline.readers.fields import class_name
from pipeline.readers.sniff import beside, wrong_format

WANTED_CLASSES = "a list of class names, one a line"
WANTED_NAMES = "a list of names, one a line"
_NAME = re.compile(r'[^\t"{}<>,\0]+|[^\s"{}<>,\0]+\t-?[01]')
_MARKS = ("-1", "0", "1")


def read_xml(path: str, wanted: str, tag: str = "annotation") -> ET.Element:
    """Root of a file, whose tag is ``tag``.

    Raises:
        InputError: missing, not XML, another root, or entity definitions (which could expand
            without limit).
    """
    data = _read(path)
    if (encoding := _encoding(data)) is not None:
        try:
            data = _DECLARATION.sub("", data.decode(encoding), count=1).encode()
        except (UnicodeError, LookupError) as error:
            raise InputError(f"{path}: want {wanted}; found XML whose encoding {encoding} fails ({error})") from None
    if b"<!ENTITY" in data:
        raise InputError(f"{path}: want {wanted}; found XML that defines entities")
    try:
        root = ET.fromstring(data)
    except (ET.ParseError, ValueError, LookupError) as error:
        if f"<{tag}".encode() in data[:1000]:
            try:
                data.decode()
                reason = f"one that is cut off or broken ({error})"
            except UnicodeDecodeError:
                reason = "bytes that are not UTF-8, and no other encoding declared"
            raise InputError(f"{path}: want {wanted}; found {reason}") from None
        raise wrong_format(path, wanted) from None
    if root.tag != tag:
        raise wrong_format(path, wanted)
    return root


_DECLARATION = re.compile(r"^\ufeff?\s*<\?xml[^>]*\?>")
_ENCODING = re.compile(rb"""^\s*<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)["']""")


def _encoding(data: bytes) -> str | None:
    """Encoding that a file declares or its mark states; None if it is UTF-8, which the parser reads."""
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig")):
        if data.startswith(mark):
            return encoding
    declared = _ENCODING.match(data[:300])
    name = declared[1].decode().lower() if declared else "utf-8"
    if name in ("gb2312", "gbk"):
        return "gb18030"  # which has their characters and those that files have beyond them
    return None if name in ("utf-8", "utf8", "us-ascii", "ascii") else name


def _read(path: str) -> bytes:
    data = read_bytes(path)
    if data is None:
        raise InputError(f"{path}: no such file{beside(path)}")
    return data


def xml_names(folder: str, ids: str | None, wanted: str) -> list[str]:
    """Names of XML files without suffix: those listed in the file ``ids``, or all in the folder.

    Raises:
        InputError: no file; ``ids`` is missing or has another format.
    """
    if ids is None:
        names = [name.removesuffix(".xml") for name in listing_below(folder, ".xml") if not is_hidden(name)]
    else:
        names = listed_names(ids, lambda name: file_size(join(folder, f"{name}.xml")) is not None)
    if not names:
        raise wrong_format(folder, wanted)
    return names


def listed_names(path: str, is_there: Callable[[str], bool]) -> list[str]:
    """Names of a split's images, one a line, without those marked -1 in a second column (VOC's
    lists of a class).

    Names may have spaces. A last column of -1, 0 and 1 in all lines is one of marks, unless the first
    line as a whole is a name (``is_there``).
    """
    lines = [line.strip() for line in text_lines(path, WANTED_NAMES)]
    if not all(map(_NAME.fullmatch, lines)):
        raise wrong_format(path, WANTED_NAMES)
    marked = [line.rsplit(maxsplit=1) for line in lines]
    if all(len(parts) == 2 and parts[1] in _MARKS for parts in marked) and not is_there(lines[0]):
        lines = [name for name, mark in marked if mark != "-1"]
    return [name.removesuffix(".xml") for name in lines]


def text_lines(path: str, wanted: str) -> list[str]:
    """Non-empty lines of a text file."""
    return [line for line in read_text(path, wanted).splitlines() if line.strip()]


def class_list(path: str) -> dict[int, str]:
    """Names of classes by their numbers, from a list of one a line."""
    lines = [class_name(line) for line in text_lines(path, WANTED_CLASSES)]
    if any(set(line) & set('"{}<>\0\t') for line in lines):
        raise wrong_format(path, WANTED_CLASSES)
    return dict(enumerate(lines))


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
