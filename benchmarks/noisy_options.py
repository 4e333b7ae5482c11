"""Ablation of the options for noisy labels on the demo's data, over several seeds.

    python benchmarks/noisy_options.py --json options.json
    python benchmarks/noisy_options.py --options score_weight ema --seeds 0 1
    python benchmarks/noisy_options.py --filter threshold=0.3 --options score_weight regress_above

For each seed the loop is run (scenes, teacher, labels, student); every option then trains another
student on the run's labels from the run's teacher. ``ema`` is the moving average of the recipe's
own student. ``--filter`` makes other labels of the teacher's regions, such as noisier ones, and the
recipe's student is trained on them too. Finished steps in the folder are not repeated.

Keys: ``options``: name -> ``change`` (mean difference of BASE R@1, BASE AP50, NOVEL R@1 and NOVEL
AP50 from the recipe's, in points) and ``by_seed``; ``recipe``: the recipe's student by seed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from pipeline.config.recipes import load_recipe
from pipeline.io.shard_patterns import expand_shards
from pipeline.runs.layout import RunLayout
from pipeline.runs.summary import model_metrics

METRICS = ("base_recall_at_1", "base_ap50", "novel_recall_at_1", "novel_ap50")
AVERAGES = {"ema": "ema=0.99"}
"""Options that need no other training: the student's folder has them beside its final weights."""
OPTIONS = {
    "score_weight": ["noisy.score_weight=true"],
    "regress_above": ["noisy.regress_above=0.7"],
    "caption_negatives": ["noisy.caption_negatives=0.5"],
    "no_ignore_uncertain": ["noisy.ignore_uncertain=false"],
    "no_names_share": ["noisy.names_share=0"],
    "hard_negatives": ["prompt.phrases_share=0.7"],
}
RECIPE = "recipe"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def call(log: Path, *command: str) -> None:
    """Run a command with its output appended to a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=ENVIRONMENT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:5])} ... exited with {done.returncode}; see {log}")


class Labels(NamedTuple):
    """A run of the loop, the folder of the options' students, and that of the labels' shards."""

    layout: RunLayout
    folder: Path
    pseudo: Path


def base_run(root: Path, seed: int, rules: list[str]) -> Labels:
    """Run the loop as ``make demo``, without control and photographs, with moving averages."""
    changes = ["control=false", "resources.threads=1", "resources.parallel=1", "demo.photos=false", f"seed={seed}"]
    changes += [f"student.{change}" for change in AVERAGES.values()]
    command = [str(Path(sys.executable).with_name("self-train")), "run", "--recipe", "demo", "--out", str(root)]
    call(root.with_suffix(".log"), *command, *(p for change in changes for p in ("--set", change)))
    return make_labels(RunLayout(root), rules)


def make_labels(layout: RunLayout, rules: list[str]) -> Labels:
    """The run's own labels, or labels of its teacher's regions by other rules."""
    folder = layout.root / "options"
    if not rules:
        return Labels(layout, folder, layout.pseudo(1))
    folder = folder / "-".join(rules).replace("=", "-")
    log = folder / "labels.log"
    stage = (sys.executable, "-m", "pipeline")
    settings = ["--recipe", str(layout.config)]
    changes = [p for rule in rules for p in ("--set", rule)]
    labels, shards = str(folder / "labels"), folder / "pseudo"
    call(log, *stage, "filter-boxes", *settings, *changes, "--regions", str(layout.regions(1)), "--out", labels)
    inputs = ["--shards", str(layout.data / "crawl"), "--phrases", str(layout.phrases), "--labels", labels]
    call(log, *stage, "build-shards", *settings, *inputs, "--out", str(shards))
    return Labels(layout, folder, shards)


def option_run(labels: Labels, seed: int, name: str) -> dict[str, float]:
    """Train the option's student on the labels; returns its metrics."""
    layout, folder, pseudo = labels
    log = folder / f"{name}.log"
    pipeline = (sys.executable, "-m", "pipeline")
    if name in AVERAGES:
        student = layout.student(1) / f"final_{name}"
    else:
        sources = {n: str(layout.train / f"{n}-*.tar") for n in load_recipe(str(layout.config)).data.sources}
        sources["pseudo"] = str(pseudo / "pseudo-*.tar")
        command = [*pipeline, "train-student", "--recipe", str(layout.config), "--set", f"seed={seed + 1000}"]
        command += ["--set", "ema=null", "--threads", "1"]
        command += [p for change in OPTIONS.get(name, []) for p in ("--set", change)]
        command += [p for n, shards in sources.items() for p in ("--source", f"{n}={shards}")]
        call(log, *command, "--init", str(layout.teacher / "final"), "--out", str(folder / name))
        student = folder / name / "final"
    return evaluated(layout, student, folder / f"{name}-evaluation", log)


def evaluated(layout: RunLayout, model: Path, out: Path, log: Path) -> dict[str, float]:
    """Metrics of a model on BASE and NOVEL."""
    config = load_recipe(str(layout.config))
    command = [sys.executable, "-m", "pipeline", "evaluate", "--recipe", str(layout.config), "--model", str(model)]
    for name in config.data.evaluated():
        for shard in expand_shards(str(layout.train / f"{name}-*.tar")):
            command += ["--set-shards", f"{name}={shard}"]
    call(log, *command, "--out", str(out))
    return model_metrics(out / "metrics.json", config)


def differences(option: dict[int, dict[str, float]], recipe: dict[int, dict[str, float]]) -> dict[str, Any]:
    """Mean difference of each metric in points, and its standard deviation over seeds."""
    change: dict[str, Any] = {}
    for metric in METRICS:
        by_seed = [option[seed][metric] - recipe[seed][metric] for seed in option]
        change[metric] = {
            "mean": round(mean(by_seed), 2),
            "deviation": round(stdev(by_seed), 2) if len(by_seed) > 1 else None,
        }
    return {"change": change, "by_seed": option}


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*AVERAGES, *OPTIONS]
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--options", nargs="+", choices=every, default=every)
    parser.add_argument("--filter", nargs="+", default=[], metavar="NAME=VALUE", help="filter rules of the labels")
    parser.add_argument("--parallel", type=int, default=os.cpu_count() or 1, help="trainings at a time, 1 thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/noisy"), help="folder of the runs (default: runs/noisy)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    if args.filter and set(args.options) & set(AVERAGES):
        parser.error(
            f"{', '.join(AVERAGES)} exists for the recipe's own labels only; want other --options with --filter"
        )

    with ThreadPoolExecutor(args.parallel) as pool:
        runs = {
            seed: pool.submit(base_run, args.out.absolute() / f"seed-{seed}", seed, args.filter) for seed in args.seeds
        }

        def measured(seed: int, name: str) -> dict[str, float]:
            metrics = option_run(runs[seed].result(), seed, name)
            print(f"seed {seed} {name:20} {metrics}", flush=True)
            return metrics

        trained = [*([RECIPE] if args.filter else []), *args.options]
        options: dict[str, dict[int, Future[dict[str, float]]]] = {
            name: {seed: pool.submit(measured, seed, name) for seed in args.seeds} for name in trained
        }
        own = options.pop(RECIPE, {})
        recipe = {
            seed: own[seed].result()
            if own
            else model_metrics(run.result().layout.evaluation("student-1") / "metrics.json", load_recipe("demo"))
            for seed, run in runs.items()
        }
        figures: dict[str, Any] = {
            "filter": args.filter,
            "recipe": recipe,
            "options": {
                name: differences({seed: f.result() for seed, f in futures.items()}, recipe)
                for name, futures in options.items()
            },
            "settings": AVERAGES | {name: ", ".join(changes) for name, changes in OPTIONS.items()},
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        }
    print(f"{'points over the recipe':22}" + "".join(f"{m:>22}" for m in METRICS))
    for name, row in figures["options"].items():
        cells = [f"{row['change'][m]['mean']:+.1f} ± {row['change'][m]['deviation'] or 0:.1f}" for m in METRICS]
        print(f"{name:22}" + "".join(f"{c:>22}" for c in cells))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
