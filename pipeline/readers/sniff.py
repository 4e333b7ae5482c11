"""Description of a file's apparent format, for error messages about wrong formats."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.io.files import open_file
from pipeline.io.paths import is_url

_MAGIC = (
    (b"PAR1", "a Parquet file"),
    (b"\x1f\x8b", "a gzip archive (unpack it first)"),
    (b"PK\x03\x04", "a zip archive (unpack it first)"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"SQLite format 3", "a SQLite database"),
    (b"<!DOCTYPE html", "a web page"),
    (b"<html", "a web page"),
    (b"version https://git-lfs", "a Git LFS pointer (fetch the file itself)"),
)


def wrong_format(path: str | Path, wanted: str) -> InputError:
    """Error that states the wanted format and the apparent format of a file."""
    return InputError(f"{path}: want {wanted}; found {describe_file(path)}")


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
            return "a binary file"
        text = head[: error.start].decode("utf-8-sig")
    return _describe_text(text)


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
