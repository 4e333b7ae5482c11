"""The formats that ingest reads, by the name that a manifest gives them."""

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
    """The reader of a format of READ."""
    module, attribute = _READERS[name].split(".")
    found: Format = getattr(import_module(f"pipeline.readers.{module}"), attribute)
    return found
