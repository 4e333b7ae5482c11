"""Copy shards without the samples of a list; everything else stays as it is."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from pipeline.data.image_links import linked_path
from pipeline.data.records import RECORD_VERSION, ImageLink
from pipeline.dedup.exclusion_list import ExclusionList
from pipeline.errors import InputError
from pipeline.execution.options import ShardOptions
from pipeline.execution.reports import ShardReport, StageReport, Tally
from pipeline.execution.run import run_shards
from pipeline.execution.stale_outputs import remove_stale
from pipeline.execution.worker import ShardJob
from pipeline.io.atomic import write_atomic
from pipeline.io.files import listing, read_bytes, require_files
from pipeline.io.hashing import digest_file, fingerprint
from pipeline.io.paths import is_hidden, is_url, join, parent, stem
from pipeline.io.samples import read_samples
from pipeline.io.tars import TarProblems, write_tar

STAGE = "drop-samples"
log = logging.getLogger("glip_self_train")


def run(
    shards: Sequence[str],
    out: str | Path,
    *,
    without: ExclusionList,
    reason: str,
    failed: Collection[str] = (),
    options: ShardOptions = ShardOptions(),
) -> StageReport:
    """Write every shard without the listed samples, counted under ``reason``, to ``out``.

    The sets' ``dataset.json`` are copied, and links to images keep their targets. Outputs of an
    earlier run for shards that are not among these are removed, with a warning, as ``out`` is read
    as a whole.

    Args:
        failed: names of shards that are missing in ``shards`` because they failed; their earlier
            outputs stay.
    """
    require_files(shards)
    work = partial(_drop, out=str(out), without=without, reason=reason)
    jobs = [ShardJob(shard, stem(shard)) for shard in shards]
    fingerprint_of = partial(_fingerprint_of, without=without, reason=reason)
    report = run_shards(STAGE, jobs, out, work, options, fingerprint_of=fingerprint_of)
    known = {job.name for job in jobs} | set(failed)
    for shard in remove_stale(STAGE, out, lambda shard: shard not in known):
        log.warning("%s: removed %s.tar of an earlier run; that shard is not among these", out, shard)
    for folder in sorted({parent(shard) for shard in shards}):
        for card in listing(folder, "dataset.json"):
            name = card.rsplit("/", 1)[-1]
            if not is_hidden(name) and (data := read_bytes(card)) is not None:
                write_atomic(join(out, name), data)
    return report


def _fingerprint_of(job: ShardJob, *, without: ExclusionList, reason: str) -> str:
    inputs = {"shard": digest_file(job.path)}
    return fingerprint(
        STAGE, version=RECORD_VERSION, config={"reason": reason}, inputs=inputs, **without.fingerprint_of(job.name)
    )


def _drop(job: ShardJob, *, out: str, without: ExclusionList, reason: str) -> ShardReport:
    samples, problems, unwanted = Tally(), TarProblems(), without.of(job.name)

    def kept() -> Iterator[tuple[str, Mapping[str, bytes]]]:
        for sample in read_samples(job.path, problems):
            if sample.key in unwanted:
                samples.drop(reason)
                continue
            samples.keep()
            files = sample.files
            if "link" in files:
                files = {**files, "link": _moved_link(files["link"], job.path, out)}
            yield sample.key, files

    name = f"{job.name}.tar"
    output = write_tar(join(out, name), kept())
    return job.report(STAGE, {name: output}, {"samples": samples}, problems=problems)


def _moved_link(data: bytes, shard: str, out: str) -> bytes:
    """Rewrite a link of ``shard`` to be relative to ``out``."""
    link = ImageLink.model_validate_json(data)
    path = linked_path(shard, link)
    if is_url(out) and not is_url(path):
        raise InputError(f"{shard}: a link from {out} cannot lead to a local file; want both local, or both URLs")
    if not is_url(path) and not os.path.isabs(link.shard):
        path = os.path.relpath(path, out)
    return link.model_copy(update={"shard": path}).model_dump_json().encode()
