"""What dedup found, in numbers and for people."""

from __future__ import annotations

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from pipeline.stats import FailedShard, Tally

LISTED = 20


class SetMatches(BaseModel):
    """An evaluation set: its ``images``, how many of them have a near-duplicate, and how many training images are one."""

    model_config = ConfigDict(extra="forbid")

    images: Tally
    matched: int
    training_images: int
    failed: list[FailedShard]


class DedupReport(BaseModel):
    """``images`` of the training shards, and how many of them ``matched``. ``pairs``: proposed by the first 64 bits, and what
    the rest of the 256 said. ``by_details``: matches by differing bits of the 256."""

    model_config = ConfigDict(extra="forbid")

    distance: int
    details: int
    mirrored: bool
    images: Tally
    matched: int
    pairs: Tally
    by_details: dict[str, int]
    sets: dict[str, SetMatches]
    failed: list[FailedShard]

    def lines(self) -> list[str]:
        """For a terminal."""
        out = [f"{_images(self.images)} searched; {self.matched:,} are near-duplicates of evaluation images"]
        width = max((len(name) for name in self.sets), default=0)
        for name, found in self.sets.items():
            out.append(
                f"  {name:<{width}}  {found.matched:,} of {_images(found.images)} have a near-duplicate in the shards, "
                f"where {found.training_images:,} images are one"
            )
        if self.pairs.seen:
            out.append(
                f"  pairs: {self.pairs.seen:,} within {self.distance} bits of 64, {self.pairs.kept:,} of them within "
                f"{self.details} of 256"
            )
        failed = [("shard", self.failed), *((name, found.failed) for name, found in self.sets.items())]
        return out + [f"  FAILED {what} {f.shard}: {f.error}" for what, each in failed for f in each]


def _images(tally: Tally) -> str:
    gone = ", ".join(f"{reason} {n:,}" for reason, n in tally.dropped.items())
    return f"{tally.kept:,} images" + (f" ({gone} left out)" if gone else "")


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
