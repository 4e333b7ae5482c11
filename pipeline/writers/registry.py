"""Export formats by their names on the command line (``--to``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.system.plugins import Registry

if TYPE_CHECKING:
    from pipeline.writers.base import ExportContext, Target

WRITERS: Registry[Callable[[ExportContext], Target]] = Registry(
    "writers",
    {
        "coco": "pipeline.writers.coco:Coco",
        "odvg": "pipeline.writers.odvg:Odvg",
        "glip": "pipeline.writers.glip:Glip",
        "fiftyone": "pipeline.writers.fiftyone:FiftyOne",
        "yolo": "pipeline.writers.yolo:Yolo",
        "label-studio": "pipeline.writers.label_studio:LabelStudio",
        "cvat": "pipeline.writers.cvat:Cvat",
        "voc": "pipeline.writers.voc:Voc",
    },
)
WRITTEN = tuple(WRITERS.builtin)
"""Names of the built-in formats."""
DATASET = "pseudo"
"""Default name of the set of a label store's records."""


def load_target(name: str) -> Callable[[ExportContext], Target]:
    """Return the constructor of a format's writer.

    Raises:
        InputError: no such format.
    """
    return WRITERS.require(name, "--to")
