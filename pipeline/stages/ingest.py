"""ingest: human-labelled sets, as their owners publish them, into training shards of one record.

A set's label files are read once, into an index on disk; its shards are then made one by one, each image's bytes copied as
they are. Neither the labels nor the images of a set are ever in memory together.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import tee
from pathlib import Path
from typing import Literal

from pipeline.config import IngestConfig
from pipeline.data.images import ImageError, open_image
from pipeline.data.manifests import LABELLED_KINDS, SetManifest, is_name, read_manifest
from pipeline.data.records import RECORD_VERSION, DatasetCard, GroundingRecord
from pipeline.errors import InputError
from pipeline.execution.reports import ShardReport, StageReport, Tally
from pipeline.execution.run import run_shards
from pipeline.execution.stale_outputs import remove_stale
from pipeline.execution.worker import ShardJob
from pipeline.io.atomic import write_json
from pipeline.io.files import file_size
from pipeline.io.hashing import digest_json, fingerprint
from pipeline.io.paths import is_url, join, resolve_path
from pipeline.io.tars import write_tar
from pipeline.readers.base import (
    CUT,
    LEFT_OUT,
    UNREADABLE,
    Kind,
    LabelledImage,
    SetFiles,
    build_index,
    presence_of,
    uncertain_spans,
)
from pipeline.readers.image_headers import ImageHeader, read_header, upright_regions
from pipeline.readers.image_store import ImageStore
from pipeline.readers.index import IdRange, IndexReader
from pipeline.readers.registry import READERS, load_format
from pipeline.stages.ingest_losses import REGIONS_CUT, cut_boxes, refuse_losses
from pipeline.stages.jobs import Ingest

STAGE = "ingest"
MADE = 3
"""How records are made of labels; 2: classes whose box was of no use are not taught as absent; 3: MDETR's images without annotations are
left out, corners of GLIP's caption records end behind their last pixel."""
log = logging.getLogger("glip_self_train")


@dataclass(frozen=True)
class SetWork:
    """What a worker needs to know to make any shard of a set. ``parts``: the images of every shard."""

    name: str
    format: str
    kind: Kind
    config: IngestConfig
    index: str
    images: ImageStore
    orientation: Literal["upright", "stored"]
    parts: tuple[IdRange, ...]
    out: str


def run(job: Ingest) -> StageReport:
    """Write ``out/<set>-000003.tar`` with ``out/<set>.dataset.json`` for every labelled set of a manifest or mixture.

    The manifest is a YAML file, or the name of one of those that ``datasets list`` shows.

    Raises:
        InputError: a wrong manifest or label file; nothing is written for that set.
        RunError: more than ``config.max_failed_share`` of a set's images are lost, or shards failed.
    """
    manifest, only = job.manifest, job.only
    sets = read_manifest(manifest)
    base = job.root if job.root is not None else "." if is_name(manifest) else str(Path(manifest).parent)
    if only is not None and only not in sets:
        raise InputError(f"{manifest}: no set {only!r}; it has {', '.join(sets)}")
    chosen = {n: s for n, s in sets.items() if (s.labelled if only is None else n == only)}
    if not chosen:
        raise InputError(f"{manifest}: no labelled set in it (crawls need no ingest: the labelling stages read them)")
    total = StageReport(stage=STAGE)
    for name, entry in chosen.items():
        total.merge(_ingest_set(job, name, entry, base))
    return total


def _ingest_set(job: Ingest, name: str, entry: SetManifest, base: str) -> StageReport:
    config, out = job.settings, job.out
    if entry.format not in READERS or entry.kind not in LABELLED_KINDS or entry.annotations is None:
        raise InputError(
            f"set {name}: ingest reads {', '.join(READERS.names())} with `annotations`; "
            f"this one is {entry.kind} in format {entry.format}"
        )
    files = SetFiles(
        name,
        resolve_path(base, entry.annotations),
        {role: resolve_path(base, path) for role, path in entry.companions.items()},
        entry.options,
    )
    format_ = load_format(entry.format)
    with tempfile.TemporaryDirectory(prefix="glip-self-train-") as folder:
        path = str(Path(folder) / "index")
        log.log(_loudness(files.annotations), "%s: reading %s", name, files.annotations)
        build_index(format_, files, path)
        index = IndexReader(path)
        if not index.images:
            raise InputError(f"{files.annotations}: want {format_.reads}; found no image in it")
        work = SetWork(
            name, entry.format, format_.kind, config, path, ImageStore(_folders(base, entry.images_folder)), entry.orientation,
            tuple(index.ranges(config.samples_per_shard)), out,
        )  # fmt: skip
        settings = {"dataset": name, "labels": index.digest, "orientation": entry.orientation}
        settings["options"] = digest_json(entry.options)
        fingerprint_of = partial(_fingerprint_of, work=work, settings=settings)
        jobs = [ShardJob(files.annotations, f"{name}-{n:06d}") for n in range(len(work.parts))]
        report = run_shards(STAGE, jobs, out, partial(_ingest_shard, work=work), job, fingerprint_of=fingerprint_of)
        lost = {**index.header.get("lost", {}), **index.orphan_annotations()}
        header = index.header
        index.close()
        _index.cache_clear()
    if lost:
        report.tallies.setdefault("regions", Tally()).add(_losses(lost))
    gone = Counter(header.get("lost_samples", {}))
    gone["duplicate_key"] += header.get("duplicates", 0)
    for reason, n in gone.items():
        if n:
            report.tallies.setdefault("samples", Tally()).drop(reason, n)
    for note in header.get("notes", ()):
        log.warning("%s: %s", name, note)
    refuse_losses(config, name, report, out)
    if doubt := cut_boxes(report):
        log.warning("%s: %s", name, doubt)
    _remove_beyond(len(work.parts), name, out)
    card = DatasetCard(
        name=name, kind=format_.kind, label_space=header.get("label_space"), frequency=header.get("frequency"),
        licence=entry.licence, source=entry.source,
    )  # fmt: skip
    write_json(join(out, f"{name}.dataset.json"), card.model_dump(mode="json", exclude_none=True))
    return report


def _loudness(path: str) -> int:
    """Worth telling if it takes a while."""
    return (
        logging.INFO
        if not is_url(path) and Path(path).is_file() and (file_size(path) or 0) > 64 << 20
        else logging.DEBUG
    )


def _remove_beyond(count: int, name: str, out: str) -> None:
    """Remove shards of an earlier ingest into more of them, whose samples the first ``count`` hold again."""

    def beyond(shard: str) -> bool:
        number = re.fullmatch(rf"{re.escape(name)}-(\d{{6,}})", shard)
        return number is not None and int(number[1]) >= count

    for shard in remove_stale(STAGE, out, beyond):
        log.warning("%s: removed %s.tar of an earlier ingest; the set has %d shards now", name, shard, count)


# --- where things lie


def _folders(base: str, folder: str | list[str] | dict[str, str] | None) -> tuple[str, ...] | dict[str, str]:
    found: tuple[str, ...] | dict[str, str]
    if isinstance(folder, dict):
        found = {name: resolve_path(base, path) for name, path in folder.items()}
    else:
        found = tuple(resolve_path(base, f) for f in ([folder] if isinstance(folder, str) else folder or ["."]))
    paths = [*found.values()] if isinstance(found, dict) else found
    if not any(is_url(path) or Path(path).is_dir() for path in paths):
        raise InputError(
            f"images_folder: {', '.join(paths)}: no such folder; it is relative to --root, or to the manifest's folder"
        )
    return found


@lru_cache(maxsize=2)
def _index(path: str) -> IndexReader:
    """Opened once a process."""
    return IndexReader(path)


def _number(job: ShardJob) -> int:
    return int(job.name.rsplit("-", 1)[1])


def _fingerprint_of(job: ShardJob, *, work: SetWork, settings: Mapping[str, str]) -> str:
    """The fingerprint of a shard, when its turn comes.

    Sizes stand in for the images' digests: hashing every image of a set would cost as much as ingesting it. Objects behind
    URLs are taken by their names, as a request for each would cost as much too.
    """
    location_of, sizes = load_format(work.format).location, {}
    for number, image in _index(work.index).images_of(work.parts[_number(job)]):
        where = location_of(number, image)
        sizes[f"{where.file} {where.offset}"] = work.images.size(where)
    inputs = {"images": digest_json(sizes)}
    return fingerprint(
        STAGE,
        version=RECORD_VERSION,
        config=work.config,
        inputs=inputs,
        start=str(_number(job)),
        made=str(MADE),
        **settings,
    )


# --- one shard


class Counts:
    """A tally in the making: pydantic checks every change of one, which costs more here than what is counted."""

    def __init__(self) -> None:
        self.kept = 0
        self.cut = 0
        self.dropped: Counter[str] = Counter()

    def tally(self) -> Tally:
        """Checked and sorted."""
        dropped = {reason: n for reason, n in self.dropped.items() if n}
        return Tally(seen=self.kept + sum(dropped.values()), kept=self.kept, dropped=dropped)


def _ingest_shard(job: ShardJob, *, work: SetWork) -> ShardReport:
    format_, index = load_format(work.format), _index(work.index)
    samples, regions, notes = Counts(), Counts(), list[str]()

    def items() -> Iterator[LabelledImage]:
        for entry in index.entries(work.parts[_number(job)]):
            try:
                item = format_.labelled(entry, index.header)
            except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:  # of another shape than any
                samples.dropped["bad_labels"] += 1
                notes.append(f"image {entry.id}: {type(error).__name__}: {str(error).splitlines()[0]}")
                continue
            if item is None:
                samples.dropped[LEFT_OUT] += 1
            else:
                yield item

    def records() -> Iterator[tuple[str, Mapping[str, bytes]]]:
        ones, twins = tee(items())
        for item, read in zip(ones, work.images.reading(item.location for item in twins)):
            made = _sample(item, read, work, samples, regions, notes)
            if made is not None:
                yield item.key, made

    file = f"{job.name}.tar"
    output = write_tar(join(work.out, file), records())
    tallies = {"samples": samples.tally(), "regions": regions.tally()}
    numbers = {REGIONS_CUT: float(regions.cut)} if regions.cut else {}
    return job.report(STAGE, {file: output}, tallies, numbers=numbers, notes=notes)


def _sample(
    item: LabelledImage, read: Callable[[], bytes], work: SetWork, samples: Counts, regions: Counts, notes: list[str]
) -> dict[str, bytes] | None:
    """An image's files, or None, counted, if it is lost."""
    outside: Counter[str] = (
        Counter()
    )  # what is seen once the image is; readers that know its size have cut and counted before
    lost = {reason: n for reason, n in item.lost.items() if reason != CUT}
    if lost:
        regions.dropped.update(lost)
        if not item.regions and UNREADABLE & lost.keys():  # without any, it would teach that what is there is absent
            samples.dropped["no_usable_region"] += 1
            notes.append(f"{item.location.file}: none of its regions can be used ({lost})")
            return None
    try:
        data = read()
        header = read_header(data)
        if work.config.check_images == "decode":
            open_image(data)
        kept, gone = upright_regions(item, header, work.orientation, outside)
        absent, more = presence_of(item, gone)
        record = GroundingRecord(
            key=item.key, dataset=work.name, kind=work.kind, image_size=header.upright, caption=item.caption,
            regions=tuple(kept), uncertain=uncertain_spans(item, kept, gone), verified_absent=absent,
            not_exhaustive=more,
        )  # fmt: skip
        text = record.to_json()
    except (ImageError, ValueError) as error:  # pydantic's errors are ValueErrors, as are half surrogates
        reason = error.reason if isinstance(error, ImageError) else "bad_record"
        samples.dropped[reason] += 1
        regions.dropped["image_lost"] += len(item.regions)
        notes.append(f"{item.location.file}: {str(error).splitlines()[0]}")
        return None
    samples.kept += 1
    regions.kept += len(kept)
    regions.cut += item.lost.get(CUT, 0) + outside.pop(CUT, 0)
    regions.dropped.update(outside)
    return {_extension(item.location.file, header): data, "json": text}


def _extension(file: str, header: ImageHeader) -> str:
    """As the file is called, so that a JPEG stays .jpeg; what is called otherwise than it is goes by what it is."""
    named = file.rsplit(".", 1)[-1].lower() if "." in file else ""
    return named if named in {header.extension, *(["jpeg"] if header.extension == "jpg" else [])} else header.extension


def _losses(lost: Mapping[str, int]) -> Tally:
    return Tally(seen=sum(lost.values()), dropped=dict(lost))
