"""Flow ``self-train``: the whole loop, as subflows of its stages."""

from __future__ import annotations

import json
from typing import Annotated, Any

from prefect import flow
from prefect.states import Completed
from pydantic import Field

from flows import stages
from flows.artifacts import show_markdown, show_table
from flows.job_builder import folder_of
from flows.notifications import FAILURE_HOOKS
from flows.preflight import check_run
from flows.rounds import one_round, run_stage, show_number
from flows.run_progress import run_name, run_titles, working
from flows.stage_flow import Recipe, chosen_config
from pipeline.config import SelfTrainConfig
from pipeline.execution.reports import StageReport
from pipeline.report.dashboard import dashboard_markdown
from pipeline.report.page import comparison
from pipeline.report.run import write_run_report
from pipeline.runs.layout import RunLayout
from pipeline.runs.readiness import check_teacher
from pipeline.runs.rounds import RoundResult, check_promotion
from pipeline.runs.summary import deciding_metric, summarise

Rounds = Annotated[int, Field(ge=1)] | None
"""Prefect validates it before the run starts, as it does the recipe's own number."""


@flow(name="self-train", flow_run_name=run_name, **FAILURE_HOOKS)
def self_train(
    out: str = stages.OUT, config: SelfTrainConfig = stages.DEMO, rounds: Rounds = None, recipe: Recipe = None
) -> Any:
    """Train a teacher, label a crawl, train student and control, and compare them.

    Every stage skips what is in ``out`` already, so the same call resumes a run that crashed. Only one run
    at a time works in a folder.

    Args:
        out: folder of the run and all its outputs.
        config: the recipe; default: the demo's.
        rounds: maximum number of rounds (teacher -> labels -> student); default: the recipe's.
        recipe: a recipe's name, or its file where the run is, in place of ``config``.

    Returns:
        the summary that is written to ``out/summary.json``. If shards were excluded (within
        ``resources.max_failed``), the run's state is "Completed with losses" and says how many. If a student
        was refused or gained too little (``promotion``) before the last round, the state is "Stopped after
        round N" and says why.
    """
    config = chosen_config(config, recipe, stages.DEMO)
    if rounds is not None:
        config = config.model_copy(update={"rounds": rounds})
    layout = RunLayout(folder_of(out))
    check_run(config, layout)
    with working(layout.root, "self-train", run_titles(config)):
        reports: dict[str, Any] = {}
        if config.demo is not None:
            run_stage(stages.make_demo_data, out, config)
        first = [stages.ingest] * bool(config.data.used()) + [stages.parse_phrases] * (config.data.names is None)
        for stage in first:
            report: StageReport = run_stage(stage, out, config)
            reports[stage.name] = report.model_dump(mode="json")
        run_stage(stages.train_teacher, out, config)
        if config.data.evaluated():
            run_stage(stages.evaluate, out, config, ["teacher"])
            show_number(deciding_metric(config, layout, "teacher"))
            check_promotion(config, layout)
            show_number(check_teacher(config, layout, "teacher"))
        results: list[RoundResult] = []
        for number in range(1, config.rounds + 1):
            done = one_round(out, config, number)
            suffix = f"-{number}" if config.rounds > 1 else ""
            reports |= {f"{name}{suffix}": report for name, report in done.reports.items()}
            results.append(done.result)
            if not done.result.go_on:
                break
        if config.demo is not None and config.demo.get("photos", True):
            run_stage(stages.label_photos, out, config)
        summary = summarise(config, layout, reports, results)
        write_run_report(config, layout, summary)
        show_table("comparison", comparison(summary), "teacher, control and student, in percent")
        show_markdown("report", dashboard_markdown(summary, layout), "the run's numbers")
        return ended(json.loads(json.dumps(summary)))


def ended(summary: dict[str, Any]) -> Any:
    """The summary, or a completed state of it whose name says that shards were excluded or rounds not run."""
    reports = {name: stage["report"] for name, stage in summary["stages"].items() if "report" in stage}
    lost = [f"{name} excluded {len(r['failed'])} shards" for name, r in reports.items() if r["failed"]]
    if lost:
        words = ", ".join(lost) + (f"; {summary['stopped']}" if summary["stopped"] else "")
        return Completed(name="Completed with losses", message=words, data=summary)
    if summary["stopped"]:
        return Completed(name=f"Stopped after round {summary['rounds']}", message=summary["stopped"], data=summary)
    return summary
