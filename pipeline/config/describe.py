"""Descriptions of all settings, from the models' fields: for the terminal and for docs/settings.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.config.run import SelfTrainConfig
from pipeline.errors import InputError, did_you_mean


class Setting(NamedTuple):
    """One setting: its name within its section, the values it takes, its default as YAML, its meaning."""

    name: str
    values: str
    default: str
    meaning: str


def sections() -> dict[str, tuple[str, type[BaseModel]]]:
    """Return the sections of a recipe by name, with purpose and model; "run" has those at a recipe's top level."""
    found: dict[str, tuple[str, type[BaseModel]]] = {"run": (_purpose(SelfTrainConfig), SelfTrainConfig)}
    for name, field in SelfTrainConfig.model_fields.items():
        if (kind := _model(field)) is not None:
            found[name] = (_purpose(kind), kind)
    return found


def settings_of(section: str) -> list[Setting]:
    """Return the settings of a section.

    Raises:
        InputError: there is no section of this name.
    """
    known = sections()
    if section not in known:
        raise InputError(f"section: found {section!r}; want a recipe's section{did_you_mean(section, known)}")
    return list(_settings(known[section][1], nested=section != "run"))


def text_lines(names: tuple[str, ...] = (), width: int = 100) -> Iterator[str]:
    """Yield the sections as indented text."""
    for section in names or tuple(sections()):
        rows = settings_of(section)
        yield f"{section}: {sections()[section][0]}"
        for row in rows:
            yield f"  {row.name}: {row.default}    # {row.values}".replace("`", "")
            yield from textwrap.wrap(row.meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        yield ""


def markdown_lines() -> Iterator[str]:
    """Yield docs/settings.md."""
    yield from _HEAD.splitlines()
    shown: dict[type[BaseModel], str] = {}
    for section, (purpose, kind) in sections().items():
        yield from ("", f"## {section}", "")
        if kind in shown:
            yield f"The same settings as [{shown[kind]}](#{shown[kind]})."
            continue
        shown[kind] = section
        yield from (purpose, "", "| setting | values | default | meaning |", "|---|---|---|---|")
        for row in settings_of(section):
            cells = (f"`{row.name}`", row.values, f"`{row.default}`", row.meaning)
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_HEAD = """\
# Settings

All settings of a [recipe](recipes.md), section by section, with their defaults. The same text on a terminal:

    self-train settings
    self-train settings filter_boxes

*This page is generated from the code: `self-train settings --markdown > docs/settings.md`.*"""


def _purpose(kind: type[BaseModel]) -> str:
    return " ".join((kind.__doc__ or "").split())


def _model(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _settings(kind: type[BaseModel], nested: bool = True, prefix: str = "") -> Iterator[Setting]:
    for name, field in kind.model_fields.items():
        if (inner := _model(field)) is None:
            default = field.get_default(call_default_factory=True)
            yield Setting(prefix + name, _values(field), _yaml(default), field.description or "")
        elif nested:
            yield from _settings(inner, prefix=f"{prefix}{name}.")


def _yaml(value: Any) -> str:
    """Return a value as a recipe has it, on one line."""
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


_TYPES = {bool: "true or false", int: "integer", float: "number", str: "text"}


def _values(field: FieldInfo) -> str:
    """Return the values that a field takes: its type and bounds."""
    bounds, kind = list(field.metadata), field.annotation
    options = [part for part in get_args(kind) if part is not NoneType] if NoneType in get_args(kind) else [kind]
    for part in options:
        bounds += [m for item in getattr(part, "__metadata__", ()) for m in (getattr(item, "metadata", None) or [item])]
    text = " or ".join(_type(part) for part in options)
    low = next((m.ge for m in bounds if isinstance(m, annotated_types.Ge)), None)
    above = next((m.gt for m in bounds if isinstance(m, annotated_types.Gt)), None)
    high = next((m.le for m in bounds if isinstance(m, annotated_types.Le)), None)
    below = next((m.lt for m in bounds if isinstance(m, annotated_types.Lt)), None)
    limits = [("from", low), ("above", above), ("to", high), ("below", below)]
    text = " ".join([text, *(f"{word} {limit:g}" for word, limit in limits if limit is not None)])
    return text + (", or null" if NoneType in get_args(kind) else "")


def _type(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is tuple:
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return "mapping"
    if hasattr(kind, "__metadata__"):  # Annotated
        return _type(inner[0])
    return _TYPES.get(kind, "any")
