"""Reports of shards and stages, with tallies that account for every input.

A shard's report does not depend on time or host, so that its bytes are the same in every run.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.errors import RunError
from pipeline.execution.throughput import Rates
from pipeline.io.atomic import OutputFile


class Tally(BaseModel):
    """Number of one unit ("samples", "phrases", "regions") seen, kept, and dropped by reason.

    Raises:
        ValueError: ``seen != kept + sum(dropped)``, when a tally is created or read.
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
        """Count ``n`` kept inputs."""
        self.seen += n
        self.kept += n

    def drop(self, reason: str, n: int = 1) -> None:
        """Count ``n`` dropped inputs. ``reason`` is a snake_case word from the stage's own list."""
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
    """Report that commits a shard's outputs; stored beside them and written last."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    shard: str
    fingerprint: str
    outputs: dict[str, OutputFile] = Field(default_factory=dict)
    tallies: dict[str, Tally] = Field(default_factory=dict)
    numbers: dict[str, float] = Field(default_factory=dict, description="other counts, functions of the shard")
    notes: list[str] = Field(default_factory=list, description="first few problems, each naming key or member")


class FailedShard(BaseModel):
    """A shard without output, and its error in one line."""

    model_config = ConfigDict(extra="forbid")

    shard: str
    error: str


class StageReport(BaseModel):
    """Sum of a stage's shards. ``done``: processed now; ``skipped``: done by earlier runs."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    done: int = 0
    skipped: int = 0
    failed: list[FailedShard] = Field(default_factory=list)
    tallies: dict[str, Tally] = Field(default_factory=dict)
    numbers: dict[str, float] = Field(default_factory=dict)
    rates: Rates | None = Field(None, description="throughput and cost of this run, without skipped shards")

    @classmethod
    def of(
        cls, stage: str, reports: Iterable[ShardReport], *, skipped: int = 0, failed: Iterable[FailedShard] = ()
    ) -> StageReport:
        """Sum shard reports, ``skipped`` of which were done by earlier runs."""
        reports = list(reports)
        total = cls(stage=stage, done=len(reports) - skipped, skipped=skipped, failed=list(failed))
        for report in reports:
            total._add(report)
        return total

    def _add(self, report: ShardReport | StageReport) -> None:
        for unit, tally in report.tallies.items():
            self.tallies.setdefault(unit, Tally()).add(tally)
        for name, value in report.numbers.items():
            self.numbers[name] = self.numbers.get(name, 0) + value

    def merge(self, other: StageReport) -> None:
        """Add the report of other shards of the same stage."""
        self.done += other.done
        self.skipped += other.skipped
        self.failed += other.failed
        self._add(other)
        if other.rates is not None:
            self.rates = self.rates or Rates(devices=other.rates.devices)
            self.rates.add(other.rates)

    def require_usable(self) -> StageReport:
        """Return the report if something usable was made, or the input was empty.

        Raises:
            RunError: of some unit nothing was kept; names the reasons.
        """
        for unit, tally in sorted(self.tallies.items()):
            if tally.seen and not tally.kept:
                raise RunError(
                    f"{self.stage}: none of {tally.seen:,} {unit} is usable (dropped: {_reasons(tally)}); its output "
                    "is empty"
                )
        return self

    def lines(self) -> list[str]:
        """The report as a few lines for a terminal."""
        out = [f"{self.stage}: {self.done} shards done, {self.skipped} already there, {len(self.failed)} failed"]
        for unit, tally in sorted(self.tallies.items()):
            out.append(f"  {unit}: {tally.seen:,} seen, {tally.kept:,} kept; dropped: {_reasons(tally)}")
        out += [f"  {name}: {value:,.10g}" for name, value in sorted(self.numbers.items())]
        out += [] if self.rates is None else self.rates.lines()
        out += [f"  FAILED {f.shard}: {f.error}" for f in self.failed]
        return out


def _reasons(tally: Tally) -> str:
    return ", ".join(f"{reason} {n:,}" for reason, n in tally.dropped.items()) or "none"
