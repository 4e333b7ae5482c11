"""What happened to every input: tallies that must add up, one report a shard, one a stage.

Nothing in a shard's report depends on time or host, so that it is the same bytes whenever and wherever it is written.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.execution.throughput import Rates
from pipeline.io.atomic import OutputFile


class Tally(BaseModel):
    """How many of one unit ("samples", "phrases", "regions") came in, stayed, and went for which reason.

    Raises:
        ValueError: ``seen != kept + sum(dropped)``, wherever a tally is read or made.
    """

    model_config = ConfigDict(extra="forbid")

    seen: int = 0
    kept: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _adds_up(self) -> Tally:
        gone = sum(self.dropped.values())
        if self.seen != self.kept + gone:
            raise ValueError(f"tally does not add up: {self.seen} seen, {self.kept} kept, {gone} dropped")
        self.dropped = dict(sorted(self.dropped.items()))
        return self

    def keep(self, n: int = 1) -> None:
        """Count ``n`` inputs that stayed."""
        self.seen += n
        self.kept += n

    def drop(self, reason: str, n: int = 1) -> None:
        """Count ``n`` inputs that went, and why. ``reason`` is a snake_case word from the stage's own list."""
        if n:
            self.seen += n
            self.dropped[reason] = self.dropped.get(reason, 0) + n

    def add(self, other: Tally) -> None:
        """Add another tally of the same unit to this one."""
        self.seen += other.seen
        self.kept += other.kept
        for reason, n in other.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + n
        self.dropped = dict(sorted(self.dropped.items()))


class ShardReport(BaseModel):
    """The record that makes a shard's output count as done. Stored beside it, written last."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    shard: str
    fingerprint: str
    outputs: dict[str, OutputFile] = Field(default_factory=dict)
    tallies: dict[str, Tally] = Field(default_factory=dict)
    numbers: dict[str, float] = Field(default_factory=dict, description="other counts, functions of the shard")
    notes: list[str] = Field(default_factory=list, description="first few problems, each naming key or member")


class FailedShard(BaseModel):
    """A shard that gave no output, with the one line that says why."""

    model_config = ConfigDict(extra="forbid")

    shard: str
    error: str


class StageReport(BaseModel):
    """Sum of a stage's shards. ``done`` were made now, ``skipped`` were already there, whole."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    done: int = 0
    skipped: int = 0
    failed: list[FailedShard] = Field(default_factory=list)
    tallies: dict[str, Tally] = Field(default_factory=dict)
    numbers: dict[str, float] = Field(default_factory=dict)
    rates: Rates | None = Field(None, description="what this run cost; says nothing of shards that were there already")

    @classmethod
    def of(
        cls,
        stage: str,
        reports: Iterable[ShardReport],
        *,
        skipped: int = 0,
        failed: Iterable[FailedShard] = (),
    ) -> StageReport:
        """Sum shard reports; ``skipped`` says how many of them were found done rather than made."""
        total = cls(stage=stage, skipped=skipped, failed=list(failed))
        for report in reports:
            total.done += 1
            for unit, tally in report.tallies.items():
                total.tallies.setdefault(unit, Tally()).add(tally)
            for name, value in report.numbers.items():
                total.numbers[name] = total.numbers.get(name, 0) + value
        total.done -= skipped
        return total

    def merge(self, other: StageReport) -> None:
        """Add the report of another set of shards of the same stage (for chunked runs)."""
        self.done += other.done
        self.skipped += other.skipped
        self.failed += other.failed
        for unit, tally in other.tallies.items():
            self.tallies.setdefault(unit, Tally()).add(tally)
        for name, value in other.numbers.items():
            self.numbers[name] = self.numbers.get(name, 0) + value
        if other.rates is not None:
            self.rates = self.rates or Rates(devices=other.rates.devices)
            self.rates.add(other.rates)

    def lines(self) -> list[str]:
        """The report as a few lines for a terminal."""
        out = [f"{self.stage}: {self.done} shards done, {self.skipped} already there, {len(self.failed)} failed"]
        for unit, tally in sorted(self.tallies.items()):
            why = ", ".join(f"{reason} {n:,}" for reason, n in tally.dropped.items()) or "none"
            out.append(f"  {unit}: {tally.seen:,} seen, {tally.kept:,} kept; dropped: {why}")
        out += [f"  {name}: {value:,.10g}" for name, value in sorted(self.numbers.items())]
        out += [] if self.rates is None else self.rates.lines()
        out += [f"  FAILED {f.shard}: {f.error}" for f in self.failed]
        return out
