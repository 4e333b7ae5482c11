"""Pascal VOC XML, one file an image (VOC 2007 and 2012; ImageNet's boxes): boxes with class names."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from pipeline.data.keys import image_key
from pipeline.data.records import Region
from pipeline.errors import InputError
from pipeline.io.files import listing_below
from pipeline.io.paths import join
from pipeline.readers.base import Format, Header, Labelled, Place, SetFiles, xyxy_box
from pipeline.readers.index import Entry, Filling
from pipeline.readers.sniff import refuse
from pipeline.readers.xml_files import corners, listed_names, read_xml, stated_size, text_lines

WANTED = "a folder of Pascal VOC XML files (root <annotation> with <object> elements)"
WANTED_CLASSES = "lines of a class's id, a space and its name (n01440764 tench, Tinca tinca)"


def fill(files: SetFiles, index: Filling) -> dict[str, Any]:
    """Raises InputError: no folder of XML files, or a file in it that is another."""
    classes = _Classes.read(files.companions["classes"]) if "classes" in files.companions else None
    scaled = files.options.get("boxes", "image") == "stated_size"
    if files.options.get("boxes", "image") not in ("image", "stated_size"):
        raise InputError(f"set {files.name}: option boxes: want image or stated_size, not {files.options['boxes']!r}")
    suffix, first = str(files.options.get("image_suffix", "")), int(files.options.get("first_pixel", 1))
    seen: Counter[str] = Counter()
    found = 0
    for name in _files(files):
        found += 1
        root = read_xml(join(files.annotations, name), WANTED)
        stem = name.removesuffix(".xml")
        stated = (root.findtext("filename") or "").strip()
        file = stem + suffix if suffix else "/".join([*stem.split("/")[:-1], stated or stem.split("/")[-1] + ".jpg"])
        rows = []
        for item in root.iter("object"):
            box = item.find("bndbox")
            if item.find("nobndbox") is not None or len(item.findall("name")) > 1:  # its classes would be numbers
                path = join(files.annotations, name)
                raise InputError(f"{path}: want {WANTED}; found Flickr30k Entities' (format flickr30k)")
            label = " ".join((item.findtext("name") or "").split())
            label = classes.id_of(label, stem) if classes is not None else label
            rows.append(
                (
                    label,
                    None if box is None else corners(box, first, either=scaled),
                    item.findtext("difficult", "0").strip() == "1",
                )
            )
            if label:
                seen[label] += 1
        index.image(stem, (file, stated_size(root), rows))
    if not found:
        raise refuse(files.annotations, WANTED)
    names = classes.names if classes is not None else None
    space = list(dict.fromkeys(filter(None, names.values()))) if names is not None else sorted(seen)
    return {"names": names, "label_space": space, "scaled": scaled}


def _files(files: SetFiles) -> list[str]:
    """Names of the XML files below the folder: those that the list `ids` names, or all."""
    if "ids" in files.companions:
        return [f"{name}.xml" for name in listed_names(files.companions["ids"])]
    return listing_below(files.annotations, ".xml")


@dataclass(frozen=True)
class _Classes:
    """ImageNet's LOC_synset_mapping.txt: ``names`` by id, the first of a synset's words; ``ids`` by each of its words."""

    names: dict[str, str]
    ids: dict[str, list[str]]

    @classmethod
    def read(cls, path: str) -> _Classes:
        names: dict[str, str] = {}
        ids: dict[str, list[str]] = {}
        for line in text_lines(path, WANTED_CLASSES):
            number, _, words = line.partition(" ")
            if not words.strip() or not re.fullmatch(r"[\w.-]+", number):
                raise refuse(path, WANTED_CLASSES)
            names[number] = words.split(",")[0].strip()
            for word in words.split(","):
                ids.setdefault(_plain(word), []).append(number)
        return cls(names, ids)

    def id_of(self, label: str, stem: str) -> str:
        """The id that an object's <name> means. Some of ImageNet's give a word ("Scottish_deerhound") in its place: of several
        classes with that word it is the one whose folder the file lies in."""
        if label in self.names:
            return label
        meant = self.ids.get(_plain(label), [])
        folders = [folder for folder in stem.split("/")[:-1] if folder in meant]
        return folders[-1] if folders else meant[0] if len(meant) == 1 else label


def _plain(word: str) -> str:
    return " ".join(word.replace("_", " ").lower().split())


def place(number: Any, image: Any) -> Place:
    return Place(image[0])


def labelled(entry: Entry, header: Header) -> Labelled:
    """Objects marked ``difficult`` become ignore regions, as VOC's own evaluation has it.

    Regions are lost as ``bad_box``, ``box_without_area``, ``box_outside_image`` or ``unknown_category``.
    """
    file, size, rows = entry.image
    names = header["names"]
    regions: list[Region] = []
    boxless: list[str] = []
    lost: Counter[str] = Counter()
    shares = size is not None and header["scaled"]
    for label, found, difficult in rows:
        name = label if names is None else names.get(label)
        if not name:
            lost["unknown_category"] += 1
            continue
        box = xyxy_box(found, size, lost)
        if box is not None and shares:
            box = (box[0] / size[1], box[1] / size[0], box[2] / size[1], box[3] / size[0])
        if box is None:
            boxless.append(name)
        else:
            regions.append(Region(box=box, phrase=name, ignore=difficult))
    known = None if shares else size
    return Labelled(
        image_key(entry.id), Place(file), known,
        regions=tuple(regions), boxless_names=tuple(boxless), relative=shares, lost=lost,
    )  # fmt: skip


FORMAT = Format(
    "detection", WANTED, fill, labelled, place,
    companions={
        "ids": "a list of the images of a split, such as ImageSets/Main/train.txt",
        "classes": "names of class ids, such as ImageNet's LOC_synset_mapping.txt; else the names in the files",
    },
    options={
        "image_suffix": "images are called as their XML files, with this ending (.JPEG); else as <filename> says",
        "first_pixel": "what the first pixel is called in the boxes: 1 (Pascal VOC) or 0",
        "boxes": "image: in its pixels, and one of another size than the file states is lost; stated_size: in those of an "
        "image of the <size> stated, whatever the file's own, and corners in either order (ImageNet)",
    },
)  # fmt: skip
