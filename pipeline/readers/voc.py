"""Pascal VOC XML, one file per image (VOC 2007 and 2012; ImageNet's boxes): boxes with class names."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Any

from pipeline.errors import InputError
from pipeline.io.paths import join
from pipeline.readers.base import Format, Header, LabelCollector, LabelledImage, SetFiles
from pipeline.readers.boxes import turned, xyxy_box
from pipeline.readers.fields import class_name, folded, ignore_flag, option_choice
from pipeline.readers.index import Entry, IndexWriter
from pipeline.readers.sniff import wrong_format
from pipeline.readers.xml_files import corners, read_xml, stated_size, text_lines, xml_names

WANTED = "a folder of Pascal VOC XML files (root <annotation> with <object> elements)"
WANTED_CLASSES = "lines of a class's id, a space and its name (n01440764 tench, Tinca tinca)"


def fill(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read the XML files."""
    classes = _Classes.read(files.companions["classes"]) if "classes" in files.companions else None
    scaled = option_choice(files, "boxes", "image", "stated_size") == "stated_size"
    suffix, first = str(files.options.get("image_suffix", "")), int(files.options.get("first_pixel", 1))
    seen = set[str]()
    for stem in xml_names(files.annotations, files.companions.get("ids"), WANTED):
        path = join(files.annotations, f"{stem}.xml")
        with index.bad.row(path):
            root = read_xml(path, WANTED)
            stated = (root.findtext("filename") or "").strip()
            named = "/".join([*stem.split("/")[:-1], stated or stem.split("/")[-1] + ".jpg"])
            rows = []
            for item in root.iter("object"):
                if item.find("nobndbox") is not None or len(item.findall("name")) > 1:
                    raise InputError(f"{path}: want {WANTED}; found Flickr30k Entities' (format flickr30k)")
                label = class_name(item.findtext("name"))
                label = classes.id_of(label, stem) if classes is not None else label
                rows.append((label, _bbox(item, first, scaled), ignore_flag({part.tag: part.text for part in item})))
                seen.add(label)
            file = stem + suffix if suffix else named
            index.image(stem, (file, stated_size(root), rows), file=file)
    if classes is None:
        return {"names": None, "label_space": sorted(seen - {""}), "scaled": scaled}
    space = list(dict.fromkeys(filter(None, classes.names.values())))
    return {"names": classes.names, "label_space": space, "scaled": scaled}


def _bbox(item: ET.Element, first: int, scaled: bool) -> list[Any] | None:
    """An object's corners; those around the turned box if a labelling tool states a rotation:
    roLabelImg as <robndbox> in radians, CVAT as an attribute in degrees.
    """
    box, turned_box = item.find("bndbox"), item.find("robndbox")
    if turned_box is not None:
        values = [float(turned_box.findtext(name, "nan")) for name in ("cx", "cy", "w", "h", "angle")]
        x, y, w, h, angle = values
        return _corners(turned([x - w / 2, y - h / 2, w, h], math.degrees(angle)))
    if box is None:
        return None
    bbox = corners(box, first, either=scaled)
    for attribute in item.iter("attribute"):
        degrees = attribute.findtext("value") if attribute.findtext("name") == "rotation" else None
        if degrees and None not in bbox:
            x1, y1, x2, y2 = bbox
            bbox = _corners(turned([x1, y1, x2 - x1, y2 - y1], degrees))
    return bbox


def _corners(xywh: list[float]) -> list[Any]:
    x, y, w, h = xywh
    return [x, y, x + w, y + h]


@dataclass(frozen=True)
class _Classes:
    """ImageNet's LOC_synset_mapping.txt.

    names: class id -> first word of its synset. ids: each word of a synset -> class ids.
    """

    names: dict[str, str]
    ids: dict[str, list[str]]

    @classmethod
    def read(cls, path: str) -> _Classes:
        names: dict[str, str] = {}
        ids: dict[str, list[str]] = {}
        for line in text_lines(path, WANTED_CLASSES):
            number, _, words = line.partition(" ")
            if not words.strip() or not re.fullmatch(r"[\w.-]+", number):
                raise wrong_format(path, WANTED_CLASSES)
            names[number] = words.split(",")[0].strip()
            for word in words.split(","):
                ids.setdefault(folded(word), []).append(number)
        return cls(names, ids)

    def id_of(self, label: str, stem: str) -> str:
        """Class id of an object's <name>, which in some of ImageNet's files is a word
        ("Scottish_deerhound").

        Of several classes with the word it is the one whose folder contains the file.
        """
        if label in self.names:
            return label
        candidates = self.ids.get(folded(label), [])
        folders = [folder for folder in stem.split("/")[:-1] if folder in candidates]
        return folders[-1] if folders else candidates[0] if len(candidates) == 1 else label


def labelled(entry: Entry, header: Header) -> LabelledImage:
    """Convert an entry. Objects marked ``difficult`` become ignore regions, as in VOC's evaluation."""
    _, size, rows = entry.image
    names = header["names"]
    labels = LabelCollector()
    relative = size is not None and header["scaled"]
    for label, bbox, difficult in rows:
        name = label if names is None else names.get(label)
        if not name:
            labels.unknown(f"<name> {label!r}", names)
            continue
        box = xyxy_box(bbox, size, labels.lost)
        if box is not None and relative:
            box = (box[0] / size[1], box[1] / size[0], box[2] / size[1], box[3] / size[0])
        labels.add(box, name, ignore=difficult)
    return labels.image(entry, None if relative else size, relative=relative)


FORMAT = Format(
    "detection", WANTED, fill, labelled,
    companions={
        "ids": "list of the images of a split, such as ImageSets/Main/train.txt",
        "classes": "names of class ids, such as ImageNet's LOC_synset_mapping.txt; by default <name> is the class name",
    },
    options={
        "image_suffix": "image files are named as their XML files with this suffix (.JPEG); by default by <filename>",
        "first_pixel": "coordinate of the first pixel: 1 (Pascal VOC) or 0",
        "boxes": "image: boxes are in the image's pixels, and an image that differs from the stated <size> is dropped; "
        "stated_size: boxes are in pixels of the stated <size>, with corners in either order (ImageNet)",
    },
)  # fmt: skip
