"""``summary.json``: a run's numbers in one place, gathered from what the stages left."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import SelfTrainConfig
from pipeline.evaluation.label_quality import label_quality
from pipeline.io.atomic import write_json
from pipeline.runs.excluded_shards import files_of
from pipeline.runs.layout import RunLayout
from pipeline.runs.rounds import RoundResult, best_model

log = logging.getLogger("glip_self_train")
CHANCE = 25.0
"""Recall@1 of a guess: the evaluation scenes hold four things, all different."""


def model_metrics(metrics_file: Path, config: SelfTrainConfig) -> dict[str, float]:
    """``base_recall_at_1``, ``base_ap50``, ``novel_recall_at_1``, ``novel_ap50`` in percent, of one evaluated model; those of them
    that the sets' protocols have (LVIS knows no recall, RefCOCO no AP)."""
    sets = json.loads(metrics_file.read_text())["sets"]
    out = {}
    for kind in ("base", "novel"):
        name = getattr(config.data, kind)
        for metric in ("recall_at_1", "ap50"):
            if metric in sets.get(name, {}):
                out[f"{kind}_{metric}"] = round(sets[name][metric], 2)
    return out


def stage_times(logs: Path) -> dict[str, dict[str, Any]]:
    """Seconds and peak memory of each stage's children, from the log; the longest run of each child counts."""
    best: dict[str, dict[str, Any]] = {}
    times = logs / "times.jsonl"
    if times.is_file():
        for line in times.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
                seen = best.get(row["name"])
                if seen is None or row["seconds"] > seen["seconds"]:
                    best[row["name"]] = {"stage": row["stage"], "seconds": row["seconds"], "peak_mib": row["peak_mib"]}
            except (ValueError, KeyError, TypeError):  # a line that was cut off; a log is no reason not to finish
                log.warning("%s: a line is no record of times: %r", times, line[:80])
    stages: dict[str, dict[str, Any]] = {}
    for row in best.values():
        stage = stages.setdefault(row["stage"], {"seconds": 0.0, "peak_mib": 0.0})
        stage["seconds"] = round(stage["seconds"] + row["seconds"], 1)
        stage["peak_mib"] = max(stage["peak_mib"], row["peak_mib"])
    return stages


def gold_of(config: SelfTrainConfig, layout: RunLayout) -> Path | None:
    """Folder of the crawl's gold boxes, which only reports read: the demo's hidden ones, or the recipe's."""
    if config.demo is not None:
        return layout.data / "crawl_gold"
    return Path(config.data.gold) if config.data.gold else None


def summarise(
    config: SelfTrainConfig, layout: RunLayout, reports: dict[str, dict[str, Any]], results: Sequence[RoundResult]
) -> dict[str, Any]:
    """Gather and write ``summary.json``; returns it.

    ``teacher`` is the first teacher, ``student`` and ``control`` those of the last round that was run; ``by_round`` has them all with
    what was decided of them. ``best`` is the model to use; ``stopped`` says why rounds ended before the recipe's number.
    """
    last = len(results)
    anew = config.student_init == "scratch"  # each round's student then begins anew; the control goes on
    summary: dict[str, Any] = {
        "seed": config.seed,
        "rounds": last,
        "student_init": config.student_init,
        "steps": {
            "teacher": config.teacher.steps,
            "student": config.student.steps * (1 if anew else last),
            "control": config.student.steps * last,
        },
        "best": best_model(results),
        "stopped": results[-1].why if last < config.rounds else None,
    }
    names = {"teacher": "teacher", "student": f"student-{last}", "control": f"control-{last}"}
    for role, name in names.items():
        file = layout.evaluation(name) / "metrics.json"
        if file.is_file():
            summary[role] = model_metrics(file, config)
    summary["by_round"] = [
        {
            role: model_metrics(layout.evaluation(f"{role}-{result.round}") / "metrics.json", config)
            for role in ("student", "control")
            if (layout.evaluation(f"{role}-{result.round}") / "metrics.json").is_file()
        }
        | {"result": result.model_dump(mode="json")}
        for result in results
    ]
    if config.demo is not None:
        summary["chance"] = CHANCE
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
    """The comparison as lines for a terminal."""
    head = f"{'':22}{'BASE R@1':>10}{'BASE AP50':>11}{'NOVEL R@1':>11}{'NOVEL AP50':>12}"
    lines = [head, "-" * len(head)]
    for role in ("teacher", "control", "student"):
        if role in summary:
            m = summary[role]
            cells = [m.get(k) for k in ("base_recall_at_1", "base_ap50", "novel_recall_at_1", "novel_ap50")]
            text = [f"{c:.1f}" if c is not None else "-" for c in cells]
            anew = role == "teacher" or (role == "student" and summary["student_init"] == "scratch")
            steps = f" ({'' if anew else '+'}{summary['steps'][role]} steps)"
            lines.append(f"{role + steps:22}{text[0]:>10}{text[1]:>11}{text[2]:>11}{text[3]:>12}")
    if "chance" in summary:
        lines.append(f"{'chance':22}{summary['chance']:>10.1f}{'':>11}{summary['chance']:>11.1f}")
    for row in summary["by_round"]:
        lines.append(f"round {row['result']['round']}: {row['result']['student']} {row['result']['why']}")
    lines.append(f"the model to use: {summary['best']}")
    return lines
