"""Compute the perceptual hashes of a set's images, a table per shard, for any later comparison."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data.images import ImageError, open_image
from pipeline.dedup.image_sets import ImageSet, SetImage
from pipeline.dedup.perceptual_hash import DECODED_SIDE, HASH_VERSION, HASHES, hash_image
from pipeline.execution.options import ShardOptions
from pipeline.execution.reports import ShardReport, StageReport, Tally
from pipeline.execution.run import run_shards
from pipeline.execution.worker import ShardJob, WorkQueue
from pipeline.io.hashing import fingerprint
from pipeline.io.paths import join
from pipeline.io.tables import write_table
from pipeline.io.tars import TarProblems

STAGE = "hash-images"
PROGRESS_EVERY = 200
"""Images between reports of progress."""


def run(images: ImageSet, out: str | Path, options: ShardOptions = ShardOptions()) -> StageReport:
    """Write ``out/<part>.parquet`` (HASHES) for every part of a set, in its order.

    Flat and broken images are counted and left out.

    Raises:
        RunError: more than ``max_failed`` parts failed.
    """
    jobs = [ShardJob(images.path(part), part) for part in images.parts]
    work = partial(_hash_part, images=images, out=str(out))
    fingerprint_of = partial(_fingerprint_of, images=images)
    return run_shards(STAGE, jobs, out, work, options, fingerprint_of=fingerprint_of, advances=True)


def _fingerprint_of(job: ShardJob, *, images: ImageSet) -> str:
    return fingerprint(STAGE, version=HASH_VERSION, config={}, inputs={"images": images.digest(job.name)})


def _hash_part(job: ShardJob, *, queue: WorkQueue, images: ImageSet, out: str) -> ShardReport:
    problems, samples, seen = TarProblems(), Tally(), 0
    before: tuple[bytes | None, tuple[Any, ...]] = (None, ())
    rows: dict[str, list[Any]] = {name: [] for name in HASHES.names}
    for image in images.images(job.name, problems):
        seen += 1
        if seen % PROGRESS_EVERY == 0:
            queue.advance(PROGRESS_EVERY, "images")
        try:
            # an image with several captions occurs once for each, in a row
            same = image.data is not None and image.data == before[0]
            values = before[1] if same else _hashed(image)
        except ImageError as error:
            samples.drop(error.reason)
            if error.reason != "flat_image":
                problems.notes.append(f"{image.key}: {error}")
            continue
        samples.keep()
        before = image.data, values
        for column, value in zip(rows.values(), (image.key, *values, image.offset, image.size), strict=True):
            column.append(value)
    queue.advance(seen % PROGRESS_EVERY, "images")
    name = f"{job.name}.parquet"
    footer = {"stage": STAGE, "fingerprint": job.fingerprint, "version": str(HASH_VERSION)}
    output = write_table(join(out, name), pa.table(rows, schema=HASHES), HASHES, footer)
    return job.report(STAGE, {name: output}, {"samples": samples}, problems=problems)


def _hashed(image: SetImage) -> tuple[Any, ...]:
    """Return the words of an image's hash, and its digest.

    Raises:
        ImageError: the image is missing, broken or a ``flat_image``.
    """
    if image.data is None:
        assert image.problem is not None
        raise image.problem
    perceived = hash_image(open_image(image.data, at_least=(DECODED_SIDE, DECODED_SIDE)))
    if perceived.flat:
        raise ImageError("flat_image", "one colour, or little more")
    digest = int.from_bytes(hashlib.blake2b(image.data, digest_size=8).digest(), "big")
    return (*perceived.words.tolist(), digest)
