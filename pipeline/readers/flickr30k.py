"""Flickr30k Entities (arXiv 1505.04870): sentences with marked phrases, and XML with the boxes of
their entities.

Each sentence becomes a record. The markup states a phrase's span and its entity, whose number joins
it to boxes.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

from pipeline.data.records import Span
from pipeline.errors import InputError
from pipeline.io.paths import join
from pipeline.readers.bad_rows import ROW_ERRORS
from pipeline.readers.base import Format, Header, LabelCollector, LabelledImage, SetFiles
from pipeline.readers.boxes import xyxy_box
from pipeline.readers.index import Entry, IndexWriter
from pipeline.readers.spans import phrase_of
from pipeline.readers.xml_files import corners, read_text, read_xml, stated_size, xml_names

WANTED = "Flickr30k Entities' Annotations (XML with root <annotation> and entities' numbers in <name>)"
WANTED_SENTENCES = "Flickr30k Entities' Sentences ([/EN#1/people Two men] in [/EN#2/scene a park] .)"
_OPEN = re.compile(r"\[/EN#(\d+)((?:/[^\s/\]]+)+) ")
_NOT_VISUAL = "0"


def parse_sentence(line: str) -> tuple[str, list[tuple[str, str, Span]]]:
    """(caption, [(entity, type, span)]) of a marked sentence.

    Raises:
        ValueError: malformed or unclosed markup.
    """
    caption, phrases, position = "", [], 0
    while (opened := line.find("[/EN#", position)) >= 0:
        mark = _OPEN.match(line, opened)
        closed = line.find("]", mark.end()) if mark else -1
        if mark is None or closed < 0:
            raise ValueError(f"near {line[opened : opened + 30]!r}")
        caption += line[position:opened]
        words = line[mark.end() : closed]
        start = len(caption)
        caption += words
        inner = len(words) - len(words.lstrip())
        span = (start + inner, start + len(words.rstrip()))
        if span[1] > span[0]:
            phrases.append((mark[1], mark[2].strip("/"), span))
        position = closed + 1
    return caption + line[position:], phrases


def fill(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read the XML files and sentences."""
    sentences = files.companions["sentences"]
    boxed, marked = dict[str, None](), dict[str, None]()
    for name in xml_names(files.annotations, files.companions.get("ids"), WANTED):
        try:
            root = read_xml(join(files.annotations, f"{name}.xml"), WANTED)
            boxes = _boxes(root, f"{files.annotations}/{name}.xml")
            path = join(sentences, f"{name}.txt")
            lines = read_text(path, WANTED_SENTENCES).splitlines()
        except ROW_ERRORS as error:
            index.bad.add(error)
            continue
        for n, line in enumerate(lines):
            if not line.strip():
                continue
            with index.bad.row():
                try:
                    caption, phrases = parse_sentence(line.strip())
                except ValueError as error:
                    where = f"{path}: line {n + 1}"
                    raise InputError(f"{where}: want {WANTED_SENTENCES}; found a broken mark {error}") from None
                boxed |= dict.fromkeys(entity for entities, _ in boxes for entity in entities)
                marked |= dict.fromkeys(entity for entity, _, _ in phrases)
                index.image(f"{name}_{n}", (f"{name}.jpg", stated_size(root), caption, phrases, boxes))
    if boxed and not boxed.keys() & marked.keys():
        shown = [", ".join([*found][:6]) or "none" for found in (marked, boxed)]
        raise InputError(f"{sentences}: found marks of the entities {shown[0]}; want those of the boxes: {shown[1]}")
    return {}


def _boxes(root: ET.Element, path: str) -> list[tuple[list[str], Any]]:
    """(entities, corners) of an XML file's objects with a box."""
    boxes: list[tuple[list[str], Any]] = []
    for item in root.iter("object"):
        box = item.find("bndbox")
        entities = [(e.text or "").strip() for e in item.findall("name")]
        if not all(e.isdigit() for e in entities):
            raise InputError(f"{path}: want {WANTED}; found an object called {entities}")
        if box is not None:
            boxes.append((entities, corners(box, 1)))  # coordinates start at 1, as in the set's own reader
    return boxes


def labelled(entry: Entry, header: Header) -> LabelledImage:
    """Convert an entry. A box has the spans of all the sentence's phrases that refer to its
    entities.

    Phrases whose entity has no box but is in the image (scenes) are ``uncertain``; "notvisual"
    phrases are not. Regions are also dropped for ``not_in_this_sentence``: only other sentences of
    the image refer to the entity.
    """
    _, size, caption, phrases, boxes = entry.image
    labels = LabelCollector()
    boxed: set[str] = set()
    for entities, bbox in boxes:
        spans = tuple(span for entity, _, span in phrases if entity in entities)
        if not spans:
            labels.lost["not_in_this_sentence"] += 1
            continue
        box = xyxy_box(bbox, size, labels.lost)
        if box is not None:
            boxed.update(entities)
            labels.add(box, phrase_of(caption, spans), spans)
    rest = tuple(s for entity, _, s in phrases if entity != _NOT_VISUAL and entity not in boxed)
    return labels.image(entry, size, caption=caption, uncertain=rest)


FORMAT = Format(
    "grounding", WANTED, fill, labelled,
    companions={"sentences": "the folder Sentences", "ids": "list of the images of a split, such as train.txt"},
    needed=("sentences",),
)  # fmt: skip
