"""Perceptual hashes of a set's images, a table a shard: made once, whatever they are compared with later."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data.images import ImageError, open_image
from pipeline.dedup.image_sets import ImageSet, SetImage
from pipeline.dedup.perceptual_hash import DECODED_SIDE, HASH_VERSION, HASHES, hash_image
from pipeline.execution.options import ShardOptions
from pipeline.execution.reports import ShardReport, StageReport, Tally
from pipeline.execution.run import run_workers
from pipeline.execution.worker import EachShard, ShardJob, WorkQueue
from pipeline.io.hashing import fingerprint
from pipeline.io.paths import join
from pipeline.io.tables import write_table
from pipeline.io.tars import TarProblems

STAGE = "hash-images"
TELL_EVERY = 200
"""Images between two words of progress."""


def run(images: ImageSet, out: str | Path, options: ShardOptions = ShardOptions()) -> StageReport:
    """Write ``out/<part>.parquet`` (HASHES) for every part of a set, in its order. Flat and broken images are counted and left out.

    Raises:
        RunError: more than ``max_failed`` parts failed.
    """
    jobs = [ShardJob(images.path(part), part) for part in images.parts]
    workers = [HashImages(images, str(out))] * max(1, min(options.workers, len(jobs)))
    return run_workers(STAGE, jobs, out, workers, options, fingerprint_of=partial(_fingerprint_of, images=images))


def _fingerprint_of(job: ShardJob, *, images: ImageSet) -> str:
    return fingerprint(STAGE, version=HASH_VERSION, config={}, inputs={"images": images.digest(job.name)})


@dataclass(frozen=True)
class HashImages:
    """Hashes one part after the other, and tells of images while it does."""

    images: ImageSet
    out: str

    def __call__(self, queue: WorkQueue) -> None:
        EachShard(partial(self.part, queue=queue))(queue)

    def part(self, job: ShardJob, *, queue: WorkQueue) -> ShardReport:
        """Write the hashes of one part."""
        problems, samples, seen = TarProblems(), Tally(), 0
        before: tuple[bytes | None, tuple[Any, ...]] = (None, ())
        rows: dict[str, list[Any]] = {name: [] for name in HASHES.names}
        for found in self.images.images(job.name, problems):
            seen += 1
            if seen % TELL_EVERY == 0:
                queue.advance(TELL_EVERY, "images")
            try:
                # the captions of an image lie side by side
                same = found.data is not None and found.data == before[0]
                values = before[1] if same else _hashed(found)
            except ImageError as error:
                samples.drop(error.reason)
                if error.reason != "flat_image":
                    problems.notes.append(f"{found.key}: {error}")
                continue
            samples.keep()
            before = found.data, values
            for column, value in zip(rows.values(), (found.key, *values, found.offset, found.size), strict=True):
                column.append(value)
        queue.advance(seen % TELL_EVERY, "images")
        name = f"{job.name}.parquet"
        footer = {"stage": STAGE, "fingerprint": job.fingerprint, "version": str(HASH_VERSION)}
        output = write_table(join(self.out, name), pa.table(rows, schema=HASHES), HASHES, footer)
        return job.report(STAGE, {name: output}, {"samples": samples}, problems=problems)


def _hashed(found: SetImage) -> tuple[Any, ...]:
    """The words of an image's hash and its digest.

    Raises:
        ImageError: no image, a broken one, or a ``flat_image``.
    """
    if found.data is None:
        assert found.problem is not None
        raise found.problem
    perceived = hash_image(open_image(found.data, at_least=(DECODED_SIDE, DECODED_SIDE)))
    if perceived.flat:
        raise ImageError("flat_image", "one colour, or little more")
    digest = int.from_bytes(hashlib.blake2b(found.data, digest_size=8).digest(), "big")
    return (*perceived.words.tolist(), digest)
