"""The formats that export writes, by the name that --to gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.writers.base import ExportContext, Target

_TARGETS: Mapping[str, str] = {
    "coco": "coco.Coco",
    "odvg": "odvg.Odvg",
    "glip": "glip.Glip",
    "fiftyone": "fiftyone.FiftyOne",
    "yolo": "yolo.Yolo",
}
WRITTEN = tuple(_TARGETS)
DATASET = "pseudo"
"""What the set of a label store's records is called, if not named."""


def load_target(name: str) -> Callable[[ExportContext], Target]:
    """What makes a target of a format of WRITTEN.

    Raises:
        InputError: no such format.
    """
    if name not in _TARGETS:
        raise InputError(f"--to {name}: want one of {', '.join(WRITTEN)}")
    module, attribute = _TARGETS[name].split(".")
    found: Callable[[ExportContext], Target] = getattr(import_module(f"pipeline.writers.{module}"), attribute)
    return found
