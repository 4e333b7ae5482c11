"""``run-job``: run a stage from a job file, as the flow does in child processes."""

from __future__ import annotations

import fcntl
import json
import os
import traceback
from contextlib import suppress

import click

from pipeline.cli.common import command, one_line, show_report
from pipeline.execution.progress import Silent, Terminal
from pipeline.execution.stage_failures import stage_failure
from pipeline.stages.jobs import read_job


@command("run-job")
@click.argument("file")
@click.option("--report-json", help="Write the report as JSON.")
@click.option(
    "--failure-json", help="Existing file of spaces, overwritten with the error and exit code as JSON if the job fails."
)
def run_job(file: str, report_json: str | None, failure_json: str | None) -> None:
    """Run the stage of a job file. self-train writes such files to RUN/logs/NAME.job.json.

    \b
    Example: run-job runs/demo/logs/train-teacher.job.json
    """
    try:
        run_file(file, report_json)
    except Exception as error:
        if failure_json:
            _write_failure(failure_json, error)
        raise


def run_file(file: str, report_json: str | None) -> None:
    """Run a job file in this process; the first of several training processes reports.

    Raises:
        InputError, RunError: as the stage.
    """
    first = os.environ.get("RANK", "0") == "0"
    job = read_job(file)
    report = job.model_copy(update={"progress": Terminal() if first else Silent()}).run()
    show_report(report, report_json if first else None)


def _write_failure(file: str, error: Exception) -> None:
    """Overwrite the spaces of ``file`` with the error; a full disk would have no room for a new
    file.

    The first of several processes to fail has the cause; the later ones fail because of it and
    write nothing.
    """
    line, code = one_line(error) or ("".join(traceback.format_exception_only(error)).strip(), 1)
    with suppress(OSError), open(file, "r+b") as output:
        fcntl.flock(output, fcntl.LOCK_EX)
        if not (room := output.read()).strip():
            output.seek(0)
            stage_wide = stage_failure(error) is not None
            failure = {"error": line[: len(room) // 8], "exit_code": code, "stage_wide": stage_wide}
            output.write(json.dumps(failure).encode())
