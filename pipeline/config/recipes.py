"""Recipes (``pipeline/configs/*.yaml``) and overrides of settings (``--set teacher.steps=200``)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config import SelfTrainConfig
from pipeline.errors import InputError, did_you_mean
from pipeline.io.strict_model import problem_lines
from pipeline.io.strict_yaml import read_yaml

C = TypeVar("C", bound=BaseModel)


def recipe_names() -> list[str]:
    """Names of the recipes in this package."""
    return sorted(
        p.name.removesuffix(".yaml") for p in resources.files("pipeline.configs").iterdir() if p.name.endswith(".yaml")
    )


def load_recipe(name_or_file: str = "demo", changes: Sequence[str] = ()) -> SelfTrainConfig:
    """Load a recipe by name or file, with overrides such as ``a.b=value`` (values are YAML).

    Raises:
        InputError: no such recipe, not YAML, or an unknown setting or invalid value.
    """
    path = Path(name_or_file)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        text = path.read_text()
    elif name_or_file in recipe_names():
        text = resources.files("pipeline.configs").joinpath(f"{name_or_file}.yaml").read_text()
    else:
        raise InputError(f"recipe {name_or_file!r}: want one of {', '.join(recipe_names())}, or a .yaml file")
    data = read_yaml(text, name_or_file) or {}
    return build(SelfTrainConfig, data, changes, where=name_or_file)


def build(kind: type[C], data: dict[str, Any], changes: Sequence[str] = (), *, where: str = "settings") -> C:
    """Validate ``data``, with overrides, as a ``kind``.

    Raises:
        InputError: invalid override or setting; names the field.
    """
    # presets first, as other settings override them
    for change in sorted(changes, key=lambda c: c.partition("=")[0].rpartition(".")[2] != "preset"):
        _apply(data, change)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise InputError("\n".join(problem_lines(error, where, partial(_suggestion, kind)))) from None


def _apply(data: dict[str, Any], change: str) -> None:
    path, equals, value = change.partition("=")
    if not equals or not path:
        raise InputError(f"--set {change!r}: want NAME=VALUE, such as teacher.steps=200")
    *parents, last = path.split(".")
    group = data
    for name in parents:
        subgroup = group.setdefault(name, {})
        if not isinstance(subgroup, dict):
            raise InputError(f"--set {change!r}: {name} is a value, not a group of settings")
        group = subgroup
    if last == "preset":
        group.clear()  # the resolved settings of a recipe would override the preset
    try:
        group[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--set {change!r}: the value is not YAML: {error}") from None


def _suggestion(kind: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """Hint for an unknown field, from the fields of the settings group it is in."""
    model: Any = kind
    for name in loc[:-1]:
        field = getattr(model, "model_fields", {}).get(name)
        model = field.annotation if field is not None else None
    return did_you_mean(str(loc[-1]), getattr(model, "model_fields", {}))
