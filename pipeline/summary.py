"""``summary.json``: a run's numbers in one place, gathered from what the stages left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.config import SelfTrainConfig
from pipeline.io.commit import write_json
from pipeline.label_quality import label_quality
from pipeline.run_layout import RunLayout

CHANCE = 25.0
"""Recall@1 of a guess: the evaluation scenes hold four things, all different."""


def model_metrics(metrics_file: Path, config: SelfTrainConfig) -> dict[str, float]:
    """``base_recall_at_1``, ``base_ap50``, ``novel_recall_at_1``, ``novel_ap50`` in percent, of one evaluated model."""
    sets = json.loads(metrics_file.read_text())["sets"]
    out = {}
    for kind in ("base", "novel"):
        name = getattr(config.data, kind)
        if name in sets:
            out[f"{kind}_recall_at_1"] = round(sets[name]["recall_at_1"], 2)
            out[f"{kind}_ap50"] = round(sets[name]["ap50"], 2)
    return out


def stage_times(logs: Path) -> dict[str, dict[str, Any]]:
    """Seconds and peak memory of each stage's children, from the log; the longest run of each child counts."""
    best: dict[str, dict[str, Any]] = {}
    times = logs / "times.jsonl"
    if times.is_file():
        for line in times.read_text().splitlines():
            row = json.loads(line)
            seen = best.get(row["name"])
            if seen is None or row["seconds"] > seen["seconds"]:
                best[row["name"]] = row
    stages: dict[str, dict[str, Any]] = {}
    for row in best.values():
        stage = stages.setdefault(row["stage"], {"seconds": 0.0, "peak_mib": 0.0})
        stage["seconds"] = round(stage["seconds"] + row["seconds"], 1)
        stage["peak_mib"] = max(stage["peak_mib"], row["peak_mib"])
    return stages


def summarise(config: SelfTrainConfig, layout: RunLayout, reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Gather and write ``summary.json``; returns it.

    ``teacher`` is the first teacher, ``student`` and ``control`` those of the last round; ``by_round`` has them all.
    """
    last = config.rounds
    summary: dict[str, Any] = {
        "seed": config.seed,
        "rounds": config.rounds,
        "student_init": config.student_init,
        "steps": {
            "teacher": config.teacher.steps,
            "student": config.student.steps * config.rounds,
            "control": config.student.steps * config.rounds,
        },
    }
    names = {"teacher": "teacher", "student": f"student-{last}", "control": f"control-{last}"}
    for role, name in names.items():
        file = layout.evaluation(name) / "metrics.json"
        if file.is_file():
            summary[role] = model_metrics(file, config)
    summary["by_round"] = [
        {
            role: model_metrics(layout.evaluation(f"{role}-{r}") / "metrics.json", config)
            for role in ("student", "control")
            if (layout.evaluation(f"{role}-{r}") / "metrics.json").is_file()
        }
        for r in range(1, last + 1)
    ]
    if config.demo is not None:
        summary["chance"] = CHANCE
    gold = layout.data / "crawl_gold" if config.demo is not None else config.data.gold and Path(config.data.gold)
    if gold:
        summary["pseudo_labels"] = label_quality(layout.labels(1), gold)
        if last > 1:
            summary["pseudo_labels_by_round"] = [label_quality(layout.labels(r), gold) for r in range(1, last + 1)]
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
            steps = f" ({'+' if role != 'teacher' else ''}{summary['steps'][role]} steps)"
            lines.append(f"{role + steps:22}{text[0]:>10}{text[1]:>11}{text[2]:>11}{text[3]:>12}")
    if "chance" in summary:
        lines.append(f"{'chance':22}{summary['chance']:>10.1f}{'':>11}{summary['chance']:>11.1f}")
    return lines
