"""Pascal VOC XML, one file an image (VOC 2007 and 2012; ImageNet's boxes): boxes with class names."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from pipeline.errors import InputError
from pipeline.io.files import listing
from pipeline.io.paths import is_url, join
from pipeline.records import Region
from pipeline.sources.base import Format, Header, Labelled, Place, SetFiles, image_key, xyxy_box
from pipeline.sources.index import Entry, Filling
from pipeline.sources.looks import refuse
from pipeline.sources.xml_files import corners, listed_names, read_xml, stated_size, text_lines

WANTED = "a folder of Pascal VOC XML files (root <annotation> with <object> elements)"
WANTED_CLASSES = "lines of a class's id, a space and its name (n01440764 tench, Tinca tinca)"


def fill(files: SetFiles, index: Filling) -> dict[str, Any]:
    """Raises InputError: no folder of XML files, or a file in it that is another."""
    names = _names(files.companions["classes"]) if "classes" in files.companions else None
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
            rows.append(
                (label, None if box is None else corners(box, first), item.findtext("difficult", "0").strip() == "1")
            )
            seen[label] += 1
        index.image(stem, (file, stated_size(root), rows))
    if not found:
        raise refuse(files.annotations, WANTED)
    space = list(dict.fromkeys(names.values())) if names is not None else sorted(seen)
    return {"names": names, "label_space": space}


def _files(files: SetFiles) -> list[str]:
    """Names of the XML files below the folder: those that the list `ids` names, or all."""
    if "ids" in files.companions:
        return [f"{name}.xml" for name in listed_names(files.companions["ids"])]
    if is_url(files.annotations):
        return [path.rsplit("/", 1)[-1] for path in listing(files.annotations, ".xml")]
    from pathlib import Path

    root = Path(files.annotations)
    if not root.is_dir():
        raise refuse(files.annotations, WANTED)
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*.xml"))


def _names(path: str) -> dict[str, str]:
    """ImageNet's LOC_synset_mapping.txt: the first of a synset's words is its name."""
    names = {}
    for line in text_lines(path, WANTED_CLASSES):
        number, _, words = line.partition(" ")
        if not words.strip() or not re.fullmatch(r"[\w.-]+", number):
            raise refuse(path, WANTED_CLASSES)
        names[number] = words.split(",")[0].strip()
    return names


def place(number: Any, image: Any) -> Place:
    return Place(image[0])


def labelled(entry: Entry, header: Header) -> Labelled:
    """Objects marked ``difficult`` become ignore regions, as VOC's own evaluation has it.

    Regions are lost as ``bad_box``, ``box_without_area``, ``box_outside_image`` or ``unknown_category``.
    """
    file, size, rows = entry.image
    names = header["names"]
    regions: list[Region] = []
    lost: Counter[str] = Counter()
    for label, found, difficult in rows:
        name = label if names is None else names.get(label)
        if not name:
            lost["unknown_category"] += 1
            continue
        box = xyxy_box(found, size, lost)
        if box is not None:
            regions.append(Region(box=box, phrase=name, ignore=difficult))
    return Labelled(image_key(entry.id), Place(file), size, regions=tuple(regions), lost=lost)


FORMAT = Format(
    "detection", WANTED, fill, labelled, place,
    companions={
        "ids": "a list of the images of a split, such as ImageSets/Main/train.txt",
        "classes": "names of class ids, such as ImageNet's LOC_synset_mapping.txt; else the names in the files",
    },
    options={
        "image_suffix": "images are called as their XML files, with this ending (.JPEG); else as <filename> says",
        "first_pixel": "what the first pixel is called in the boxes: 1 (Pascal VOC) or 0",
    },
)  # fmt: skip
