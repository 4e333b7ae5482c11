"""Commands ``verify fit`` and ``verify apply``: a fitted probability that a region is right."""

from __future__ import annotations

from typing import Any

import click

from pipeline.cli.common import echo_lines, job_command, make_job
from pipeline.execution.reports import StageReport
from pipeline.stages.jobs import ApplyVerifier, FitVerifier


@click.group("verify")
def verify() -> None:
    """Estimate the probability that a stored region is right. Needs no images and no GPU."""


@job_command(FitVerifier, "fit")
def fit(values: dict[str, Any]) -> dict[str, Any]:
    """Fit a verifier on verdicts or gold boxes, and write it with a cross-validated report.

    \b
    Example: verify fit --regions regions --verdicts verdicts --out verifier
             verify fit --regions sample/regions --gold sample/gold --out verifier
    """
    from pipeline.evaluation.verification import lines

    result: dict[str, Any] = make_job(FitVerifier, values).run()
    echo_lines(lines(result))
    return result


@job_command(ApplyVerifier, "apply")
def apply(values: dict[str, Any]) -> StageReport:
    """Write a store with the column `verified`, the probability that the region is right.

    Prints the thresholds at which the kept regions have an expected precision of 80, 90 and 95 %.

    \b
    Example: verify apply --regions regions --verifier verifier --out regions-verified
             filter-boxes --regions regions-verified --out labels --set score_by=verified --set threshold=0.6
    """
    from pipeline.filtering.verifier import expected_precision
    from pipeline.io.shard_patterns import expand_shards

    job = make_job(ApplyVerifier, values)
    report = job.run()
    echo_lines(expected_precision(expand_shards(job.out, suffix=".parquet")))
    return report


verify.add_command(fit)
verify.add_command(apply)
