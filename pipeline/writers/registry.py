"""Export formats by their names on the command line (``--to``)."""

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
"""Default name of the set of a label store's records."""


def load_target(name: str) -> Callable[[ExportContext], Target]:
    """Constructor of a format's writer; ``name`` is one of WRITTEN.

    Raises:
        InputError: no such format.
    """
    if name not in _TARGETS:
        raise InputError(f"--to {name}: want one of {', '.join(WRITTEN)}")
    module, attribute = _TARGETS[name].split(".")
    target: Callable[[ExportContext], Target] = getattr(import_module(f"pipeline.writers.{module}"), attribute)
    return target
