"""The commit that makes a shard's outputs count as done.

The report is written last. A shard is done if its report has the right fingerprint and the files
that the report lists exist with their sizes. A process killed at any point leaves every shard
either done or to be redone.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from pipeline.execution.reports import ShardReport
from pipeline.io.atomic import write_json
from pipeline.io.files import file_size, read_bytes, remove
from pipeline.io.paths import join


def report_path(out: str | Path, shard: str) -> str:
    """Path of a shard's report in an output folder."""
    return join(out, f"{shard}.report.json")


def commit_report(out: str | Path, report: ShardReport) -> None:
    """Commit a shard whose outputs are in place.

    Outputs that only its previous report lists (of other settings) are removed: later stages would
    read them.
    """
    before = read_report(out, report.shard)
    for name in set(before.outputs if before else ()) - set(report.outputs):
        remove(join(out, name))
    write_json(report_path(out, report.shard), report.model_dump(mode="json"))


def committed(out: str | Path, shard: str, fingerprint: str | None = None) -> ShardReport | None:
    """The shard's report if it has this fingerprint (None: any) and complete files; else None."""
    report = read_report(out, shard)
    if report is None or fingerprint not in (None, report.fingerprint):
        return None
    for name, file in report.outputs.items():
        if file_size(join(out, name)) != file.bytes:
            return None
    return report


def read_report(out: str | Path, shard: str) -> ShardReport | None:
    """The shard's report, or None if there is none or it is invalid."""
    data = read_bytes(report_path(out, shard))
    try:
        return None if data is None else ShardReport.model_validate_json(data)
    except ValidationError:
        return None
