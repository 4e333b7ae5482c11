"""What the dashboard shows of a run: progress, what was kept and dropped, the comparison. A failure here ends nothing."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.subprocess_jobs import ChildJob
from pipeline.execution.reports import StageReport

log = logging.getLogger("glip_self_train")
P = ParamSpec("P")
R = TypeVar("R")


def _never_fatal(function: Callable[P, R]) -> Callable[P, R | None]:
    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            log.warning("artifact not written: %s: %s", type(error).__name__, error)
            return None

    return guarded


def key_of(text: str) -> str:
    """A name as an artifact's key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


class StageProgress:
    """One progress artifact for all jobs of a stage, updated in place."""

    def __init__(self, title: str, jobs: Sequence[ChildJob]) -> None:
        self._jobs, self._title = jobs, title
        self._said: tuple[float, str] | None = None
        self._artifact: Any = _never_fatal(create_progress_artifact)(
            progress=0.0, key=key_of(f"progress-{title}"), description=f"{title}: starting"
        )

    def update(self, finished: Sequence[bool]) -> None:
        """Read the jobs' notes and show them; ``finished`` says which jobs have ended."""
        shares, words = [], []
        for job, ended in zip(self._jobs, finished, strict=True):
            note = job.note()
            share = 1.0 if ended else 0.0 if note is None or not note.total else min(note.done / note.total, 1.0)
            shares.append(share)
            if note is not None and not ended:
                words.append(f"{job.name}: {note.words()}")
        percent = round(100 * sum(shares) / max(len(shares), 1), 1)
        text = "; ".join(words) or (f"{self._title}: done" if all(finished) else f"{self._title}: starting")
        if self._artifact is None or self._said == (percent, text):
            return
        self._said = (percent, text)
        _never_fatal(update_progress_artifact)(artifact_id=self._artifact, progress=percent, description=text)


@_never_fatal
def show_tallies(title: str, report: StageReport) -> None:
    """A table: of each unit how many were seen and kept, and how many went for which reason."""
    rows: list[dict[str, Any]] = []
    for unit, tally in sorted(report.tallies.items()):
        rows.append({"unit": unit, "what": "seen", "count": tally.seen})
        rows.append({"unit": unit, "what": "kept", "count": tally.kept})
        rows += [
            {"unit": unit, "what": f"dropped: {r.replace('_', ' ')}", "count": n} for r, n in tally.dropped.items()
        ]
    if rows:
        create_table_artifact(rows, key=key_of(f"kept-{title}"), description=f"{title}: kept and dropped, and why")


@_never_fatal
def show_failures(title: str, report: StageReport) -> None:
    """A table of the shards that were set aside, each with its reason."""
    create_table_artifact(
        [{"shard": f.shard, "reason": f.error} for f in report.failed],
        key=key_of(f"failed-{title}"),
        description=f"{title}: shards that were set aside; a run with the same folder tries them again",
    )


@_never_fatal
def show_sweep(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of what each threshold would keep."""
    create_table_artifact(
        [dict(row) for row in rows],
        key=key_of(f"thresholds-{title}"),
        description=f"{title}: what each threshold would keep, the other rules as they are",
    )


@_never_fatal
def show_comparison(rows: Sequence[Mapping[str, Any]], markdown: str) -> None:
    """The models side by side, as a table and as Markdown."""
    create_table_artifact(
        [dict(r) for r in rows], key="comparison", description="teacher, control and student, in percent"
    )
    create_markdown_artifact(markdown, key="report", description="the run's numbers")


@_never_fatal
def show_round(number: int, markdown: str) -> None:
    """One round's page: its metrics, gates, labels and verdict."""
    create_markdown_artifact(
        markdown, key=f"round-{number}", description=f"round {number}: metrics, gates, labels, verdict"
    )
