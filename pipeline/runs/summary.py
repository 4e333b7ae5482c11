"""Gathers a run's metrics, tallies and costs from its stages' outputs in ``summary.json``."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
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
CHANCE = 25.0
"""Recall@1 of a random guess in the demo: its scenes have four different objects."""


DEMO_COLUMNS = (
    ("base_recall_at_1", "BASE R@1"),
    ("base_ap50", "BASE AP50"),
    ("novel_recall_at_1", "NOVEL R@1"),
    ("novel_ap50", "NOVEL AP50"),
)
HEADLINE_METRICS = ("recall_at_1", "precision_at_1", "ap", "ap50", "ap_rare")
"""Metrics of a real run's evaluation sets that its report compares, those that the sets have."""


def columns(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(metric, head) of the comparison: of the demo's sets, or SET.METRIC of the run's own."""
    if "columns" not in summary:
        return list(DEMO_COLUMNS)  # the demo's, or of an earlier version
    return [(metric, head) for metric, head in summary["columns"]]


def is_demo(summary: Mapping[str, Any]) -> bool:
    """Whether a run is the demo's, whose sets are BASE and NOVEL."""
    return "columns" not in summary


def _own_columns(config: SelfTrainConfig, models: Iterable[Mapping[str, float]]) -> list[tuple[str, str]]:
    known = {metric for metrics in models for metric in metrics}
    names = (
        (f"{name}.{metric}", f"{name} {TITLES[metric]}")
        for name in config.data.evaluated()
        for metric in HEADLINE_METRICS
    )
    return [(metric, head) for metric, head in names if metric in known]


def _metrics_by_role(
    config: SelfTrainConfig, layout: RunLayout, models: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Metrics of the evaluated ones of ``models``, role -> name."""
    files = {role: layout.evaluation(name) / "metrics.json" for role, name in models.items()}
    return {role: model_metrics(file, config) for role, file in files.items() if file.is_file()}


def model_metrics(file: Path, config: SelfTrainConfig) -> dict[str, float]:
    """BASE and NOVEL metrics in percent: ``base_recall_at_1``, ``base_ap50`` and so on; of real runs
    also ``SET.METRIC``.

    Only those that the sets' protocols have: LVIS has no recall, RefCOCO no AP.
    """
    sets = json.loads(file.read_text())["sets"]
    metrics = {}
    if config.demo is None:
        own = ((name, metric) for name in config.data.evaluated() for metric in HEADLINE_METRICS)
        metrics = {f"{n}.{m}": round(sets[n][m], 2) for n, m in own if sets.get(n, {}).get(m) is not None}
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
    else:
        summary["columns"] = _own_columns(config, (summary[role] for role in names if role in summary))
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
    """The comparison of the models as a text table."""
    shown = [(metric, head, max(len(head) + 2, 10)) for metric, head in columns(summary)]
    head = f"{'':22}" + "".join(f"{title:>{width}}" for _, title, width in shown)
    lines = [head, "-" * len(head)]
    for role in ("teacher", "control", "student"):
        if role in summary:
            m = summary[role]
            from_scratch = role == "teacher" or (role == "student" and summary["student_init"] == "scratch")
            steps = f" ({'' if from_scratch else '+'}{summary['steps'][role]} steps)"
            lines.append(f"{role + steps:22}" + "".join(_cell(m.get(metric), width) for metric, _, width in shown))
    if "chance" in summary:
        cells = (_cell(summary["chance"], w) if m.endswith("recall_at_1") else " " * w for m, _, w in shown)
        lines.append(f"{'chance':22}{''.join(cells)}".rstrip())
    for row in summary["by_round"]:
        lines.append(f"round {row['result']['round']}: {row['result']['student']} {row['result']['why']}")
    lines.append(f"the model to use: {summary['best']}")
    return lines


def _cell(value: float | None, width: int) -> str:
    return f"{'-' if value is None else f'{value:.1f}':>{width}}"
