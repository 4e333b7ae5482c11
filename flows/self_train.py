"""``self-train``: the whole loop as one flow of stage flows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.flows import Flow
from prefect.states import Completed

from flows import stages
from flows.artifacts import show_comparison
from flows.notify import notify
from flows.runners import task_runner
from pipeline.config import SelfTrainConfig
from pipeline.errors import InputError
from pipeline.report.dashboard import dashboard_markdown
from pipeline.report.page import comparison
from pipeline.report.run import write_run_report
from pipeline.run_layout import RunLayout
from pipeline.stats import StageReport
from pipeline.summary import summarise


@flow(name="self-train", flow_run_name="self-train", on_failure=[notify], on_crashed=[notify])
def self_train(out: str = stages.OUT, config: SelfTrainConfig = stages.DEMO, rounds: int | None = None) -> Any:
    """GLIP's self-training: teacher, phrases, pseudo-labels, student and control, and what came of it.

    Every stage skips what already lies in ``out``, so the same call after a crash goes on where it was.

    Args:
        out: folder of the run; everything it makes lies there.
        config: the recipe. Its defaults are the demo's.
        rounds: how many times a student becomes the next teacher; default: the recipe's.

    Returns:
        the summary that is written to ``out/summary.json``. Where shards were set aside (``resources.max_failed`` allowed it) the
        run's state is "Completed with losses" and says how many.
    """
    if rounds is not None:
        config = config.model_copy(update={"rounds": rounds})
    check_inputs(config)

    def run(stage: Flow[..., Any], *arguments: Any) -> Any:
        runner: Any = task_runner(config.resources, stage.name)
        return stage.with_options(task_runner=runner)(out, config, *arguments)

    reports: dict[str, Any] = {}

    def counted(name: str, stage: Flow[..., Any], *arguments: Any) -> None:
        report: StageReport = run(stage, *arguments)
        reports[name] = report.model_dump(mode="json")

    if config.demo is not None:
        run(stages.make_demo_data)
    counted("ingest", stages.ingest)
    counted("parse-phrases", stages.parse_phrases)
    run(stages.train_teacher)
    for round_number in range(1, config.rounds + 1):
        suffix = f"-{round_number}" if config.rounds > 1 else ""
        counted(f"pseudo-label{suffix}", stages.pseudo_label, round_number)
        counted(f"filter-boxes{suffix}", stages.filter_boxes, round_number)
        counted(f"build-shards{suffix}", stages.build_shards, round_number)
        run(stages.train_student, round_number)
    models = ["teacher"]
    for round_number in range(1, config.rounds + 1):
        models += [f"student-{round_number}"] + [f"control-{round_number}"] * config.control
    if config.data.base or config.data.novel:
        run(stages.evaluate, models)
    if config.demo is not None and config.demo.get("photos", True):
        run(stages.label_photos)
    layout = RunLayout(Path(out).absolute())
    summary = summarise(config, layout, reports)
    write_run_report(config, layout, summary)
    show_comparison(comparison(summary), dashboard_markdown(summary, layout))
    plain = json.loads(json.dumps(summary))
    lost = {name: len(report["failed"]) for name, report in reports.items() if report["failed"]}
    if lost:
        words = ", ".join(f"{name} set {n} shards aside" for name, n in lost.items())
        return Completed(name="Completed with losses", message=words, data=plain)
    return plain


def check_inputs(config: SelfTrainConfig) -> None:
    """Raises InputError before anything runs if the recipe lacks what its stages will ask for."""
    data = config.data
    if not data.sources:
        raise InputError("data.sources: name the sets of the manifest to train on, such as [detection, grounding]")
    for name, mixture in (("teacher", config.teacher.mixture), ("student", config.student.mixture)):
        if set(mixture) - {"pseudo"} != set(data.sources):
            raise InputError(f"{name}.mixture names {sorted(mixture)}, but data.sources are {list(data.sources)}")
    if "pseudo" not in config.student.mixture:
        raise InputError(f"student.mixture {config.student.mixture}: give `pseudo` a share")
    if config.demo is None:
        for name in ("manifest", "crawl"):
            if not getattr(data, name):
                raise InputError(f"data.{name}: a run on real data needs it (only the demo makes its own)")
