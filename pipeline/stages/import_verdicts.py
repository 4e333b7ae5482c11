"""import-verdicts: verdicts of people from a labelling tool's file, matched with the stored regions."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.caption_phrases import CaptionPhrases, read_caption_phrases
from pipeline.data.keys import shard_key
from pipeline.data.name_list import footer_names
from pipeline.data.verdicts import DECISIONS, Verdict, VerdictLog, Verdicts, read_log, rows
from pipeline.errors import InputError
from pipeline.execution.reports import StageReport, Tally
from pipeline.execution.worker import MAX_NOTES
from pipeline.io.hashing import digest_json
from pipeline.io.paths import join, parent, stem
from pipeline.io.shard_patterns import expand_shards
from pipeline.io.tables import footer, read_table
from pipeline.labelling.review_matching import Decided, Phrase, PhraseFinder, decide, stored_regions
from pipeline.readers.reviewed import READERS, ReviewedImage
from pipeline.stages.jobs import ImportVerdicts

STAGE = "import-verdicts"
_COLUMNS = ("key", "phrase", "start", "end", "x1", "y1", "x2", "y2", "height", "width")

log = logging.getLogger("glip_self_train")


def run(job: ImportVerdicts) -> StageReport:
    """Append the verdicts of a file that are new to the folder ``out``; a file imported again changes nothing.

    Verdicts of the same author on these images that the file no longer has are withdrawn.

    Raises:
        InputError: a wrong file or store, a file that does not say which regions were exported, or at least half of the
            images, exported regions or boxes are unknown.
    """
    problems = _Problems()
    images = _Located(job, problems)
    boxes, regions, new = Tally(), Tally(), list[Verdict]()
    for shard, of_shard in images.by_shard.items():
        for verdicts, decided in _of_shard(job, images.paths[shard], shard, of_shard, images, problems):
            new += verdicts
            boxes.add(decided[0])
            regions.add(decided[1])
    images.check()
    _check(job, "exported regions", regions, ("unknown_region",), problems, "the store that was exported (--regions)")
    unknown = ("unknown_phrase", "ambiguous_phrase")
    wanted = "phrases of the captions, or class names, as they were exported (--phrases has those without a region)"
    _check(job, "boxes", boxes, unknown, problems, wanted)
    known, numbers = set[str](), Counter[str]()
    if Path(job.out).is_dir():
        table = read_log(job.out)
        known = set(table["id"].to_pylist())
        new += _withdrawn(Verdicts(table), new, images)
    with VerdictLog(job.out) as out:
        out.append(*(verdict for verdict in new if verdict.id not in known))
    for verdict in new:
        numbers[verdict.verdict] += 1
        numbers["missing_boxes"] += len(verdict.boxes) if verdict.verdict == "missing" else 0
    numbers["already_there"] = sum(verdict.id in known for verdict in new)
    problems.warn()
    order = [*DECISIONS, "missing_boxes", "already_there"]
    return StageReport(
        stage=STAGE, done=len(images.by_shard), tallies={"images": images.tally, "boxes": boxes, "regions": regions},
        numbers={name: float(numbers[name]) for name in order if numbers[name]},
    )  # fmt: skip


class _Problems:
    """Names of the first few things of each reason that were not used."""

    def __init__(self) -> None:
        self.notes: dict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, note: str) -> None:
        if len(self.notes[reason]) < MAX_NOTES:
            self.notes[reason].append(note)

    def warn(self) -> None:
        """Log them."""
        for reason, notes in self.notes.items():
            log.warning("%s: %s", reason.replace("_", " "), "; ".join(notes))


class _Located:
    """The file's images that a person has gone through, by shard and key of the store.

    Attributes:
        paths: shard -> its file of regions. by_shard: shard -> key as the file has it -> image.
        reviewed: (shard, key) in the store -> image that gave verdicts.
    """

    def __init__(self, job: ImportVerdicts, problems: _Problems) -> None:
        self.paths = {stem(path): path for path in expand_shards(job.regions, suffix=".parquet")}
        self.by_shard: dict[str, dict[str, ReviewedImage]] = defaultdict(dict)
        self.reviewed: dict[tuple[str, str], ReviewedImage] = {}
        self.tally, self._problems, self._job = Tally(), problems, job
        for image in READERS[job.source](job.file, job.all_images):
            image.by = job.by or image.by
            if image.unseen:
                self.tally.drop(image.unseen)
                continue
            if image.exported is None and job.labels is None:
                raise InputError(
                    f"{job.file}: {image.file}: found nothing that says which regions were exported; want the folder "
                    "of filter-boxes that was (--labels), as other regions must not be rejected"
                )
            place = self._place(image)
            if place is None:
                self.drop(image, "unknown_image")
                continue
            shard, key = place
            before = self.by_shard[shard].get(key)
            if before is not None:
                self.tally.drop("repeated_image")
            if before is None or image.at >= before.at:
                self.by_shard[shard][key] = image

    def drop(self, image: ReviewedImage, reason: str) -> None:
        """Count an image that gives no verdict."""
        self.tally.drop(reason)
        self._problems.add(reason, image.file)

    def _place(self, image: ReviewedImage) -> tuple[str, str] | None:
        """(shard of the store, key) as stated, else from the path: SHARD/KEY.jpg, or KEY.jpg of a single shard."""
        if image.key:
            shard = self._shard(image.shard)
            return None if shard is None else (shard, image.key)
        parts = image.file.split("/")
        for number in range(len(parts) - 1, 0, -1):
            if (shard := self._shard(parts[number - 1])) is not None:
                return shard, "/".join(parts[number:]).rpartition(".")[0]
        return (next(iter(self.paths)), parts[-1].rpartition(".")[0]) if len(self.paths) == 1 else None

    def _shard(self, name: str) -> str | None:
        """The store's shard of that name, or of a training shard of build-shards: DATASET-SHARD[-partNNN]."""
        if name in self.paths:
            return name
        name = name.rpartition("-part")[0] or name
        return max((shard for shard in self.paths if name.endswith(f"-{shard}")), key=len, default=None)

    def check(self) -> None:
        """Raise InputError if at least half of the images are unknown."""
        unknown = ("unknown_image", "other_size")
        seen = self.tally.kept + sum(self.tally.dropped.get(reason, 0) for reason in unknown)
        tally = Tally(seen=seen, kept=self.tally.kept, dropped={r: self.tally.dropped.get(r, 0) for r in unknown})
        wanted = "the store that was exported (--regions)"
        _check(self._job, "images", tally, unknown, self._problems, wanted)


def _check(
    job: ImportVerdicts, unit: str, tally: Tally, reasons: Sequence[str], problems: _Problems, wanted: str
) -> None:
    unknown = sum(tally.dropped.get(reason, 0) for reason in reasons)
    if unknown and 2 * unknown >= tally.seen:
        first = next((problems.notes[reason][0] for reason in reasons if problems.notes[reason]), "")
        raise InputError(
            f"{job.file}: found {unknown:,} of {tally.seen:,} {unit} that are not in {', '.join(job.regions)} (first: "
            f"{first}); want {wanted}"
        )


def _of_shard(
    job: ImportVerdicts, path: str, shard: str, images: Mapping[str, ReviewedImage], located: _Located,
    problems: _Problems,
) -> Iterator[tuple[list[Verdict], tuple[Tally, Tally]]]:  # fmt: skip
    """(verdicts, (boxes, regions)) of each image of a shard."""
    table = read_table(path, _COLUMNS, optional=["name"])
    notes = footer(table.schema)
    names = footer_names(notes, path)
    phrases = {} if job.phrases is None else read_caption_phrases(join(job.phrases, f"{shard}.parquet"))
    stored = _by_key(table, images)
    labels = {} if job.labels is None else _exported(join(job.labels, f"{shard}.parquet"), images)
    keys = {shard_key(key): key for key in (*phrases, *stored)} | {key: key for key in (*phrases, *stored)}
    for name, image in images.items():
        key = keys.get(name, "")
        of_image = stored.get(key, [])
        size = (of_image[0]["height"], of_image[0]["width"]) if of_image else image.size
        if not key or size is None:
            located.drop(image, "unknown_image")
            continue
        if image.size is not None and image.size != size:
            located.drop(image, "other_size")
            continue
        located.tally.keep()
        located.reviewed[shard, key] = image
        regions = stored_regions(of_image)
        known = [Phrase(name) for name in names.names] if names else list(_caption_phrases(image, phrases.get(key)))
        finder = PhraseFinder([*(region.phrase for region in regions), *known])
        exported = image.exported if image.exported is not None else labels.get(key, ())
        result = decide(image, regions, exported, finder, size)
        for reason, note in result.notes:
            problems.add(reason, f"{image.file}: {note}")
        about: dict[str, Any] = {
            "shard": shard, "key": key, "height": size[0], "width": size[1], "by": image.by, "at": image.at,
            "store": parent(path), "revision": notes.get("fingerprint", ""),
        }  # fmt: skip
        yield [_verdict(about, decided) for decided in result.decided], (result.boxes, result.regions)


def _by_key(table: pa.Table, images: Mapping[str, ReviewedImage]) -> dict[str, list[dict[str, Any]]]:
    """Key in the store -> rows of the images, whose keys may be those of training shards."""
    keys = pc.unique(table["key"])
    wanted = [key for key in keys.to_pylist() if key in images or shard_key(key) in images]
    of_key: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in table.filter(pc.is_in(table["key"], pa.array(wanted, pa.string()))).to_pylist():
        of_key[row["key"]].append(row)
    return of_key


def _exported(path: str, images: Mapping[str, ReviewedImage]) -> dict[str, list[str]]:
    """Key in the store -> ids of the regions that export-labels writes of a file of filter-boxes."""
    of_key = _by_key(read_table(path, [*_COLUMNS, "status"], optional=["name"]), images)
    return {
        key: [region.id for region in stored_regions(row for row in of_image if row["status"] != "uncertain")]
        for key, of_image in of_key.items()
    }


def _caption_phrases(image: ReviewedImage, phrases: CaptionPhrases | None) -> Iterator[Phrase]:
    """Phrases of a caption, also those without a region."""
    for caption, spans in (
        (image.caption, image.spans.values()),
        (phrases.caption, phrases.spans) if phrases else ("", ()),
    ):
        for start, end in spans:
            if 0 <= start < end <= len(caption):
                yield Phrase(caption[start:end], (start, end))


def _verdict(about: Mapping[str, Any], decided: Decided) -> Verdict:
    start, end = decided.phrase.span or (None, None)
    fields = {
        "verdict": decided.verdict, "phrase": decided.phrase.text, "start": start, "end": end, "box": decided.box,
        "boxes": decided.boxes,
    }  # fmt: skip
    said = {name: value for name, value in about.items() if name not in ("store", "at")}
    number = digest_json([STAGE, said | fields, about["at"].isoformat()])[:32]
    return Verdict(**about, **fields, id=number)


def _withdrawn(held: Verdicts, new: Sequence[Verdict], images: _Located) -> list[Verdict]:
    """Withdrawals of earlier verdicts of the same author on the file's images, of targets that it says nothing of."""
    targets = {_target(verdict) for verdict in new}
    found = []
    for shard in {shard for shard, _ in images.reviewed}:
        for verdict in rows(held.of(shard)):
            image = images.reviewed.get((shard, verdict.key))
            if image is None or verdict.by != image.by or verdict.at >= image.at or _target(verdict) in targets:
                continue
            about = {name: getattr(verdict, name) for name in ("shard", "key", "height", "width", "by", "store")}
            about |= {"at": image.at, "revision": verdict.revision}
            span = None if verdict.start is None or verdict.end is None else (verdict.start, verdict.end)
            found.append(_verdict(about, Decided("withdrawn", Phrase(verdict.phrase, span), verdict.box)))
    return found


def _target(verdict: Verdict) -> tuple[Any, ...]:
    phrase = verdict.phrase if verdict.start is None else (verdict.start, verdict.end)
    return verdict.shard, verdict.key, phrase, verdict.box
