"""Readers of annotation formats by their names in manifests."""

from __future__ import annotations

from pipeline.readers.base import Format
from pipeline.system.plugins import Registry

READERS: Registry[Format] = Registry(
    "readers",
    {
        "coco": "pipeline.readers.coco:FORMAT",
        "lvis": "pipeline.readers.coco:LVIS",
        "mdetr": "pipeline.readers.mdetr:FORMAT",
        "refcoco": "pipeline.readers.mdetr:FORMAT",
        "openimages": "pipeline.readers.openimages:FORMAT",
        "visual_genome_objects": "pipeline.readers.visual_genome:OBJECTS",
        "visual_genome_regions": "pipeline.readers.visual_genome:REGIONS",
        "voc": "pipeline.readers.voc:FORMAT",
        "flickr30k": "pipeline.readers.flickr30k:FORMAT",
        "odvg_detection": "pipeline.readers.odvg:DETECTION",
        "odvg_grounding": "pipeline.readers.odvg:GROUNDING",
        "grit": "pipeline.readers.grit:FORMAT",
        "glip_captions": "pipeline.readers.glip_captions:FORMAT",
        "yolo": "pipeline.readers.yolo:FORMAT",
        "hf_parquet": "pipeline.readers.hf_parquet:FORMAT",
    },
)
READ = tuple(READERS.builtin)
"""Names of the built-in readers."""


def load_format(name: str) -> Format:
    """Return the reader of a format.

    Raises:
        InputError: no such reader.
    """
    return READERS.require(name, "format")
