"""export: our records in the formats that others' trainers and viewers read; the inverse of ingest.

Shards are read one after the other and written as they come, so that memory does not grow with them. Images are copied as
they are, each under a name of its own; the files that name them appear when all images are there, and the report last.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.images import ImageError
from pipeline.errors import InputError
from pipeline.execution.commit import commit_report, committed, read_report, report_path
from pipeline.execution.options import WorkLeft
from pipeline.execution.progress import Progress
from pipeline.execution.reports import ShardReport, StageReport
from pipeline.execution.worker import MAX_NOTES
from pipeline.io.atomic import sync_all, write_atomic
from pipeline.io.files import file_size, listing, listing_below, read_bytes, remove
from pipeline.io.hashing import fingerprint
from pipeline.io.paths import is_url, join, stem
from pipeline.io.temporaries import clear_temporaries
from pipeline.readers.image_headers import read_header
from pipeline.stages.jobs import Exported, ExportLabels
from pipeline.writers.atomic_files import Sink
from pipeline.writers.base import ExportContext, Item, Target
from pipeline.writers.parallel_files import ordered_map, writer_threads
from pipeline.writers.registry import DATASET, load_target
from pipeline.writers.sources import ReadLosses, Sample, Source, find_source
from pipeline.writers.unique_keys import UniqueNames

STAGE = "export"
VERSION = 1
BEGUN = "export.begun"
"""Whose export is in the making in a folder; it is gone when the report is there."""
_STEP = 100

log = logging.getLogger("glip_self_train")


def run(job: ExportLabels) -> Exported:
    """Write training shards, or a label store, in the format ``to`` into ``out``, a folder or a URL.

    ``phrases``, ``crawl`` and ``dataset`` are of a label store (:func:`pipeline.writers.sources.find_source`).
    ``drop_empty`` leaves images without a label out, counted as ``no_region``.

    Raises:
        InputError: no such format, inputs that are none of ours, options that are for others, another export in ``out``, or no
            record to write.
    """
    out, to, progress, drop_empty = job.out.rstrip("/"), job.to, job.progress, job.drop_empty
    make = load_target(to)
    if job.class_names is not None and to != "yolo":
        raise InputError(f"--classes is of yolo, which knows classes only; {to} holds the phrases as they are")
    class_names = job.class_names or "phrase"
    source = find_source(
        job.dirs, phrases=job.phrases, crawl=job.crawl, dataset=job.dataset, images=job.images == "copy"
    )
    copy = source.images if job.images is None else job.images == "copy"
    cards = source.cards()
    settings = {
        "to": to, "images": copy, "dataset": job.dataset or DATASET, "class_names": class_names, "drop_empty": drop_empty, "shards": source.names,
        "cards": {name: card.model_dump(mode="json") for name, card in cards.items()},
    }  # fmt: skip
    mark = fingerprint(STAGE, version=VERSION, config=settings, inputs=source.digests())
    done = committed(out, STAGE, mark)
    if done is not None:
        report = StageReport.of(STAGE, [done])
        report.done, report.skipped = 0, len(source.names)
        return Exported(report, ())
    if job.check_only:
        raise WorkLeft
    again = _begin(out, mark)
    progress.begin(STAGE, len(source.names))
    report = StageReport(stage=STAGE)
    try:
        with Sink(out) as sink, UniqueNames() as names:
            context, found = ExportContext(sink, names, cards, class_names), ReadLosses()
            target = make(context)
            work = _Copier(out, again, write=not target.takes_images) if copy else _no_copy
            samples = _samples(source, found, context, drop_empty, out, target.folder, mark, progress)
            notes = _write(target, context, ordered_map(work, samples, writer_threads(out)), progress)
            context.samples.add(found.samples)
            context.regions.add(found.regions)
            _refuse_nothing(context, f"{', '.join(job.dirs)}: no record to write as {to}")
            sync_all(out)
            outputs = sink.commit()
        if to != "coco":
            context.numbers["lost_frequency"] += sum(len(card.frequency or ()) for card in cards.values())
        numbers = found.problems.counts | context.numbers
        shard = ShardReport(
            stage=STAGE, shard=STAGE, fingerprint=mark, outputs=outputs,
            tallies={"samples": context.samples, "regions": context.regions},
            numbers={name: float(n) for name, n in sorted(numbers.items()) if n},
            notes=[*found.problems.notes, *notes][:MAX_NOTES],
        )  # fmt: skip
        commit_report(out, shard)
        remove(join(out, BEGUN))
        report = StageReport.of(STAGE, [shard])
        report.done = len(source.names)
    except BaseException:
        _leave_if_empty(out)
        raise
    finally:
        progress.end(report)
    for note in shard.notes:
        log.warning("%s", note)
    return Exported(report, tuple(target.hints(out)))


def _write(
    target: Target, context: ExportContext, ready: Iterable[tuple[_Ready, _Copied]], progress: Progress
) -> list[str]:
    """Hand the records to the target, count what their images are like, and return the first few notes on those."""
    notes: list[str] = []
    for n, (one, copied) in enumerate(ready, 1):
        before = context.samples.kept
        target.add(one.item, copied.data if target.takes_images else None)
        if (
            context.samples.kept > before or not target.takes_images
        ):  # else the image of a record that it turned away is nowhere
            context.numbers["images_copied"] += copied.data is not None
            if copied.trouble:
                context.numbers[copied.trouble] += 1
            if copied.note and len(notes) < MAX_NOTES:
                notes.append(f"{one.item.file}: {copied.note}")
        if n % _STEP == 0:
            progress.advance(_STEP)
    target.finish()
    return notes


def _refuse_nothing(context: ExportContext, words: str) -> None:
    if not context.samples.kept:
        dropped = context.samples.dropped
        why = ", ".join(f"{reason} {n:,}" for reason, n in dropped.items()) or "there are none"
        advice = "; GLIP reads detection sets as COCO JSON: --to coco" if "detection_record" in dropped else ""
        raise InputError(f"{words} ({why}){advice}")


def _begin(out: str, mark: str) -> bool:
    """Take the folder for this export. Whether the same one was begun there before.

    Raises:
        InputError: the folder has another one, whose images would stay among these, or files of somebody's own.
    """
    begun = (read_bytes(join(out, BEGUN)) or b"").decode(errors="replace").strip()
    before = read_report(out, STAGE)
    for other, state in ((begun, "begun"), (before.fingerprint if before else "", "there")):
        if other and other != mark:
            raise InputError(
                f"{out}: another export is {state} (other labels or settings); want a new folder, or remove it"
            )
    if not begun and before is None and (found := [p for p in listing(out, "") if stem(p)]):
        raise InputError(
            f"{out}: has files that are of no export, first {found[0].rsplit('/', 1)[-1]}; want a new or empty folder"
        )
    if before is not None:
        remove(report_path(out, STAGE))  # what it says is not so, until it is written anew
    if not is_url(out):
        Path(out).mkdir(parents=True, exist_ok=True)
        clear_temporaries(out)
    write_atomic(join(out, BEGUN), mark + "\n")
    return bool(begun or before)


def _leave_if_empty(out: str) -> None:
    """An export that failed before it wrote anything keeps no other one out of its folder."""
    with suppress(Exception):  # what it failed of is what is to be told
        if listing_below(out, "") == [BEGUN]:
            remove(join(out, BEGUN))


@dataclass(frozen=True)
class _Ready:
    """A record with its place in the export, and its sample."""

    item: Item
    sample: Sample


def _samples(
    source: Source,
    found: ReadLosses,
    context: ExportContext,
    drop_empty: bool,
    out: str,
    folder: str,
    mark: str,
    progress: Progress,
) -> Iterator[_Ready]:
    for number, name in enumerate(source.names):
        if not is_url(out):
            clear_temporaries(join(out, f"{folder}/{name}"))
        for sample in source.read(number, found):
            if drop_empty and not any(not region.ignore for region in sample.record.regions):
                context.samples.drop("no_region")
                context.regions.drop("no_region", len(sample.record.regions))
                continue
            yield _Ready(Item(sample.record, f"{folder}/{name}/{sample.key}.{sample.extension}"), sample)
        progress.shard(ShardReport(stage=STAGE, shard=name, fingerprint=mark), skipped=False)


@dataclass(frozen=True)
class _Copied:
    """An image that is in its place, and what of it others may stumble over: a word to count, and a line for people."""

    data: bytes | None = None
    trouble: str = ""
    note: str = ""


def _no_copy(ready: _Ready) -> _Copied:
    """Labels only."""
    return _Copied()


@dataclass(frozen=True)
class _Copier:
    """Gets an image's bytes, writes them, and looks whether others will see it as we do; in several threads.

    again: what has the right size already is left, as an earlier try has put it there. write: make files of them.
    """

    out: str
    again: bool
    write: bool

    def __call__(self, ready: _Ready) -> _Copied:
        assert ready.sample.image is not None
        data, size = ready.sample.image(), ready.sample.record.image_size
        path = join(self.out, ready.item.file)
        if self.write and not (self.again and file_size(path) == len(data)):
            write_atomic(path, data, durable=False)
        try:
            header = read_header(data)
        except ImageError as error:
            return _Copied(data, f"images_{error.reason}", str(error))
        if header.upright != size:
            return _Copied(
                data, "images_of_another_size", f"{header.upright} pixels high and wide; its record says {size}"
            )
        return _Copied(data, "images_with_exif_orientation" if header.orientation != 1 else "")
