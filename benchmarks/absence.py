"""Hard negatives on the demo's data: what they give on absent phrases, and what they cost on present ones.

    python benchmarks/absence.py --json absence.json
    python benchmarks/absence.py --seeds 0 --set prompt.phrases_share=1

For each seed the loop is run as benchmarks/noisy_options.py does; another student is then trained on
the same labels from the same teacher, with prompts of phrases and hard negatives. Both are measured
on eval_absent (half wrong attribute, half other noun), BASE and NOVEL. Finished steps in the folder
are not repeated.

Keys, means over seeds: ``mcc_gain`` (MCC of presence, -1 to 1), ``false_boxes_ratio`` (false boxes on
absent phrases, with over without hard negatives, each at its own threshold), ``base_change`` and
``novel_change`` (R@1 in points); ``by_seed``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from noisy_options import OPTIONS, RECIPE, Labels, base_run, call, option_run

from pipeline.config.recipes import load_recipe

NAME = "hard_negatives"
SCENES = "absent_scenes=200"
NO_OTHERS = ("detection", "grounding", "attributes", "crawled", "validation", "evaluation")


def absent_evaluation(labels: Labels, model: Path, name: str) -> Path:
    """Evaluate a model on eval_absent, which is drawn if it is not there."""
    folder, recipe = labels.folder / "absent", str(labels.layout.config)
    log, stage = labels.folder / "absent.log", (sys.executable, "-m", "pipeline")
    drawn = [part for kind in NO_OTHERS for part in ("--set", f"{kind}_scenes=0")]
    drawn += ["--set", SCENES, "--set", "photos=false", "--set", f"seed={load_recipe(recipe).seed}"]
    call(log, *stage, "make-demo-data", "--out", str(folder / "data"), *drawn)
    call(
        log,
        *stage,
        "ingest",
        "demo-absent",
        "--root",
        str(folder / "data"),
        "--out",
        str(folder / "train"),
    )
    command = ["evaluate", "--recipe", recipe, "--model", str(model), "--set", "protocols.eval_absent=cgf1"]
    shards = str(folder / "train" / "eval_absent-*.tar")
    call(log, *stage, *command, "--set-shards", f"eval_absent={shards}", "--out", str(folder / name))
    return folder / name


def measured(evaluation: Path, absence: Path) -> dict[str, float]:
    """The figures of a student's two evaluations."""
    sets, absent = (json.loads((folder / "metrics.json").read_text())["sets"] for folder in (evaluation, absence))
    data, absent = load_recipe("demo").data, absent["eval_absent"]
    base, novel = sets[data.base], sets[data.novel]
    chosen = ("mcc", "cgf1", "pmf1", "false_boxes", "false_boxes_attribute", "false_boxes_noun", "false_boxes_other")
    return {name: absent[name] for name in chosen if name in absent} | {
        "base_recall_at_1": base["recall_at_1"], "novel_recall_at_1": novel["recall_at_1"]
    }  # fmt: skip


def run(root: Path, seed: int) -> dict[str, dict[str, float]]:
    """The recipe's student and the one with hard negatives."""
    labels = base_run(root / f"seed-{seed}", seed, [])
    option_run(labels, seed, NAME)
    students = {
        RECIPE: (labels.layout.student(1) / "final", labels.layout.evaluation("student-1")),
        NAME: (labels.folder / NAME / "final", labels.folder / f"{NAME}-evaluation"),
    }
    figures = {
        name: measured(evaluation, absent_evaluation(labels, model, name))
        for name, (model, evaluation) in students.items()
    }
    for name, values in figures.items():
        print(f"seed {seed} {name:15}", {k: round(v, 1) for k, v in values.items()}, flush=True)
    return figures


def summary(by_seed: dict[int, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Means over the seeds."""
    pairs = [(figures[RECIPE], figures[NAME]) for figures in by_seed.values()]

    def change(metric: str) -> float:
        return mean(after[metric] - before[metric] for before, after in pairs)

    return {
        "mcc_gain": round(change("mcc") / 100, 4),
        "false_boxes_ratio": round(mean(after["false_boxes"] / before["false_boxes"] for before, after in pairs), 4),
        "base_change": round(change("base_recall_at_1"), 2),
        "novel_change": round(change("novel_recall_at_1"), 2),
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parallel", type=int, default=os.cpu_count() or 1, help="seeds at a time, 1 thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/absence"), help="folder of the runs")
    parser.add_argument("--set", dest="changes", action="append", metavar="NAME=VALUE", help="of the second student")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    OPTIONS[NAME] = args.changes or OPTIONS[NAME]
    with ThreadPoolExecutor(args.parallel) as pool:
        runs = {seed: pool.submit(run, args.out.absolute(), seed) for seed in args.seeds}
        by_seed = {seed: future.result() for seed, future in runs.items()}
    figures = summary(by_seed) | {
        "by_seed": by_seed, "settings": OPTIONS[NAME],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }  # fmt: skip
    print(json.dumps({k: v for k, v in figures.items() if k != "by_seed"}, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
