"""What dedup found, in numbers and for people."""

from __future__ import annotations

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from pipeline.execution.reports import FailedShard, Tally

LISTED = 20


class SetMatches(BaseModel):
    """An evaluation set: its ``records``, of so many different ``images`` (a set of captions has an image several times), how many
    of these have a near-duplicate, and how many different training images are one."""

    model_config = ConfigDict(extra="forbid")

    records: Tally
    images: int
    matched: int
    training_images: int
    failed: list[FailedShard]


class DedupReport(BaseModel):
    """``records`` of the training shards, how many of them ``matched``, and of how many different images these are. ``pairs``: proposed by the first 64 bits, and what
    the rest of the 256 said. ``by_details``: matches by differing bits of the 256."""

    model_config = ConfigDict(extra="forbid")

    distance: int
    details: int
    mirrored: bool
    records: Tally
    matched: int
    matched_images: int
    pairs: Tally
    by_details: dict[str, int]
    sets: dict[str, SetMatches]
    failed: list[FailedShard]

    def lines(self) -> list[str]:
        """For a terminal."""
        once = "" if self.matched_images == self.matched else f", {self.matched_images:,} different images"
        out = [f"{_records(self.records)} searched; {self.matched:,} are near-duplicates of evaluation images{once}"]
        width = max((len(name) for name in self.sets), default=0)
        for name, found in self.sets.items():
            out.append(
                f"  {name:<{width}}  {found.matched:,} of {_images(found.records, found.images)} have a near-duplicate in the shards, "
                f"where {found.training_images:,} images are one"
            )
        if self.pairs.seen:
            out.append(
                f"  pairs: {self.pairs.seen:,} within {self.distance} bits of 64, {self.pairs.kept:,} of them within "
                f"{self.details} of 256"
            )
        failed = [("shard", self.failed), *((name, found.failed) for name, found in self.sets.items())]
        return out + [f"  FAILED {what} {f.shard}: {f.error}" for what, each in failed for f in each]


def _images(tally: Tally, distinct: int) -> str:
    known = "" if distinct == tally.kept else f"in {_records(tally)}"
    notes = known or _gone(tally)
    return f"{distinct:,} images" + (f" ({notes})" if notes else "")


def _records(tally: Tally) -> str:
    gone = _gone(tally)
    return f"{tally.kept:,} records" + (f", {gone}" if gone else "")


def _gone(tally: Tally) -> str:
    gone = ", ".join(f"{reason} {n:,}" for reason, n in tally.dropped.items())
    return f"{gone} left out" if gone else ""


def markdown(report: DedupReport, matches: pa.Table) -> str:
    """The report as a page, with the first pairs."""
    lines = ["# Near-duplicates of evaluation images", "", *(f"- {line.strip()}" for line in report.lines()), ""]
    if matches.num_rows:
        lines += ["| training image | evaluation image | bits of 64 | bits of 256 | |", "|---|---|---:|---:|---|"]
        for row in matches.slice(0, LISTED).to_pylist():
            lines.append(
                f"| {row['shard']}/{row['key']} | {row['set']}: {row['set_key']} | {row['distance']} | {row['details']} "
                f"| {'mirrored' if row['mirrored'] else ''} |"
            )
        if matches.num_rows > LISTED:
            lines += ["", f"The first {LISTED} of {matches.num_rows:,} pairs; all are in matches.parquet."]
    return "\n".join(lines) + "\n"
