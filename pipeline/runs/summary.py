"""Gathers a run's metrics, tallies and costs from its stages' outputs in ``summary.json``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from pipeline.config import SelfTrainConfig
from pipeline.evaluation.label_quality import label_quality
from pipeline.evaluation.report import TITLES
from pipeline.io.atomic import write_json
from pipeline.runs.excluded_shards import files_of
from pipeline.runs.layout import RunLayout
from pipeline.runs.rounds import RoundResult, best_model

log = logging.getLogger("glip_self_train")
COLUMNS = {
    "base_recall_at_1": "BASE R@1",
    "base_ap50": "BASE AP50",
    "novel_recall_at_1": "NOVEL R@1",
    "novel_ap50": "NOVEL AP50",
}
"""Metric of a summary's model -> heading of its column, in the demo's tables and earlier versions'."""
SHOWN = ("ap", "ap_rare", "recall_at_1", "precision_at_1")
"""Metrics of a set that tables of a run on real data have, at most SHOWN_EACH of those that the set has."""
SHOWN_EACH = 2
ROLES = ("teacher", "control", "student")
CHANCE = 25.0
"""Recall@1 of a random guess in the demo: its scenes have four different objects."""


def _metrics_by_role(
    config: SelfTrainConfig, layout: RunLayout, models: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Metrics of the evaluated ones of ``models``, role -> name."""
    if not config.data.evaluated():
        return {}  # files of another recipe's run in this folder
    models = {role: name for role, name in models.items() if role != "control" or config.trains_control}
    files = {role: layout.evaluation(name) / "metrics.json" for role, name in models.items()}
    read = {role: file for role, file in files.items() if file.is_file()}
    if config.demo is not None:
        return {role: model_metrics(file, config) for role, file in read.items()}
    return {role: model_metrics(file, config) | _shown_metrics(file) for role, file in read.items()}


def _shown_metrics(file: Path) -> dict[str, float]:
    """``SET.METRIC`` in percent, of every set those of SHOWN that it has."""
    shown = {}
    for name, metrics in json.loads(file.read_text())["sets"].items():
        for metric in [m for m in SHOWN if metrics.get(m) is not None][:SHOWN_EACH]:
            shown[f"{name}.{metric}"] = round(metrics[metric], 2)
    return shown


def deciding_metric(config: SelfTrainConfig, layout: RunLayout, model: str) -> str:
    """The first metric of a model on the set that decides, such as "teacher eval_novel R@1 24.4"."""
    file, sets = layout.evaluation(model) / "metrics.json", (config.data.novel, *config.data.evaluated())
    if not file.is_file():
        return ""
    metrics = json.loads(file.read_text())["sets"]
    for name in [name for name in sets if name in metrics]:
        for metric in ("recall_at_1", "precision_at_1", "ap"):
            if metrics[name].get(metric) is not None:
                return f"{model} {name} {TITLES.get(metric, metric)} {metrics[name][metric]:.1f}"
    return ""


def columns(summary: Mapping[str, Any]) -> dict[str, str]:
    """Key of a metric in the summary's models -> heading of its column; only what a model has."""
    if "chance" in summary or not any("." in key for role in ROLES for key in summary.get(role, ())):
        found = dict(COLUMNS)
    else:
        keys = (key for role in ROLES for key in summary.get(role, ()) if "." in key)
        split = {key: key.rpartition(".") for key in keys}
        found = {key: f"{name} {TITLES.get(metric, metric)}" for key, (name, _, metric) in split.items()}
    return {key: head for key, head in found.items() if any(key in summary.get(role, ()) for role in ROLES)}


def origin(summary: Mapping[str, Any], role: str) -> str:
    """Training of a model in words: "1,000 steps from scratch"; "" if it is not known."""
    steps, given = summary.get("steps", {}).get(role), summary.get("teacher_init")
    if steps is None:
        return ""
    if role == "teacher" and given is not None:
        return f"{given}, {steps:,} steps further" if steps else f"{given} as it is"
    from_scratch = role == "teacher" or (role == "student" and summary["student_init"] == "scratch")
    return f"{steps:,} steps from {'scratch' if from_scratch else 'the teacher'}"


def model_metrics(file: Path, config: SelfTrainConfig) -> dict[str, float]:
    """BASE and NOVEL metrics in percent: ``base_recall_at_1``, ``base_ap50`` and so on.

    Only those that the sets' protocols have: LVIS has no recall, RefCOCO no AP.
    """
    sets = json.loads(file.read_text())["sets"]
    metrics = {}
    for kind in ("base", "novel"):
        name = getattr(config.data, kind)
        for metric in ("recall_at_1", "ap50"):
            if sets.get(name, {}).get(metric) is not None:
                metrics[f"{kind}_{metric}"] = round(sets[name][metric], 2)
    return metrics


def stage_times(logs: Path) -> dict[str, dict[str, Any]]:
    """Seconds and peak memory of each stage's children; the longest run of a child counts."""
    longest: dict[str, dict[str, Any]] = {}
    times = logs / "times.jsonl"
    if times.is_file():
        for line in times.read_text(errors="replace").splitlines():
            try:
                name, stage, seconds, peak = itemgetter("name", "stage", "seconds", "peak_mib")(json.loads(line))
                if name not in longest or seconds > longest[name]["seconds"]:
                    longest[name] = {"stage": stage, "seconds": seconds, "peak_mib": peak}
            except (ValueError, KeyError, TypeError):  # a truncated line must not fail the run
                log.warning("%s: not a record of times: %r", times, line[:80])
    stages: dict[str, dict[str, Any]] = {}
    for row in longest.values():
        stage = stages.setdefault(row["stage"], {"seconds": 0.0, "peak_mib": 0.0})
        stage["seconds"] = round(stage["seconds"] + row["seconds"], 1)
        stage["peak_mib"] = max(stage["peak_mib"], row["peak_mib"])
    return stages


def gold_of(config: SelfTrainConfig, layout: RunLayout) -> Path | None:
    """Folder of the crawl's gold boxes, which only reports read: the demo's or the recipe's."""
    if config.demo is not None:
        return layout.data / "crawl_gold"
    return Path(config.data.gold) if config.data.gold else None


def summarise(
    config: SelfTrainConfig, layout: RunLayout, reports: dict[str, dict[str, Any]], results: Sequence[RoundResult]
) -> dict[str, Any]:
    """Write ``summary.json`` and return its content.

    ``teacher`` is the first teacher, ``student`` and ``control`` those of the last round;
    ``by_round`` has those of all rounds and the rounds' results. ``best``: the best model;
    ``stopped``: why fewer rounds were run than the recipe's.
    """
    last = len(results)
    from_scratch = config.student_init == "scratch"  # else each student continues its teacher, as the control does
    summary: dict[str, Any] = {
        "seed": config.seed,
        "rounds": last,
        "student_init": config.student_init,
        "steps": {
            "teacher": config.teacher.steps,
            "student": config.student.steps * (1 if from_scratch else last),
            "control": config.student.steps * last,
        },
        "best": best_model(results),
        "stopped": results[-1].why if last < config.rounds else None,
    }
    names = {"teacher": "teacher", "student": f"student-{last}", "control": f"control-{last}"}
    summary |= _metrics_by_role(config, layout, names)
    summary["by_round"] = [
        _metrics_by_role(config, layout, {role: f"{role}-{result.round}" for role in ("student", "control")})
        | {"result": result.model_dump(mode="json")}
        for result in results
    ]
    if config.demo is not None:
        summary["chance"] = CHANCE
    if config.teacher.init is not None:
        summary["teacher_init"] = config.teacher.init
    if set(config.student.mixture) == {"pseudo"}:
        summary["human_labels"] = False
    if gold := gold_of(config, layout):
        by_round = [label_quality(files_of(config, layout, "filter-boxes", result.round), gold) for result in results]
        summary["pseudo_labels"] = by_round[0]
        if last > 1:
            summary["pseudo_labels_by_round"] = by_round
    stages = stage_times(layout.logs)
    for name, report in reports.items():
        stages.setdefault(name, {})["report"] = report
    summary["stages"] = stages
    write_json(layout.summary, summary)
    return summary


def table_lines(summary: dict[str, Any]) -> list[str]:
    """The comparison of the models as a text table; without an evaluation only the rounds' results."""
    shown, lines = columns(summary), []
    rows = {}
    for role in ROLES:
        if role in summary:
            steps, given = summary["steps"][role], role == "teacher" and summary.get("teacher_init")
            more = given or (role != "teacher" and (role == "control" or summary["student_init"] != "scratch"))
            rows[role + (f" ({'+' if more else ''}{steps} steps)" if steps else " (as given)")] = summary[role]
    if "chance" in summary:
        rows["chance"] = {key: summary["chance"] for key in shown if key.endswith("recall_at_1")}
    if rows and shown:
        widths = {key: len(head) + 2 for key, head in shown.items()}
        lines.append(f"{'':22}" + "".join(f"{head:>{widths[key]}}" for key, head in shown.items()))
        lines.append("-" * len(lines[0]))
        for row, metrics in rows.items():
            missing = "" if row == "chance" else "-"
            cells = (f"{metrics[key]:.1f}" if metrics.get(key) is not None else missing for key in shown)
            lines.append(f"{row:22}" + "".join(f"{c:>{widths[k]}}" for k, c in zip(shown, cells, strict=True)))
    for row in summary["by_round"]:
        lines.append(f"round {row['result']['round']}: {row['result']['student']} {row['result']['why']}")
    lines.append(f"the model to use: {summary['best']}")
    return lines
