"""Description of a file's apparent format, for error messages about wrong formats."""

from __future__ import annotations

import html
import os
import re
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_plus

from pipeline.errors import InputError
from pipeline.io.files import open_file
from pipeline.io.paths import is_url

_MAGIC = (
    (b"PAR1", "a Parquet file (format hf_parquet reads Hugging Face's)"),
    (b"\x1f\x8b", "a gzip archive (unpack it first)"),
    (b"PK\x03\x04", "a zip archive (unpack it first)"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xfe", "text in UTF-16 (save it as UTF-8)"),
    (b"\xfe\xff", "text in UTF-16 (save it as UTF-8)"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive (unpack it first)"),
    (b"BZh", "a bzip2 archive (unpack it first)"),
    (b"\xfd7zXZ", "an xz archive (unpack it first)"),
    (b"7z\xbc\xaf", "a 7z archive (unpack it first)"),
    (b"Rar!", "a RAR archive (unpack it first)"),
    (b"SQLite format 3", "a SQLite database"),
    (b"<!DOCTYPE html", "a web page"),
    (b"<html", "a web page"),
    (b"version https://git-lfs", "a Git LFS pointer (fetch the file itself)"),
)

IN_PLACE = "; there is"
"""Beginning of a note that names a file in another's place."""


def wrong_format(path: str | Path, wanted: str) -> InputError:
    """Error that states the wanted format and the apparent format of a file."""
    return InputError(f"{path}: want {wanted}; found {describe_file(path)}")


def bad_row(path: str | Path, wanted: str, where: str, found: str, *, first: bool) -> InputError:
    """Error of a row: of the first one, the file is probably of another format."""
    return wrong_format(path, wanted) if first else InputError(f"{path}: {where}want {wanted}; found {found}")


def describe_row(row: Any) -> str:
    """Names of a row's fields, or its beginning if it is no object."""
    return f"one with {', '.join(f'`{name}`' for name in row)}" if isinstance(row, dict) else str(row)[:40]


def describe_file(path: str | Path) -> str:
    """Apparent format of a file, from its first bytes."""
    if not is_url(path) and Path(path).is_dir():
        names = sorted(p.name for p in Path(path).iterdir())
        return f"a folder of {len(names)} files" + (f" such as {names[0]}" if names else "")
    try:
        with open_file(path) as file:
            head = file.read(2048)
    except (FileNotFoundError, InputError):
        return "no such file"
    if not head.strip():
        return "an empty file"
    for magic, description in _MAGIC:
        if head.lstrip().lower().startswith(magic.lower()):
            return description
    if head[257:262] == b"ustar":
        return "a tar archive"
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            near = head[max(0, error.start - 20) : error.start + 5]
            return f"no UTF-8 at {near!r}" if b"\0" not in head and _is_text(head) else "a binary file"
        text = head[: error.start].decode("utf-8-sig")
    return _describe_text(text)


def _is_text(head: bytes) -> bool:
    return sum(byte >= 32 or byte in b"\t\r\n" for byte in head[:200]) > 0.99 * len(head[:200]) and (
        sum(byte < 128 for byte in head[:200]) > 0.7 * len(head[:200])
    )


def beside(path: str) -> str:
    """A note for messages about a missing file: the file that is there in its place, with another
    ending, case, encoding or folder; or what its folder has.
    """
    if is_url(path) or "\0" in path:
        return ""
    if os.path.islink(path):
        return f" (a link to {os.readlink(path)})"
    folder, missing = Path(path).parent, Path(path).name
    while not folder.is_dir() and folder != folder.parent:
        folder, missing = folder.parent, folder.name
    try:
        names = _listing(str(folder), folder.stat().st_mtime_ns)
    except OSError:
        return ""
    name = Path(path).name
    decoded = (unquote(name), unquote_plus(name), html.unescape(name))
    for candidate in dict.fromkeys((missing, name, name.rsplit("\\", 1)[-1], *decoded)):
        folded = _folded(candidate)
        for shorter in (folded, folded.rsplit(".", 1)[0], folded.rsplit(".", 2)[0]):
            if (found := names.get(shorter)) is not None:
                return f"{IN_PLACE} {folder / found}"
    below = (folder / entry / name for entry in sorted(set(names.values()))[:100])
    if (elsewhere := next((path for path in below if path.is_file()), None)) is not None:
        return f"{IN_PLACE} {elsewhere}"
    return f"; {folder} has {_first_below(folder, min(names.values()))}, ..." if names else f"; {folder} is empty"


def _first_below(folder: Path, name: str) -> str:
    """``name``, or if it is a folder the first file in it."""
    inner = sorted(p.name for p in (folder / name).iterdir()) if (folder / name).is_dir() else []
    return f"{name}/{inner[0]}" if inner else name


@lru_cache(maxsize=8)
def _listing(folder: str, changed: int) -> dict[str, str]:
    """Names in a folder by their folded names, and by those without ending."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    folded = {_folded(name): name for name in reversed(names)}
    for name in names:
        folded.setdefault(_folded(name).rsplit(".", 1)[0], name)
    return folded


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()


def _describe_text(text: str) -> str:
    line = text.strip().splitlines()[0].strip()
    if line.startswith("<"):
        root = re.search(r"<([A-Za-z][\w:-]*)", re.sub(r"<\?.*?\?>|<!--.*?-->", "", text, flags=re.S))
        return f"XML with root <{root.group(1)}>" if root else "XML"
    if text.lstrip().startswith("{"):
        keys = re.findall(r'"((?:[^"\\]|\\.)*)"\s*:', text)[:4]
        return f"a JSON object with {', '.join(f'`{k}`' for k in keys)}" if keys else "something like a JSON object"
    if text.lstrip().startswith("["):
        return f"a JSON list that begins {text.strip()[:40]!r}"
    if "\t" in line:
        return f"lines of {line.count(chr(9)) + 1} columns between tabs"
    if "," in line:
        return f"CSV with the columns {line[:80]}"
    return f"text that begins {line[:40]!r}"
