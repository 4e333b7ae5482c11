"""Gain of self-training on the demo's data over several seeds: student against control and teacher.

    python benchmarks/self_training_gain.py --json gain.json
    python benchmarks/self_training_gain.py --json gain.json --scratch     # also from scratch

Scenes, initial weights and data order depend on the seed. Keys, means over seeds in points:
``novel_gain_over_control``, ``novel_gain_over_teacher`` (NOVEL recall@1), ``base_recall_change``
and ``base_ap50_change`` (student minus control); with ``--scratch`` again below ``scratch``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.config.recipes import load_recipe
from pipeline.runs.layout import RunLayout

GAINS = {
    "novel_gain_over_control": ("novel_recall_at_1", "control"),
    "novel_gain_over_teacher": ("novel_recall_at_1", "teacher"),
    "base_recall_change": ("base_recall_at_1", "control"),
    "base_ap50_change": ("base_ap50", "control"),
}


def run(out: Path, changes: list[str]) -> dict[str, Any]:
    """Run the loop as ``make demo`` does, or resume it; returns its summary."""
    command = [str(Path(sys.executable).with_name("self-train")), "run", "--recipe", "demo", "--out", str(out)]
    command += [part for change in changes for part in ("--set", change)]
    subprocess.run(command, check=True)
    return json.loads(RunLayout(out).summary.read_text())


def scratch_run(teacher_run: Path, out: Path, changes: list[str]) -> dict[str, Any]:
    """Run the loop with a student trained from scratch, for the teacher's and student's steps.

    Teacher, labels and control are hard-linked from the first run, so only the student is trained.
    """
    if not out.exists():
        shutil.copytree(
            teacher_run, out, copy_function=os.link, ignore=shutil.ignore_patterns("student-*", "summary.json")
        )
    recipe = load_recipe("demo", changes)
    steps = recipe.teacher.steps + recipe.student.steps
    return run(out, [*changes, "student_init=scratch", f"student.steps={steps}", "control=false"])


def gains(summaries: list[dict[str, Any]], control_from: list[dict[str, Any]] | None = None) -> dict[str, float]:
    """Mean gains in points; teacher and control are those of ``control_from`` if given."""
    others = control_from or summaries
    return {
        name: round(mean(s["student"][metric] - o[other][metric] for s, o in zip(summaries, others, strict=True)), 2)
        for name, (metric, other) in GAINS.items()
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/gain"), help="folder of the runs (default: runs/gain)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument(
        "--set", dest="changes", action="append", default=[], metavar="NAME=VALUE", help="change the recipe"
    )
    parser.add_argument("--scratch", action="store_true", help="also train students from scratch")
    args = parser.parse_args()
    summaries, scratch = [], []
    for seed in args.seeds:
        changes = [*args.changes, f"seed={seed}"]
        summaries.append(run(args.out / f"seed-{seed}", changes))
        if args.scratch:
            scratch.append(scratch_run(args.out / f"seed-{seed}", args.out / f"seed-{seed}-scratch", changes))
    figures: dict[str, Any] = gains(summaries)
    figures["seeds"] = {
        str(seed): {name: s[name] for name in ("teacher", "control", "student")}
        | {"pseudo_labels": s["pseudo_labels"]["novel"]}
        for seed, s in zip(args.seeds, summaries, strict=True)
    }
    if scratch:
        figures["scratch"] = gains(scratch, summaries)
    figures["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    for seed, summary in zip(args.seeds, summaries, strict=True):
        for name in ("teacher", "control", "student"):
            print(f"seed {seed} {name:8}", {k: round(v, 1) for k, v in summary[name].items()})
    print(json.dumps({k: v for k, v in figures.items() if k != "seeds"}, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
