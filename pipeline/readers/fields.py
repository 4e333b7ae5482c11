"""Fields of annotation rows and of a set's options: flags, class names, provenance."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.errors import InputError
from pipeline.readers.base import SetFiles
from pipeline.readers.boxes import is_number

log = logging.getLogger("glip_self_train")


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


def option_choice(files: SetFiles, name: str, *choices: str) -> str:
    """An option that is one of some words, the first by default.

    Raises:
        InputError: it is another.
    """
    value = files.options.get(name, choices[0])
    if value not in choices:
        raise InputError(f"set {files.name}: option {name}: found {value!r}; want {' or '.join(choices)}")
    return str(value)


def class_name(value: Any) -> str:
    """A class's name without white space and invisible characters around it; "" if it is no text."""
    return " ".join(value.split()).strip(_INVISIBLE) if isinstance(value, str) else ""


def folded(name: str) -> str:
    """A name for comparisons: any case, underscores as spaces."""
    return " ".join(name.replace("_", " ").casefold().split())


def number_of(text: str) -> float | None:
    """The finite number that a text states, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


_INVISIBLE = " \0\u200b\u200e\u200f\u2060\ufeff"


def warn_of_unboxed(path: str, space: Iterable[str], boxed: Iterable[str]) -> None:
    """Warn of classes without a box in the whole set, as they are taken as looked for and absent."""
    names, there = list(space), set(boxed)
    without = [name for name in names if name not in there]
    if without and there:
        log.warning(
            "%s: %d of %d classes have no box (%s): each is taken as looked for and absent in all images",
            path, len(without), len(names), ", ".join(without[:5]) + (", ..." if len(without) > 5 else ""),
        )  # fmt: skip
