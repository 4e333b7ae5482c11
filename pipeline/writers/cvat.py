"""CVAT for images 1.1: per set ``SET.xml`` and ``SET.labels.json``, the labels of the task or project.

A tag TAG an image has its shard, key and caption, the ids of its exported regions, so that import-verdicts knows what
was judged, whatever was deleted, and the tick ``reviewed``, as CVAT itself does not know which images a person has
seen. Labels are the classes of detection sets; of grounding sets there is one, whose attribute has the phrase.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from pipeline.data.records import GroundingRecord
from pipeline.labelling.region_ids import phrase_key, phrase_texts, region_id, shard_and_key
from pipeline.writers.base import ExportContext, count_lost
from pipeline.writers.manifest import ClassIds, SetFiles, TaskWriter
from pipeline.writers.unique_keys import Name

TAG, OBJECT = "_image", "object"
"""Label of the tags, and that of a grounding set's boxes."""
MAX_TEXT = 4096
"""Characters of an attribute's value that CVAT stores (AttributeVal in its engine/models.py); it cuts longer ones."""
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Cvat(TaskWriter):
    """Writes the files of every set."""

    @staticmethod
    def files(context: ExportContext, name: str, record: GroundingRecord) -> _Task:
        return _Task(context, name, record)

    def hints(self, out: str) -> list[str]:
        steps = [
            f"{files.name}: make a task with the labels of {out}/{files.name}.labels.json (Raw) and the images, then "
            f"upload {out}/{files.name}.xml as CVAT 1.1"
            for files in self.sets.values()
        ]
        return [
            *steps,
            f"tick `reviewed` of the tag {TAG} of every image that is done; then export as CVAT for images 1.1",
        ]


class _Task(SetFiles):
    """Files of one set."""

    def __init__(self, context: ExportContext, name: str, record: GroundingRecord) -> None:
        super().__init__(context, name, record)
        self._labels, self._file = context.sink.open(f"{name}.labels.json"), context.sink.open(f"{name}.xml")
        self._spool = context.sink.spool()
        self._classes = ClassIds(self.label_space if record.kind == "detection" else (OBJECT,))

    def add(self, record: GroundingRecord, file: str, name: Name, image: bytes | None) -> None:
        numbers, grounding = self.context.numbers, record.kind == "grounding"
        count_lost(numbers, record, "verified_absent", "score", "annotator", "root", "spans", "mask")
        numbers["lost_uncertain"] += len(record.uncertain)
        numbers["lost_ignore"] += sum(region.ignore for region in record.regions)
        texts, (height, width) = phrase_texts(record), record.image_size
        ids, boxes, length = list[str](), list[str](), 8
        for region in record.regions:
            phrase = phrase_key(record, region)
            number = region_id(phrase, region.box)
            length += len(number) + 1
            if length > MAX_TEXT:  # a region whose id is cut off would never be judged
                self.context.regions.drop("more_than_cvat_holds")
                continue
            self.context.regions.keep()
            ids.append(number)
            label, attributes = region.phrase, {"region": number}
            if grounding:
                label, attributes = OBJECT, {"phrase": texts[phrase], "region": number}
            self._classes[label]
            corners = zip(("xtl", "ytl", "xbr", "ybr"), region.box, strict=True)
            place = " ".join(f'{corner}="{value:.2f}"' for corner, value in corners)
            boxes.append(
                f'    <box label={quoteattr(label)} source="file" occluded="0" {place} z_order="0">\n'
                f"{_attributes(attributes)}    </box>\n"
            )
        shard, key = shard_and_key(file)
        caption = record.caption or ""
        numbers["captions_cut"] += len(caption) > MAX_TEXT
        about = {
            "reviewed": "false", "caption": caption[:MAX_TEXT], "shard": shard, "key": key,
            "regions": " ".join([str(len(ids)), *ids]),
        }  # fmt: skip
        self._spool.write(
            f'  <image id="{name.number}" name={quoteattr(file)} width="{width}" height="{height}">\n{"".join(boxes)}'
            f'    <tag label="{TAG}" source="file">\n{_attributes(about)}    </tag>\n  </image>\n'.encode()
        )

    def finish(self) -> None:
        own = ["phrase", "region"] if self.kind == "grounding" else ["region"]
        labels = [_label(name, "rectangle", own) for name in self._classes.ids]
        labels.append(_label(TAG, "tag", ["reviewed", "caption", "shard", "key", "regions"]))
        self._labels.write(json.dumps(labels, ensure_ascii=False, indent=1).encode() + b"\n")
        self._file.write(b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n')
        meta = "".join(map(_label_meta, labels))
        self._file.write(f"  <meta>\n  <task>\n  <labels>\n{meta}  </labels>\n  </task>\n  </meta>\n".encode())
        self._spool.seek(0)
        shutil.copyfileobj(self._spool, self._file)
        self._file.write(b"</annotations>\n")


def _attributes(values: Mapping[str, str]) -> str:
    return "".join(
        f'      <attribute name="{name}">{escape(_NOT_IN_XML.sub(" ", value))}</attribute>\n'
        for name, value in values.items()
    )


def _label(name: str, kind: str, attributes: list[str]) -> dict[str, Any]:
    """A label in CVAT's JSON."""
    return {
        "name": name,
        "type": kind,
        "attributes": [
            {"name": a, "mutable": False, "input_type": "text", "default_value": "", "values": [""]}
            if a != "reviewed"
            else {"name": a, "mutable": False, "input_type": "checkbox", "default_value": "false", "values": ["false"]}
            for a in attributes
        ],
    }


def _label_meta(label: Mapping[str, Any]) -> str:
    """A label in the XML's head."""
    attributes = "".join(
        f"<attribute><name>{a['name']}</name><mutable>False</mutable><input_type>{a['input_type']}</input_type>"
        f"<default_value>{a['default_value']}</default_value><values>{a['values'][0]}</values></attribute>"
        for a in label["attributes"]
    )
    name, kind = escape(label["name"]), label["type"]
    return f"    <label><name>{name}</name><type>{kind}</type><attributes>{attributes}</attributes></label>\n"
