"""Compute the perceptual hashes of a set's images, a table per shard, for any later comparison."""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data.crawl import MAX_UNREAD_SHARE, UNREAD
from pipeline.data.images import ImageError, image_size, open_image
from pipeline.data.resizing import WHOLE, shown_part
from pipeline.dedup.image_sets import ImageSet, SetImage
from pipeline.dedup.perceptual_hash import DECODED_SIDE, HASH_VERSION, HASHES, hash_image
from pipeline.errors import RunError
from pipeline.execution.options import ShardOptions
from pipeline.execution.reports import ShardReport, StageReport, Tally
from pipeline.execution.run import run_shards
from pipeline.execution.worker import ShardJob, WorkQueue
from pipeline.io.hashing import fingerprint
from pipeline.io.paths import join
from pipeline.io.tables import write_table
from pipeline.io.tars import TarProblems

STAGE = "hash-images"
PADDED, CROPPED, SQUARE = "images_padded", "images_cropped", "images_square"
"""Numbers in the report: images hashed without their padding; images of which a crawler cut off parts,
so that copies of the whole are not found; squares without padding or a stated original size, which may
be such.
"""
PROGRESS_EVERY = 200
"""Images between reports of progress."""


def run(images: ImageSet, out: str | Path, options: ShardOptions = ShardOptions()) -> StageReport:
    """Write ``out/<part>.parquet`` (HASHES) for every part of a set, in its order.

    Flat and broken images are counted and left out. The hash is of the part that shows the
    original, without a crawler's padding.

    Raises:
        RunError: more than ``max_failed`` parts failed (one fails if more than half of its samples
            have no image), or no image can be compared.
    """
    jobs = [ShardJob(images.path(part), part) for part in images.parts]
    work = partial(_hash_part, images=images, out=str(out))
    fingerprint_of = partial(_fingerprint_of, images=images)
    report = run_shards(STAGE, jobs, out, work, options, fingerprint_of=fingerprint_of, advances=True)
    return report.require_usable()


def _fingerprint_of(job: ShardJob, *, images: ImageSet) -> str:
    return fingerprint(STAGE, version=HASH_VERSION, config={}, inputs={"images": images.digest(job.name)})


def _hash_part(job: ShardJob, *, queue: WorkQueue, images: ImageSet, out: str) -> ShardReport:
    problems, samples, seen = TarProblems(), Tally(), 0
    before: tuple[bytes | None, tuple[Any, ...]] = (None, ())
    resized: Counter[str] = Counter()
    rows: dict[str, list[Any]] = {name: [] for name in HASHES.names}
    for image in images.images(job.name, problems):
        seen += 1
        if seen % PROGRESS_EVERY == 0:
            queue.advance(PROGRESS_EVERY, "images")
        try:
            # an image with several captions occurs once for each, in a row
            same = image.data is not None and image.data == before[0]
            values = before[1] if same else _hashed(image, resized)
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
    unread = {reason: n for reason, n in samples.dropped.items() if reason in UNREAD}
    if sum(unread.values()) > MAX_UNREAD_SHARE * seen or (not seen and problems.counts):
        raise RunError(
            f"{job.path}: {sum(unread.values())} of {seen} samples have no image that can be read "
            f"({unread or problems.counts}); the first: {problems.notes[0]}"
        )
    name = f"{job.name}.parquet"
    footer = {"stage": STAGE, "fingerprint": job.fingerprint, "version": str(HASH_VERSION)}
    output = write_table(join(out, name), pa.table(rows, schema=HASHES), HASHES, footer)
    return job.report(STAGE, {name: output}, {"samples": samples}, numbers=dict(resized), problems=problems)


def _hashed(image: SetImage, resized: Counter[str]) -> tuple[Any, ...]:
    """Return the words of an image's hash, and its digest. Counts images that are PADDED,
    CROPPED or SQUARE.

    Raises:
        ImageError: the image is missing, broken or a ``flat_image``.
    """
    if image.data is None:
        assert image.problem is not None
        raise image.problem
    size = image_size(image.data)
    shape = image.original or size
    # of a padded square the original may be a narrow part
    side = DECODED_SIDE * (min(4, -(-max(shape) // min(shape))) if shape != size else 2 if size[0] == size[1] else 1)
    picture = open_image(image.data, at_least=(side, side))
    try:
        part = shown_part(picture, size, image.original)
    except ImageError:
        part = WHOLE
        resized[CROPPED] += 1
    if part == WHOLE and image.original is None and size[0] == size[1]:
        resized[SQUARE] += 1
    if part != WHOLE:
        resized[PADDED] += 1
        width, height = picture.size
        picture = picture.crop(
            (round(part[0] * width), round(part[1] * height), round(part[2] * width), round(part[3] * height))
        )
    perceived = hash_image(picture)
    if perceived.flat:
        raise ImageError("flat_image", "one colour, or little more")
    digest = int.from_bytes(hashlib.blake2b(image.data, digest_size=8).digest(), "big")
    return (*perceived.words.tolist(), digest)
