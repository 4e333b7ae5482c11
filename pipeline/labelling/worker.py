"""A shard of pseudo-label for the inference loop: a teacher's regions for its phrases."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from pipeline.annotators.base import Annotator, Batch, TextQuery, each_query, start
from pipeline.annotators.batches import Item, batches, decode
from pipeline.config import PseudoLabelConfig
from pipeline.data.caption_phrases import CaptionPhrases, read_caption_phrases
from pipeline.data.image_names import FOOTER, ImageNames
from pipeline.data.name_list import NameList
from pipeline.data.records import STORE_VERSION
from pipeline.execution.inference import check_losses
from pipeline.execution.reports import ShardReport
from pipeline.execution.worker import ShardJob
from pipeline.io.paths import join
from pipeline.io.tables import write_table
from pipeline.labelling.reader import read_windows
from pipeline.labelling.region_table import ShardResult

STAGE = "pseudo-label"
Queries = tuple[list[Item], Batch, int]
"""A batch's queries, the teacher's inputs for them, and the number of images whose last ones they are."""


class LabellingShard:
    """A shard being labelled (:class:`pipeline.execution.inference.InferenceShard`).

    phrases: folder or URL, or class names to detect in every image, or those of each image. out: folder or URL.
    licence: of the teacher's weights, if known.
    """

    def __init__(
        self, config: PseudoLabelConfig, phrases: str | NameList | ImageNames, out: str, teacher: Annotator,
        job: ShardJob,
        licence: str | None = None,
    ) -> None:  # fmt: skip
        self._config, self._out, self._teacher, self._job = config, out, teacher, job
        self._licence = licence
        self._of_images = phrases if isinstance(phrases, ImageNames) else None
        self._names = self._of_images.names if self._of_images else phrases if isinstance(phrases, NameList) else None
        self._queries: list[TextQuery] = []
        if isinstance(phrases, NameList):
            self._result = ShardResult(CaptionPhrases.of_names(phrases))
            queries = teacher.class_queries([text for text, _ in phrases.phrases])
            self._queries = sorted(queries, key=lambda query: -query.tokens)  # padded to the first's length
        elif isinstance(phrases, ImageNames):
            self._result = ShardResult({}, named=True)
        else:
            self._result = ShardResult(read_caption_phrases(join(phrases, f"{job.name}.parquet")))

    def windows(self) -> Iterator[list[list[Item]]]:
        """The batches of each window; of class names with the first query about each image."""
        first = self._queries[0] if self._queries else None
        for items in read_windows(self._job.path, self._result, self._teacher, first, self._of_images):
            yield list(batches(items, self._config.batch_size, getattr(self._teacher, "shapes", None)))

    def prepare(self, unit: list[Item]) -> list[Queries]:
        """Decode, resize and collate a batch; [] if all its images are broken."""
        scaled = self._config.decode == "scaled"
        items, images = decode(self._teacher, unit, lambda item, e: self._result.lose(item.index, e), scaled=scaled)
        return [(items, self._teacher.collate(images, [item.query for item in items]), len(items))] if items else []

    def collate(self, ready: list[Queries] | None) -> Iterator[Queries]:
        """The batch, collated already; of class names, then the same images with every further query."""
        last = max(len(self._queries), 1) - 1
        for items, first, images in ready or ():
            for i, batch in enumerate(each_query(self._teacher, first, self._queries)):
                yield items, batch, images if i == last else 0

    def predict(self, batch: Queries) -> Callable[[], int]:
        """Begin a batch; the function that is returned stores the regions of its queries."""
        items, inputs, images = batch
        regions = start(self._teacher, inputs)

        def store() -> int:
            self._result.add(items, regions())
            return images

        return store

    def finish(self) -> ShardReport:
        """Write the shard's table.

        Raises:
            RunError: more than ``max_lost_share`` of the samples are lost.
        """
        job, config = self._job, self._config
        table, tallies, notes = self._result.finish(config)
        check_losses(job, "samples", tallies["samples"], config.max_lost_share)
        for reason, n in self._result.unnamed.items():
            tallies["samples"].drop(reason, n)
        footer = {
            "stage": STAGE, "fingerprint": job.fingerprint, "version": str(STORE_VERSION),
            "teacher": f"{self._teacher.name}@{self._teacher.revision}", "config": config.model_dump_json(),
            **({"teacher_licence": self._licence} if self._licence else {}),
            **({"names": self._names.model_dump_json()} if self._names is not None else {}),
        }  # fmt: skip
        if self._of_images is not None:
            rows = {key: of_image.rows for key, of_image in self._result.phrases.items()}
            footer[FOOTER] = json.dumps(rows, separators=(",", ":"))
        name, numbers = f"{job.name}.parquet", {"regions": float(table.num_rows)}
        output = write_table(join(self._out, name), table, table.schema, footer)
        return job.report(STAGE, {name: output}, tallies, numbers=numbers, problems=self._result.problems, notes=notes)
