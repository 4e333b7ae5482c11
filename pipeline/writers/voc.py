"""Pascal VOC's layout: JPEGImages/, in Annotations/ an XML file per image, and labels.txt, a class a line.

It only has class names; those of grounding records are as in YOLO's (:mod:`pipeline.writers.yolo`). Ignore regions are
``difficult``. Coordinates count from 1, and the last ones are inclusive; they keep their fractions.
"""

from __future__ import annotations

import posixpath
import re
import xml.etree.ElementTree as ET

from pipeline.data.records import GroundingRecord
from pipeline.writers.base import LOST_BY_CLASSES, ExportContext, Item, count_lost, kept_name
from pipeline.writers.manifest import SetClassIds
from pipeline.writers.parallel_files import ParallelWriter

_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Voc:
    """Writes the XML files, and at the end labels.txt."""

    folder, takes_images = "JPEGImages", False

    def __init__(self, context: ExportContext) -> None:
        self._context = context
        self._list = context.sink.open("labels.txt")
        self._files = ParallelWriter(context.sink.out)
        self._classes = SetClassIds(context.cards)

    def add(self, item: Item, image: bytes | None) -> None:
        """Write an image's XML file; one without objects marks the image as background."""
        record, context = item.record, self._context
        count_lost(context.numbers, record, *LOST_BY_CLASSES)
        self._classes.add_set(record.dataset)
        path = item.file.rpartition(".")[0].replace(self.folder, "Annotations", 1)
        root = self._annotation(record, item.file)
        ET.indent(root)
        self._files.put(f"{path}.xml", ET.tostring(root, "utf-8") + b"\n")
        context.samples.keep()

    def _annotation(self, record: GroundingRecord, file: str) -> ET.Element:
        height, width = record.image_size
        root = _element("annotation", folder=posixpath.dirname(file), filename=posixpath.basename(file))
        root.append(_element("size", width=width, height=height, depth=3))
        root.append(_element("segmented", 0))
        for region in record.regions:
            if not (name := kept_name(self._context, record, region)):
                continue
            if lost := _NOT_XML.findall(name):  # characters that XML cannot hold
                self._context.numbers["lost_characters_of_names"] += len(lost)
                name = _NOT_XML.sub("", name)
            self._classes[name]
            x1, y1, x2, y2 = (f"{value:.12g}" for value in (region.box[0] + 1, region.box[1] + 1, *region.box[2:]))
            thing = _element("object", name=name, pose="Unspecified", truncated=0, difficult=int(region.ignore))
            thing.append(_element("bndbox", xmin=x1, ymin=y1, xmax=x2, ymax=y2))
            root.append(thing)
        return root

    def finish(self) -> None:
        """Write labels.txt."""
        self._files.drain()
        self._list.write("".join(f"{name}\n" for name in self._classes.ids).encode())
        self._context.numbers["classes"] += len(self._classes.ids)

    def hints(self, out: str) -> list[str]:
        """A manifest with which ingest reads it."""
        entry = f"{{kind: detection, format: voc, annotations: {out}/Annotations, images_folder: {out}/{self.folder}}}"
        return [f"a manifest for ingest: sets: {{voc: {entry}}}"]


def _element(tag: str, text: object = None, **parts: object) -> ET.Element:
    element = ET.Element(tag)
    element.text = None if text is None else str(text)
    for name, value in parts.items():
        ET.SubElement(element, name).text = str(value)
    return element
