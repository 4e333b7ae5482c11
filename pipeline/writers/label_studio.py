"""Label Studio: per set ``SET.json``, tasks with predictions, and ``SET.xml``, the project's labelling configuration.

A task's ``data`` names the image (shard, key), its phrases with their spans, and the ids of the exported regions
(:func:`pipeline.labelling.region_ids.region_id`), so that import-verdicts knows what was judged, whatever was deleted.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from pipeline.data.records import GroundingRecord, Region
from pipeline.io.paths import is_url
from pipeline.labelling.region_ids import PhraseKey, phrase_key, phrase_texts, region_id, shard_and_key
from pipeline.writers.atomic_files import JsonRows
from pipeline.writers.base import ExportContext, count_lost, json_bytes
from pipeline.writers.manifest import ClassIds, SetFiles, TaskWriter
from pipeline.writers.unique_keys import Name


class LabelStudio(TaskWriter):
    """Writes the files of every set. ``context.image_root`` precedes the images' paths."""

    @staticmethod
    def files(context: ExportContext, name: str, record: GroundingRecord) -> _Tasks:
        return _Tasks(context, name, record)

    def hints(self, out: str) -> list[str]:
        folder, root = os.path.abspath(out), self.context.image_root
        serve = [] if is_url(out) or root is not None else [
            f"serve the images: LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={os.path.dirname(folder)} label-studio, and add {folder} as a "
            "local storage of the project"
        ]  # fmt: skip
        steps = [
            f"{files.name}: paste {out}/{files.name}.xml as labelling interface, then import {out}/{files.name}.json"
            for files in self.sets.values()
        ]
        return [*serve, *steps, "afterwards: import-verdicts EXPORT.json --from label-studio (the format named JSON)"]


def image_address(context: ExportContext, file: str) -> str:
    """Address of an image in the tasks: Label Studio's own of a local file, or that in a bucket."""
    root = context.image_root
    if root is None:
        out = context.sink.out
        root = f"{out}/" if is_url(out) else f"/data/local-files/?d={quote(os.path.basename(os.path.abspath(out)))}/"
    return root + (quote(file) if "?" in root else file)


class _Tasks(SetFiles):
    """Files of one set."""

    def __init__(self, context: ExportContext, name: str, record: GroundingRecord) -> None:
        super().__init__(context, name, record)
        self._config, self._file = context.sink.open(f"{name}.xml"), context.sink.open(f"{name}.json")
        self._file.write(b"[")
        self._rows, self._classes = JsonRows(self._file), ClassIds(self.label_space)

    def add(self, record: GroundingRecord, file: str, name: Name, image: bytes | None) -> None:
        count_lost(self.context.numbers, record, "verified_absent", "root", "mask")
        self.context.numbers["lost_uncertain"] += len(record.uncertain)
        self.context.numbers["lost_ignore"] += sum(region.ignore for region in record.regions)
        texts, (height, width) = phrase_texts(record), record.image_size
        shard, key = shard_and_key(file)
        data: dict[str, Any] = {
            "image": image_address(self.context, file), "shard": shard, "key": key,
            "dataset": record.dataset, "height": height, "width": width,
            "regions": [region_id(phrase_key(record, region), region.box) for region in record.regions],
        }  # fmt: skip
        if record.kind == "grounding":
            spans = {text: [p[0][0], p[-1][1]] for p, text in texts.items() if not isinstance(p, str)}
            data |= {"caption": record.caption, "labels": [{"value": text} for text in texts.values()], "spans": spans}
        else:
            for region in record.regions:
                self._classes[region.phrase]
        result = [self._result(record, region, texts) for region in record.regions]
        scores = [region.score for region in record.regions if region.score is not None]
        annotators = {region.annotator for region in record.regions if region.annotator}
        prediction = {
            "model_version": ", ".join(sorted(annotators)) or record.dataset,
            **({"score": min(scores)} if scores else {}),
            "result": result,
        }
        self._rows.add(json_bytes({"data": data, "predictions": [prediction]}))
        self.context.regions.keep(len(record.regions))

    def _result(self, record: GroundingRecord, region: Region, texts: dict[PhraseKey, str]) -> dict[str, Any]:
        """A region in percent of the image."""
        height, width = record.image_size
        (x1, y1, x2, y2), phrase = region.box, phrase_key(record, region)
        value = {
            "x": x1 / width * 100, "y": y1 / height * 100, "width": (x2 - x1) / width * 100,
            "height": (y2 - y1) / height * 100, "rotation": 0, "rectanglelabels": [texts[phrase]],
        }  # fmt: skip
        return {
            "id": region_id(phrase, region.box), "type": "rectanglelabels", "from_name": "label", "to_name": "image",
            "original_width": width, "original_height": height, "image_rotation": 0, "value": value,
            **({} if region.score is None else {"score": region.score}),
        }  # fmt: skip

    def finish(self) -> None:
        self._file.write(b"\n]\n")
        if self.kind == "grounding":
            caption = '  <Text name="caption" value="$caption"/>\n'
            labels = '  <RectangleLabels name="label" toName="image" value="$labels"/>\n'
        else:
            names = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in self._classes.ids)
            caption, labels = "", f'  <RectangleLabels name="label" toName="image">\n{names}  </RectangleLabels>\n'
        image = '  <Image name="image" value="$image" zoom="true" zoomControl="true"/>\n'
        self._config.write(f"<View>\n{caption}{image}{labels}</View>\n".encode())
