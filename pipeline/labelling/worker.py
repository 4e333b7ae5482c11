"""pseudo-label's worker: a teacher's regions for the phrases of each shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from pipeline.annotators.base import Annotator, Batch, load_annotator
from pipeline.annotators.batches import Item, batches, decode
from pipeline.config import PseudoLabelConfig
from pipeline.data.caption_phrases import read_caption_phrases
from pipeline.data.records import REGIONS, STORE_VERSION
from pipeline.execution.inference import check_losses, run_inference, timed
from pipeline.execution.reports import ShardReport
from pipeline.execution.worker import ShardJob, WorkQueue
from pipeline.io.paths import join
from pipeline.io.tables import write_table
from pipeline.labelling.reader import read_windows
from pipeline.labelling.region_table import ShardResult
from pipeline.system.devices import limit_torch_threads

STAGE = "pseudo-label"
Queries = tuple[list[Item], Batch]
"""A batch's queries, and the teacher's inputs for them."""


@dataclass(frozen=True)
class LabelShards:
    """A worker (:data:`pipeline.execution.worker.Worker`): labels the queue's shards with one copy of the teacher.

    phrases, out: folders or URLs. device: a torch device. decoders: decoding threads.
    threads: torch's own, on the CPU; None leaves them.
    """

    config: PseudoLabelConfig
    phrases: str
    teacher: str
    out: str
    device: str
    decoders: int
    threads: int | None = None

    def __call__(self, queue: WorkQueue) -> None:
        """Label until the queue has no more shards.

        Raises:
            InputError: no usable teacher. torch.AcceleratorError: the device is lost.
        """
        with timed(queue, "load"):
            limit_torch_threads(self.threads)
            annotator = load_annotator(self.teacher, self.config, self.device)
        run_inference(queue, iter(queue.take, None), partial(LabellingShard, self, annotator), self.decoders)


class LabellingShard:
    """A shard being labelled (:class:`pipeline.execution.inference.InferenceShard`)."""

    def __init__(self, worker: LabelShards, annotator: Annotator, job: ShardJob) -> None:
        self._worker, self._annotator, self._job = worker, annotator, job
        self._result = ShardResult(read_caption_phrases(join(worker.phrases, f"{job.name}.parquet")))

    def windows(self) -> Iterator[list[list[Item]]]:
        """The batches of each window."""
        for items in read_windows(self._job.path, self._result, self._annotator):
            yield list(batches(items, self._worker.config.batch_size))

    def prepare(self, unit: list[Item]) -> list[Queries]:
        """Decode, resize and collate a batch; nothing is left of it if all its images are broken."""
        scaled = self._worker.config.decode == "scaled"
        items, images = decode(self._annotator, unit, lambda item, e: self._result.lose(item.index, e), scaled=scaled)
        return [(items, self._annotator.collate(images, [item.query for item in items]))] if items else []

    def collate(self, ready: list[Queries] | None) -> list[Queries]:
        """The batch, collated already."""
        return ready or []

    def predict(self, batch: Queries) -> int:
        """Store the regions of a batch's queries."""
        items, inputs = batch
        self._result.add(items, self._annotator.predict(inputs))
        return len(items)

    def finish(self) -> ShardReport:
        """Write the shard's table.

        Raises:
            RunError: more than ``max_lost_share`` of the samples are lost.
        """
        job, config = self._job, self._worker.config
        table, tallies, notes = self._result.finish(config)
        check_losses(job, "samples", tallies["samples"], config.max_lost_share)
        name = f"{job.name}.parquet"
        footer = {
            "stage": STAGE,
            "fingerprint": job.fingerprint,
            "version": str(STORE_VERSION),
            "teacher": f"{self._annotator.name}@{self._annotator.revision}",
            "config": config.model_dump_json(),
        }
        output = write_table(join(self._worker.out, name), table, REGIONS, footer)
        numbers = {"regions": float(table.num_rows)}
        return job.report(STAGE, {name: output}, tallies, numbers=numbers, problems=self._result.problems, notes=notes)
