"""ingest: human-labelled sets, as their owners publish them, into training shards of one record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path

from pydantic import ValidationError

from pipeline.config import IngestConfig
from pipeline.errors import InputError, RunError
from pipeline.images import ImageError, open_image
from pipeline.io.commit import write_json
from pipeline.io.hashing import digest_file, digest_json, fingerprint
from pipeline.io.manifests import SetManifest, read_manifest
from pipeline.io.tars import write_tar
from pipeline.progress import Progress
from pipeline.records import RECORD_VERSION, DatasetCard, GroundingRecord, Region
from pipeline.sources.base import Labelled, LabelledSet
from pipeline.sources.coco import read_coco
from pipeline.sources.mdetr import read_mdetr
from pipeline.stages.base import ShardJob, run_shards
from pipeline.stats import ShardReport, StageReport, Tally

STAGE = "ingest"
READERS: Mapping[str, Callable[[str], LabelledSet]] = {"coco": read_coco, "mdetr": read_mdetr}


def run(
    config: IngestConfig,
    manifest: str | Path,
    out: str | Path,
    *,
    root: str | Path | None = None,
    only: str | None = None,
    progress: Progress | None = None,
    workers: int = 1,
    max_failed: int = 0,
) -> StageReport:
    """``out/<set>-000003.tar`` with ``out/<set>.dataset.json`` for every labelled set of a manifest.

    Args:
        root: what the manifest's paths are relative to; by default the folder of the manifest.
        only: one set's name.

    Raises:
        InputError: a wrong manifest or label file; nothing is written for that set.
        RunError: more than ``config.max_failed_share`` of a set's images are lost, or shards failed.
    """
    sets = read_manifest(manifest)
    base = Path(root) if root is not None else Path(manifest).parent
    if only is not None and only not in sets:
        raise InputError(f"{manifest}: no set {only!r}; it has {', '.join(sets)}")
    chosen = {n: s for n, s in sets.items() if (s.labelled if only is None else n == only)}
    if not chosen:
        raise InputError(f"{manifest}: no labelled set in it (crawls need no ingest: the labelling stages read them)")
    total = StageReport(stage=STAGE)
    for name, entry in chosen.items():
        total.merge(_ingest_set(config, name, entry, base, Path(out), progress, workers, max_failed))
    return total


def _ingest_set(
    config: IngestConfig,
    name: str,
    entry: SetManifest,
    base: Path,
    out: Path,
    progress: Progress | None,
    workers: int,
    max_failed: int,
) -> StageReport:
    if entry.format not in READERS or entry.annotations is None or entry.images_folder is None:
        raise InputError(
            f"set {name}: ingest reads {', '.join(READERS)} with `annotations` and `images_folder`; "
            f"this one is {entry.kind} in format {entry.format}"
        )
    annotations, images = str(base / entry.annotations), base / entry.images_folder
    labelled = read_set(entry.format, annotations, digest_file(annotations))
    per = config.samples_per_shard
    jobs = []
    for start in range(0, len(labelled.images), per):
        # sizes stand in for the images' digests: hashing every image of a set would cost as much as ingesting it
        sizes = {i.file_name: _file_size(images / i.file_name) for i in labelled.images[start : start + per]}
        inputs = {"annotations": digest_file(annotations), "images": digest_json(sizes)}
        mark = fingerprint(STAGE, version=RECORD_VERSION, config=config, inputs=inputs, dataset=name, start=str(start))
        jobs.append(ShardJob(annotations, f"{name}-{start // per:06d}", mark))
    work = partial(
        _ingest_shard,
        name=name,
        format_=entry.format,
        images=images,
        per=per,
        digest=digest_file(annotations),
        out=out,
    )
    report = run_shards(STAGE, jobs, out, work, progress=progress, workers=workers, max_failed=max_failed)
    if labelled.lost:
        report.tallies.setdefault("regions", Tally()).add(_losses(labelled.lost))
    samples = report.tallies.get("samples", Tally())
    lost = samples.seen - samples.kept
    if lost > config.max_failed_share * max(samples.seen, 1):
        raise RunError(
            f"set {name}: {lost} of {samples.seen} images lost ({samples.dropped}); "
            f"allowed share: {config.max_failed_share} (ingest.max_failed_share)"
        )
    card = DatasetCard(
        name=name,
        kind=labelled.kind,
        label_space=labelled.label_space,
        licence=entry.licence,
        source=entry.source,
    )
    write_json(out / f"{name}.dataset.json", card.model_dump(mode="json", exclude_none=True))
    return report


@lru_cache(maxsize=1)
def read_set(format_: str, annotations: str, digest: str) -> LabelledSet:
    """The set in a label file, read once a process; ``digest`` tells versions of the file apart."""
    return READERS[format_](annotations)


def _ingest_shard(
    job: ShardJob, *, name: str, format_: str, images: Path, per: int, digest: str, out: Path
) -> ShardReport:
    number = int(job.name.rsplit("-", 1)[1])
    labelled = read_set(format_, job.path, digest)
    samples, regions, notes = Tally(), Tally(), []

    def records() -> Iterator[tuple[str, Mapping[str, bytes]]]:
        for item in labelled.images[number * per : (number + 1) * per]:
            regions.add(_losses(item.lost))
            try:
                data, size = _load(images, item)
                kept = [r for r in (_clip(region, size) for region in item.regions) if r is not None]
                record = GroundingRecord(
                    key=item.key, dataset=name, kind=labelled.kind, image_size=size,
                    caption=item.caption, regions=tuple(kept),
                )  # fmt: skip
            except (ImageError, ValidationError) as error:
                reason = error.reason if isinstance(error, ImageError) else "bad_record"
                samples.drop(reason)
                regions.drop("image_lost", len(item.regions))
                notes.append(f"{item.file_name}: {str(error).splitlines()[0]}")
                continue
            samples.keep()
            regions.keep(len(kept))
            regions.drop("box_outside_image", len(item.regions) - len(kept))
            yield item.key, {_extension(item.file_name): data, "json": record.to_json()}

    file = f"{job.name}.tar"
    output = write_tar(out / file, records())
    return job.report(STAGE, {file: output}, {"samples": samples, "regions": regions}, notes=notes)


def _load(images: Path, item: Labelled) -> tuple[bytes, tuple[int, int]]:
    """(bytes, (height, width)) of an image that decodes, and is of the size that its labels were drawn on."""
    try:
        data = (images / item.file_name).read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise ImageError("image_missing", f"{images / item.file_name} is not there") from None
    image = open_image(data)
    size = (image.height, image.width)
    if item.size is not None and item.size != size:
        raise ImageError(
            "size_differs", f"the image is {size[0]}x{size[1]}, its labels say {item.size[0]}x{item.size[1]}"
        )
    return data, size


def _clip(region: Region, size: tuple[int, int]) -> Region | None:
    x1, y1, x2, y2 = region.box
    box = (max(0.0, x1), max(0.0, y1), min(float(size[1]), x2), min(float(size[0]), y2))
    if box == region.box:
        return region
    return region.model_copy(update={"box": box}) if box[2] > box[0] and box[3] > box[1] else None


def _extension(file_name: str) -> str:
    return file_name.rsplit(".", 1)[-1].lower() if "." in file_name else "jpg"


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _losses(lost: Mapping[str, int]) -> Tally:
    tally = Tally()
    for reason, n in lost.items():
        tally.drop(reason, n)
    return tally
