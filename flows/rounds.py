"""Flow of one round: labels by its teacher, student and control, the promotion decision."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.flows import Flow
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict

from flows import stages
from flows.artifacts import show_markdown
from flows.job_builder import folder_of
from flows.notifications import FAILURE_HOOKS
from flows.preflight import check_run
from flows.run_progress import current, round_titles, working
from flows.stage_flow import Recipe, chosen_config
from flows.task_runners import task_runner
from pipeline.config import SelfTrainConfig
from pipeline.execution.reports import StageReport
from pipeline.report.round import write_round
from pipeline.runs.layout import RunLayout
from pipeline.runs.readiness import check_teacher
from pipeline.runs.rounds import RoundResult, check_promotion, decide
from pipeline.runs.summary import deciding_metric


class RoundRun(BaseModel):
    """Reports of a round's stages, and its decision."""

    model_config = ConfigDict(frozen=True)

    reports: dict[str, dict[str, Any]]
    result: RoundResult


def run_stage(stage: Flow[..., Any], out: str, config: SelfTrainConfig, *arguments: Any) -> Any:
    """Run a stage as a subflow, on the task runner of the recipe."""
    runner: Any = task_runner(config.resources, stage.name)
    return stage.with_options(task_runner=runner)(out, config, *arguments)


def show_number(text: str) -> None:
    """Show a result in the progress of the run, if it has one."""
    if (progress := current()) is not None and text:
        progress.number(text)


@flow(name="round", flow_run_name="round-{round_number}", **FAILURE_HOOKS)
def one_round(
    out: str = stages.OUT, config: SelfTrainConfig = stages.DEMO, round_number: int = 1, recipe: Recipe = None
) -> RoundRun:
    """Label the crawl by the round's teacher, train a student and its control, and decide on promotion.

    The teacher must exist: the first teacher, or the student of the round before. A round that is not
    part of ``self-train`` evaluates it first, so that gates that fit nothing fail before labelling.
    """
    alone = flow_run.parent_flow_run_id is None
    config, layout = chosen_config(config, recipe, stages.DEMO), RunLayout(folder_of(out))
    if alone:
        check_run(config, layout, ingests=False)
    with working(layout.root, "round", round_titles(config, round_number)):
        if alone and config.data.evaluated():
            run_stage(stages.evaluate, out, config, list(dict.fromkeys(["teacher", layout.teacher_name(round_number)])))
            check_promotion(config, layout)
            show_number(check_teacher(config, layout, layout.teacher_name(round_number)))
        reports: dict[str, dict[str, Any]] = {}
        for stage in (stages.pseudo_label, stages.filter_boxes, stages.build_shards):
            report: StageReport = run_stage(stage, out, config, round_number)
            reports[stage.name] = report.model_dump(mode="json")
        show_number(f"{report.tallies['samples'].kept:,} labelled images" if "samples" in report.tallies else "")
        run_stage(stages.train_student, out, config, round_number)
        if config.data.evaluated():
            models = [f"student-{round_number}"] + [f"control-{round_number}"] * config.trains_control
            run_stage(stages.evaluate, out, config, models)
            show_number(deciding_metric(config, layout, models[0]))
        result = decide(config, layout, round_number)
        page = write_round(config, layout, result, reports)
        show_markdown(f"round-{round_number}", page, f"round {round_number}: metrics, gates, labels, decision")
        return RoundRun(reports=reports, result=result)
