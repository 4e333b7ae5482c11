"""Readers of annotation formats by their names in manifests."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from pipeline.readers.base import Format

_READERS: Mapping[str, str] = {
    "coco": "coco.FORMAT",
    "lvis": "coco.LVIS",
    "mdetr": "mdetr.FORMAT",
    "refcoco": "mdetr.FORMAT",
    "openimages": "openimages.FORMAT",
    "visual_genome_objects": "visual_genome.OBJECTS",
    "visual_genome_regions": "visual_genome.REGIONS",
    "voc": "voc.FORMAT",
    "flickr30k": "flickr30k.FORMAT",
    "odvg_detection": "odvg.DETECTION",
    "odvg_grounding": "odvg.GROUNDING",
    "grit": "grit.FORMAT",
    "glip_captions": "glip_captions.FORMAT",
}
READ = tuple(_READERS)


def load_format(name: str) -> Format:
    """Reader of a format; ``name`` is one of READ."""
    module, attribute = _READERS[name].split(".")
    reader: Format = getattr(import_module(f"pipeline.readers.{module}"), attribute)
    return reader
