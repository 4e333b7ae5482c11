"""ingest: convert human-labelled sets, in their published formats, to training shards.

A set's annotation files are read once, into an index on disk; its shards are then written one by
one, with the images' bytes unchanged. Neither all labels nor all images of a set are in memory at
once.
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
from pipeline.readers.absence import merged, presence_of, uncertain_spans
from pipeline.readers.base import CUT, LEFT_OUT, LISTED_TWICE, UNREADABLE, Kind, LabelledImage, SetFiles, build_index
from pipeline.readers.image_headers import ImageHeader, on_stored_image, read_header, upright_regions
from pipeline.readers.image_store import ImageStore
from pipeline.readers.index import IdRange, IndexReader
from pipeline.readers.registry import READERS, load_format
from pipeline.readers.renaming import ClassRenaming
from pipeline.stages.ingest_losses import REGIONS_CUT, Oddities, doubts, refuse_losses
from pipeline.stages.jobs import Ingest

STAGE = "ingest"
CONVERSION_VERSION = 3
"""Version of the conversion of labels to records. 2: classes whose box was unusable are not absent.
3: MDETR's images without annotations are left out; corners of GLIP's caption records end behind
their last pixel.
"""
_SLOW_BYTES = 64 << 20
"""Size of annotation files from which reading takes a while."""
log = logging.getLogger("glip_self_train")


@dataclass(frozen=True)
class SetWork:
    """Description of a set for its workers. ``parts``: the images of each shard."""

    name: str
    format: str
    kind: Kind
    config: IngestConfig
    index: str
    images: ImageStore
    orientation: Literal["upright", "stored"]
    parts: tuple[IdRange, ...]
    out: str
    renaming: ClassRenaming | None


def run(job: Ingest) -> StageReport:
    """Write ``<set>-000003.tar`` and ``<set>.dataset.json`` for every labelled set of a manifest.

    The manifest is a YAML file or a name that ``datasets list`` shows; it may be a mixture of
    others.

    Raises:
        InputError: the manifest or an annotation file is wrong; nothing is written for that set.
        RunError: more than ``config.max_failed_share`` of a set's images are lost, or shards
            failed.
    """
    manifest, only = job.manifest, job.only
    sets = read_manifest(manifest, only)
    base = job.root if job.root is not None else "." if is_name(manifest) else str(Path(manifest).parent)
    chosen = {name: entry for name, entry in sets.items() if entry.labelled or only is not None}
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
    folders = _image_folders(base, entry.images_folder)
    files = SetFiles(
        name,
        resolve_path(base, entry.annotations),
        {role: resolve_path(base, path) for role, path in entry.companions.items()},
        entry.options,
        tuple(folders.values()) if isinstance(folders, dict) else folders,
    )
    format_ = load_format(entry.format)
    with tempfile.TemporaryDirectory(prefix="glip-self-train-") as folder:
        path = str(Path(folder) / "index")
        slow = not is_url(files.annotations) and (file_size(files.annotations) or 0) > _SLOW_BYTES
        log.log(logging.INFO if slow else logging.DEBUG, "%s: reading %s", name, files.annotations)
        build_index(format_, files, path)
        index = IndexReader(path)
        if not index.images:
            raise InputError(f"{files.annotations}: want {format_.reads}; found no image in it")
        header, renaming = index.header, None
        if entry.names:
            if format_.kind != "detection":
                raise InputError(f"set {name}: names are of detection sets; found a {format_.kind} set")
            renaming = ClassRenaming.of(entry.names, header.get("label_space") or (), f"set {name}")
            header = renaming.header(header)
        work = SetWork(
            name, entry.format, format_.kind, config, path, ImageStore(folders),
            entry.orientation, tuple(index.ranges(config.samples_per_shard)), out, renaming,
        )  # fmt: skip
        settings = {"dataset": name, "labels": index.digest, "orientation": entry.orientation}
        settings["options"] = digest_json(entry.options)
        if entry.names:
            settings["names"] = digest_json(entry.names)
        fingerprint_of = partial(_fingerprint_of, work=work, settings=settings)
        jobs = [ShardJob(files.annotations, f"{name}-{n:06d}") for n in range(len(work.parts))]
        report = run_shards(STAGE, jobs, out, partial(_ingest_shard, work=work), job, fingerprint_of=fingerprint_of)
        index.close()
        _index.cache_clear()
    folded = Counter(class_name.casefold() for class_name in header.get("label_space") or ())
    if same := [class_name for class_name, n in folded.items() if n > 1]:
        log.warning(
            "%s: classes that differ in case alone, each taught as absent beside the other: %s", name, same[:10]
        )
    for note in header.get("notes", ()):
        log.warning("%s: %s", name, note)
    refuse_losses(config, name, report, out)
    for warning in doubts(report, format_.kind):
        log.warning("%s: %s", name, warning)
    _remove_beyond(len(work.parts), name, out)
    names = header.get("label_space") or ()
    for unknown in entry.class_prompts.keys() - {*names}:
        log.warning("%s: class_prompts: found %r; want one of %s", name, unknown, ", ".join(names) or "no class")
    card = DatasetCard(
        name=name, kind=format_.kind, label_space=header.get("label_space"), frequency=header.get("frequency"),
        class_prompts={n: entry.class_prompts[n] for n in names if n in entry.class_prompts} or None,
        licence=entry.licence, source=entry.source,
    )  # fmt: skip
    write_json(join(out, f"{name}.dataset.json"), card.model_dump(mode="json", exclude_none=True))
    return report


def _remove_beyond(count: int, name: str, out: str) -> None:
    """Remove the shards from number ``count`` on: an earlier ingest into more shards wrote them."""

    def beyond(shard: str) -> bool:
        number = re.fullmatch(rf"{re.escape(name)}-(\d{{6,}})", shard)
        return number is not None and int(number[1]) >= count

    for shard in remove_stale(STAGE, out, beyond):
        log.warning("%s: removed %s.tar of an earlier ingest; the set has %d shards now", name, shard, count)


def _image_folders(base: str, folder: str | list[str] | dict[str, str] | None) -> tuple[str, ...] | dict[str, str]:
    """Resolve a set's image folders against ``base``.

    Raises:
        InputError: none of them exists.
    """
    folders: tuple[str, ...] | dict[str, str]
    if isinstance(folder, dict):
        folders = {name: resolve_path(base, path) for name, path in folder.items()}
    else:
        folders = tuple(resolve_path(base, f) for f in ([folder] if isinstance(folder, str) else folder or ["."]))
    paths = [*folders.values()] if isinstance(folders, dict) else folders
    if not any(is_url(path) or Path(path).is_dir() for path in paths):
        raise InputError(
            f"images_folder: {', '.join(paths)}: no such folder; it is relative to --root, or to the manifest's folder"
        )
    return folders


@lru_cache(maxsize=2)
def _index(path: str) -> IndexReader:
    """Open a set's index, once per process."""
    return IndexReader(path)


def _number(job: ShardJob) -> int:
    return int(job.name.rsplit("-", 1)[1])


def _fingerprint_of(job: ShardJob, *, work: SetWork, settings: Mapping[str, str]) -> str:
    """Return a shard's fingerprint.

    Images enter by name and size: hashing them all would cost as much as ingesting the set. Images
    at URLs enter by name, as a request for each size would cost as much too.
    """
    location_of, sizes = load_format(work.format).location, {}
    for number, image in _index(work.index).images_of(work.parts[_number(job)]):
        location = location_of(number, image)
        sizes[f"{location.file} {location.offset}"] = work.images.size(location)
    inputs = {"images": digest_json(sizes)}
    return fingerprint(
        STAGE, version=RECORD_VERSION, config=work.config, inputs=inputs, start=str(_number(job)),
        made=str(CONVERSION_VERSION), **settings,
    )  # fmt: skip


class _Counts:
    """Counts of a tally, without pydantic's checks at every change."""

    def __init__(self) -> None:
        self.kept = 0
        self.cut = 0
        self.dropped: Counter[str] = Counter()

    def tally(self) -> Tally:
        """Return the checked tally."""
        dropped = {reason: n for reason, n in self.dropped.items() if n}
        return Tally(seen=self.kept + sum(dropped.values()), kept=self.kept, dropped=dropped)


def _ingest_shard(job: ShardJob, *, work: SetWork) -> ShardReport:
    format_, index = load_format(work.format), _index(work.index)
    samples, regions, notes, odd = _Counts(), _Counts(), list[str](), Oddities()
    if _number(job) == 0:  # with what the set has lost as a whole
        samples.dropped.update(index.header.get("lost_samples", {}))
        samples.dropped["duplicate_key"] += index.header.get("duplicates", 0)
        samples.dropped[LISTED_TWICE] += index.header.get("twins", 0)
        regions.dropped.update({**index.header.get("lost", {}), **index.orphan_annotations()})
        notes += index.header.get("notes", ())

    def items() -> Iterator[LabelledImage]:
        for entry in index.entries(work.parts[_number(job)]):
            try:
                item = format_.labelled(entry, index.header)
                for twin in entry.twins:
                    other = format_.labelled(twin, index.header)
                    item = merged(item, other) if item is not None and other is not None else item or other
            except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:  # malformed labels
                samples.dropped["bad_labels"] += 1
                notes.append(f"image {entry.id}: {type(error).__name__}: {str(error).splitlines()[0]}")
                continue
            if item is None:
                samples.dropped[LEFT_OUT] += 1
            else:
                yield item if work.renaming is None else work.renaming.apply(item)

    def records() -> Iterator[tuple[str, Mapping[str, bytes]]]:
        to_read, to_locate = tee(items())
        for item, read in zip(to_read, work.images.reading(item.location for item in to_locate)):
            files = _sample(item, read, work, samples, regions, notes, odd)
            if files is not None:
                yield item.key, files

    file = f"{job.name}.tar"
    output = write_tar(join(work.out, file), records())
    tallies = {"samples": samples.tally(), "regions": regions.tally()}
    numbers = ({REGIONS_CUT: float(regions.cut)} if regions.cut else {}) | odd.numbers()
    return job.report(STAGE, {file: output}, tallies, numbers=numbers, notes=notes)


def _sample(
    item: LabelledImage,
    read: Callable[[], bytes],
    work: SetWork,
    samples: _Counts,
    regions: _Counts,
    notes: list[str],
    odd: Oddities,
) -> dict[str, bytes] | None:
    """Return an image's files in the shard; if it is lost, count the reason and return None."""
    outside = Counter[str]()  # of the image's actual size; readers that know a stated size have counted before
    lost = {reason: n for reason, n in item.lost.items() if reason != CUT}
    if lost:
        examples = getattr(item.lost, "examples", {})
        for reason in sorted((UNREADABLE | {"box_outside_image"}) & examples.keys() - regions.dropped.keys()):
            notes.append(f"{item.location.file}: {reason}: {examples[reason]}")
        regions.dropped.update(lost)
        if not item.regions and UNREADABLE & lost.keys():  # it would teach that its objects are absent
            samples.dropped["no_usable_region"] += 1
            shown = "".join(f"; {reason}: {text}" for reason, text in examples.items() if reason in UNREADABLE)
            notes.append(f"{item.location.file}: none of its regions can be used ({lost}{shown})")
            return None
    try:
        data = read()
        header = read_header(data)
        if work.config.check_images == "decode":
            open_image(data)
        if item.crawled:
            item = on_stored_image(item, header, data)
        kept, dropped = upright_regions(item, header, work.orientation, outside)
        absent, not_exhaustive = presence_of(item, dropped)
        record = GroundingRecord(
            key=item.key, dataset=work.name, kind=work.kind, image_size=header.upright, caption=item.caption,
            regions=tuple(kept), uncertain=uncertain_spans(item, kept, dropped), verified_absent=absent,
            not_exhaustive=not_exhaustive,
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
    odd.look(kept, header.upright, item.caption)
    regions.cut += item.lost.get(CUT, 0) + outside.pop(CUT, 0)
    regions.dropped.update(outside)
    return {_extension(item.location.file, header): data, "json": text}


def _extension(file: str, header: ImageHeader) -> str:
    """Return the file's own extension if it fits the content (.jpeg stays), else the content's."""
    named = file.rsplit(".", 1)[-1].lower() if "." in file else ""
    return named if named in {header.extension, *(["jpeg"] if header.extension == "jpg" else [])} else header.extension
