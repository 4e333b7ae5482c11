"""Report of dedup as JSON, terminal lines and Markdown."""

from __future__ import annotations

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from pipeline.execution.reports import FailedShard, Tally

MAX_LISTED = 20
WITHIN = "within"
"""Name of the searched shards themselves as a set."""


class SetMatches(BaseModel):
    """Matches of an evaluation set.

    images: distinct images (several captions may share one). matched: those with a near-duplicate.
    training_images: distinct training images that are near-duplicates. padded, cropped: records whose
    image a crawler padded to a square, or cropped. squares: other squares without a stated original
    size.
    """

    model_config = ConfigDict(extra="forbid")

    records: Tally
    images: int
    matched: int
    training_images: int
    padded: int = 0
    cropped: int = 0
    squares: int = 0
    failed: list[FailedShard]


class DedupReport(BaseModel):
    """Matches of all sets.

    records: of the training shards. matched: records with a match; matched_images: their distinct
    images. pairs: candidates by the first 64 bits, kept or dropped by all 256. by_details: matches
    by Hamming distance of the 256 bits. within: records that are copies of earlier ones, if they were
    searched for. padded, cropped, squares: as in
    :class:`SetMatches`.
    """

    model_config = ConfigDict(extra="forbid")

    distance: int
    details: int
    mirrored: bool
    records: Tally
    matched: int
    matched_images: int
    pairs: Tally
    by_details: dict[str, int]
    within: int | None = None
    padded: int = 0
    cropped: int = 0
    squares: int = 0
    sets: dict[str, SetMatches]
    failed: list[FailedShard]

    def lines(self) -> list[str]:
        """Lines for a terminal."""
        distinct = "" if self.matched_images == self.matched else f", {self.matched_images:,} different images"
        out = [
            f"{_records(self.records)} searched; {self.matched:,} are near-duplicates of evaluation images{distinct}"
        ]
        out += _resized("the shards", self)
        width = max((len(name) for name in self.sets), default=0)
        for name, matches in self.sets.items():
            tally, images = matches.records, matches.images
            notes = _dropped(tally) if images == tally.kept else f"in {_records(tally)}"
            out.append(
                f"  {name:<{width}}  {matches.matched:,} of {images:,} images{notes and f' ({notes})'} have a "
                f"near-duplicate in the shards, where {matches.training_images:,} images are one"
            )
            out += _resized(name, matches)
        if self.within is not None:
            out.append(f"  {self.within:,} records are near-duplicates of an earlier one of the shards, which stays")
        if self.pairs.seen:
            out.append(
                f"  pairs: {self.pairs.seen:,} within {self.distance} bits of 64, {self.pairs.kept:,} of them within "
                f"{self.details} of 256"
            )
        failed = [("shard", self.failed), *((name, matches.failed) for name, matches in self.sets.items())]
        return out + [f"  FAILED {part} {f.shard}: {f.error}" for part, failures in failed for f in failures]


def _resized(name: str, counts: DedupReport | SetMatches) -> list[str]:
    """Lines on the images that a crawler resized to another shape."""
    lines = []
    if counts.padded:
        lines.append(f"  {name}: {counts.padded:,} images are padded to squares; compared without their padding")
    if counts.cropped:
        lines.append(
            f"  {name}: {counts.cropped:,} images cannot be judged: a crawler cropped them (their original_width and "
            "original_height are of another shape), and copies that show the whole are not found"
        )
    if counts.squares > counts.records.kept / 2:
        lines.append(
            f"  {name}: {counts.squares:,} images are squares and state no original size; if a crawler cropped them, "
            "they cannot be judged: copies that show the whole are not found"
        )
    return lines


def _records(tally: Tally) -> str:
    dropped = _dropped(tally)
    return f"{tally.kept:,} records" + (f", {dropped}" if dropped else "")


def _dropped(tally: Tally) -> str:
    dropped = ", ".join(f"{reason} {n:,}" for reason, n in tally.dropped.items())
    return f"{dropped} left out" if dropped else ""


def markdown(report: DedupReport, matches: pa.Table) -> str:
    """Markdown report with the first pairs."""
    lines = ["# Near-duplicates of evaluation images", "", *(f"- {line.strip()}" for line in report.lines()), ""]
    if matches.num_rows:
        lines += ["| training image | evaluation image | bits of 64 | bits of 256 | |", "|---|---|---:|---:|---|"]
        for row in matches.slice(0, MAX_LISTED).to_pylist():
            mirrored = "mirrored" if row["mirrored"] else ""
            pair = f"{row['shard']}/{row['key']} | {row['set']}: {row['set_key']}"
            lines.append(f"| {pair} | {row['distance']} | {row['details']} | {mirrored} |")
        if matches.num_rows > MAX_LISTED:
            lines += ["", f"The first {MAX_LISTED} of {matches.num_rows:,} pairs; all are in matches.parquet."]
    return "\n".join(lines) + "\n"
