"""Dashboard artifacts of a run: progress, tables, Markdown. An error here is logged and never fails the run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.run_progress import current, never_fatal
from flows.subprocess_jobs import ChildJob
from pipeline.execution.reports import StageReport


def _key(text: str) -> str:
    """Artifact key of a name: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


class StageProgress:
    """One progress artifact for all jobs of a stage, updated in place."""

    def __init__(self, title: str, jobs: Sequence[ChildJob]) -> None:
        self._jobs, self._title = jobs, title
        self._shown: tuple[float, str] | None = None
        self._artifact: Any = never_fatal(create_progress_artifact)(
            progress=0.0, key=_key(f"progress-{title}"), description=f"{title}: starting"
        )

    def update(self, finished: Sequence[bool]) -> None:
        """Show the jobs' progress notes. finished: whether each job has ended."""
        shares, words = [], []
        for job, ended in zip(self._jobs, finished, strict=True):
            note = job.note()
            share = 1.0 if ended else 0.0 if note is None or not note.total else min(note.done / note.total, 1.0)
            shares.append(share)
            if note is not None and not ended:
                words.append(f"{job.name}: {note.words()}")
        percent = round(100 * sum(shares) / max(len(shares), 1), 1)
        text = "; ".join(words) or (f"{self._title}: done" if all(finished) else f"{self._title}: starting")
        if (run := current()) is not None:
            only = self._jobs[0].name if len(self._jobs) == 1 else self._title
            run.update(self._title, percent / 100, text.removeprefix(f"{only}: "))
        if self._artifact is None or self._shown == (percent, text):
            return
        self._shown = (percent, text)
        never_fatal(update_progress_artifact)(artifact_id=self._artifact, progress=percent, description=text)


@never_fatal
def show_table(name: str, rows: Sequence[Mapping[str, Any]], description: str) -> None:
    """Create a table artifact, unless there are no rows."""
    if rows:
        create_table_artifact([dict(row) for row in rows], key=_key(name), description=description)


@never_fatal
def show_markdown(name: str, markdown: str, description: str) -> None:
    """Create a Markdown artifact."""
    create_markdown_artifact(markdown, key=_key(name), description=description)


def show_stage_report(title: str, report: StageReport) -> None:
    """Create tables of a stage's kept and dropped units, and of its failed shards."""
    rows: list[dict[str, Any]] = []
    for unit, tally in sorted(report.tallies.items()):
        counts = {"seen": tally.seen, "kept": tally.kept}
        counts |= {f"dropped: {reason.replace('_', ' ')}": n for reason, n in tally.dropped.items()}
        rows += [{"unit": unit, "what": what, "count": n} for what, n in counts.items()]
    show_table(f"kept-{title}", rows, f"{title}: kept and dropped, and why")
    failed = [{"shard": f.shard, "reason": f.error} for f in report.failed]
    show_table(f"failed-{title}", failed, f"{title}: excluded shards; a run with the same folder tries them again")
