"""export: convert records to the formats of other trainers and viewers; the inverse of ingest.

Shards are streamed, so that memory does not grow with their number. Images are copied unchanged,
each to a unique name; the files that refer to them appear after all images, and the report last.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
from pipeline.io.paths import is_hidden, is_url, join
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
"""File with the fingerprint of an unfinished export; removed when the report is written."""
_PROGRESS_EVERY = 100

log = logging.getLogger("glip_self_train")


def run(job: ExportLabels) -> Exported:
    """Write training shards or a label store in the format ``to`` into the folder or URL ``out``.

    ``phrases``, ``crawl`` and ``dataset`` are for a label store
    (:func:`pipeline.writers.sources.find_source`). ``drop_empty`` leaves out images without a
    label, counted as ``no_region``.

    Raises:
        InputError: an unknown format, unusable inputs, options of other formats or inputs, another
            export in ``out``, or no record to write.
    """
    out, to, progress = job.out.rstrip("/"), job.to, job.progress
    make_target = load_target(to)
    if job.class_names is not None and to not in ("yolo", "coco", "voc"):
        raise InputError(f"--classes is of yolo, coco and voc, which have classes; {to} holds the phrases as they are")
    if job.val_share is not None and to != "yolo":
        raise InputError(f"--val-share is of yolo, whose data.yaml names a validation split; found --to {to}")
    if job.image_root is not None and to != "label-studio":
        raise InputError(f"--image-root is of label-studio, whose tasks state addresses of images; found --to {to}")
    source = find_source(
        job.dirs, phrases=job.phrases, crawl=job.crawl, dataset=job.dataset, images=job.images == "copy",
        verdicts=job.verdicts,
    )  # fmt: skip
    copy = source.images if job.images is None else job.images == "copy"
    cards = source.cards()
    settings: dict[str, Any] = {
        "to": to, "images": copy, "dataset": job.dataset or DATASET,
        "class_names": job.class_names or "phrase",
        "drop_empty": job.drop_empty, "shards": source.names,
        "cards": {name: card.model_dump(mode="json") for name, card in cards.items()},
    }  # fmt: skip
    if to == "coco" and job.class_names is not None:
        settings["by_class"] = True
    if job.val_share is not None:
        settings["val_share"] = job.val_share
    if to == "label-studio":
        settings["image_root"] = job.image_root or out  # which the default is made of
    mark = fingerprint(STAGE, version=VERSION, config=settings, inputs=source.digests())
    if (done := committed(out, STAGE, mark)) is not None:
        report = StageReport.of(STAGE, [done])
        report.done, report.skipped = 0, len(source.names)
        return Exported(report, ())
    if job.check_only:
        raise WorkLeft
    resumed = _begin(out, mark)
    progress.begin(STAGE, len(source.names))
    report = StageReport(stage=STAGE)
    try:
        with Sink(out) as sink, UniqueNames() as names:
            context, losses = (
                ExportContext(sink, names, cards, job.class_names, job.val_share, job.image_root),
                ReadLosses(),
            )
            target = make_target(context)
            image_of = partial(_copy, out=out, resumed=resumed, write=not target.takes_images) if copy else _no_image
            samples = _samples(job, source, losses, context, target.folder, mark)
            notes = _write(target, context, ordered_map(image_of, samples, writer_threads(out)), progress)
            context.samples.add(losses.samples)
            context.regions.add(losses.regions)
            if not context.samples.kept:
                dropped = context.samples.dropped
                why = ", ".join(f"{reason} {n:,}" for reason, n in dropped.items()) or "there are none"
                advice = "; GLIP reads detection sets as COCO JSON: --to coco" if "detection_record" in dropped else ""
                raise InputError(f"{', '.join(job.dirs)}: no record to write as {to} ({why}){advice}")
            sync_all(out)
            outputs = sink.commit()
        if to != "coco":
            context.numbers["lost_frequency"] += sum(len(card.frequency or ()) for card in cards.values())
        numbers = losses.problems.counts | context.numbers | losses.decided
        shard = ShardReport(
            stage=STAGE, shard=STAGE, fingerprint=mark, outputs=outputs,
            tallies={"samples": context.samples, "regions": context.regions},
            numbers={name: float(n) for name, n in sorted(numbers.items()) if n},
            notes=[*losses.problems.notes, *notes][:MAX_NOTES],
        )  # fmt: skip
        commit_report(out, shard)
        remove(join(out, BEGUN))
        report = StageReport.of(STAGE, [shard])
        report.done = len(source.names)
    except BaseException:
        with suppress(Exception):  # a failed export that wrote nothing leaves its folder to others
            if listing_below(out, "") == [BEGUN]:
                remove(join(out, BEGUN))
        raise
    finally:
        progress.end(report)
    for note in shard.notes:
        log.warning("%s", note)
    return Exported(report, tuple(target.hints(out)))


def _begin(out: str, mark: str) -> bool:
    """Prepare ``out`` for this export. Returns whether it was begun there before.

    Raises:
        InputError: the folder holds another export, whose images would stay among these, or other
            files.
    """
    begun = (read_bytes(join(out, BEGUN)) or b"").decode(errors="replace").strip()
    before = read_report(out, STAGE)
    for other, state in ((begun, "begun"), (before.fingerprint if before else "", "there")):
        if other and other != mark:
            raise InputError(
                f"{out}: another export is {state} (other labels or settings); want a new folder, or remove it"
            )
    if not begun and before is None and (files := [p for p in listing(out, "") if not is_hidden(p.rsplit("/", 1)[-1])]):
        raise InputError(
            f"{out}: has files that are of no export, first {files[0].rsplit('/', 1)[-1]}; want a new or empty folder"
        )
    if before is not None:
        remove(report_path(out, STAGE))  # invalid until it is written again
    if not is_url(out):
        Path(out).mkdir(parents=True, exist_ok=True)
        clear_temporaries(out)
    write_atomic(join(out, BEGUN), mark + "\n")
    return bool(begun or before)


def _samples(
    job: ExportLabels, source: Source, losses: ReadLosses, context: ExportContext, folder: str, mark: str
) -> Iterator[tuple[Item, Sample]]:
    """Yield the records to export with their samples; report each shard that is read."""
    for number, name in enumerate(source.names):
        if not is_url(job.out):
            clear_temporaries(join(job.out, f"{folder}/{name}"))
        for sample in source.read(number, losses):
            if job.drop_empty and not any(not region.ignore for region in sample.record.regions):
                context.samples.drop("no_region")
                context.regions.drop("no_region", len(sample.record.regions))
                continue
            yield Item(sample.record, f"{folder}/{name}/{sample.key}.{sample.extension}"), sample
        job.progress.shard(ShardReport(stage=STAGE, shard=name, fingerprint=mark), skipped=False)


class _Image(NamedTuple):
    """A copied image. problem: name, to count, of a problem for other readers; note: details."""

    data: bytes | None = None
    problem: str = ""
    note: str = ""


def _no_image(_: tuple[Item, Sample]) -> _Image:
    return _Image()


def _copy(item_and_sample: tuple[Item, Sample], *, out: str, resumed: bool, write: bool) -> _Image:
    """Read an image, check its header, and with ``write`` write its file; called in threads.

    resumed: files of the right size are kept, as an earlier attempt wrote them.
    """
    item, sample = item_and_sample
    assert sample.image is not None
    data, size = sample.image(), sample.record.image_size
    path = join(out, item.file)
    if write and not (resumed and file_size(path) == len(data)):
        write_atomic(path, data, durable=False)
    try:
        header = read_header(data)
    except ImageError as error:
        return _Image(data, f"images_{error.reason}", str(error))
    if header.upright != size:
        note = f"{header.upright} pixels high and wide; its record says {size}"
        return _Image(data, "images_of_another_size", note)
    return _Image(data, "images_with_exif_orientation" if header.orientation != 1 else "")


def _write(
    target: Target, context: ExportContext, copied: Iterable[tuple[tuple[Item, Sample], _Image]], progress: Progress
) -> list[str]:
    """Pass the records to the target and count image problems. Returns the first few notes."""
    notes: list[str] = []
    for n, ((item, _), image) in enumerate(copied, 1):
        before = context.samples.kept
        target.add(item, image.data if target.takes_images else None)
        if context.samples.kept > before or not target.takes_images:  # else the image is not in the export
            context.numbers["images_copied"] += image.data is not None
            if image.problem:
                context.numbers[image.problem] += 1
            if image.note and len(notes) < MAX_NOTES:
                notes.append(f"{item.file}: {image.note}")
        if n % _PROGRESS_EVERY == 0:
            progress.advance(_PROGRESS_EVERY)
    target.finish()
    return notes
