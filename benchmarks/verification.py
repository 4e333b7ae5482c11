"""Verifier and verdicts on the demo's data with hidden gold, over several seeds, and costs of verdicts.

    python benchmarks/verification.py --json verification.json
    python benchmarks/verification.py --json verification.json --students   # also trains three students a seed

For each seed the demo's scenes are drawn, its teacher is trained and labels the crawl. A simulated
reviewer, who reads the gold boxes, gives 300 verdicts: on 150 of the hard labels (score above 0.3, up
to three a phrase) and on 150 other regions above 0.2, at random. The verifier is fitted on them, and
measured on the images that have none. Finished steps in the folder are not repeated.

Keys, means over the seeds in percent or points; those below ``unseen`` are of phrases without a verdict:
``hard_precision``; ``precision_at_equal_recall_gain``: precision of the regions with the highest
``verified`` minus that, where both find as many right boxes; ``score_gain``: the same by score alone;
``ece`` of all regions, ``ece_hard`` of the hard labels; ``uncertain_over_random_wrong``: wrong ones
among the 300 labels of the demo's own rule whose ``verified`` is nearest 0.5, over those of 300 at
random; ``uncertain_by_score``: the same for the score nearest the threshold. ``append_per_s``,
``join_s``, ``join_gib``: 100,000 verdicts appended one by one, and joined with 10 million regions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from filter_boxes import child
from noisy_options import Labels, call, make_labels, option_run

from pipeline.config import FilterConfig
from pipeline.config.recipes import build, load_recipe
from pipeline.data.records import REGIONS
from pipeline.data.verdicts import Verdict, VerdictLog, Verdicts
from pipeline.demo.config import DemoDataConfig
from pipeline.demo.manifest import MANIFEST
from pipeline.evaluation.calibration import bands_of, calibration_error
from pipeline.evaluation.verification import precision_at
from pipeline.filtering.gold import GoldMatcher, comparable, read_gold
from pipeline.filtering.rules import apply_rules, open_regions
from pipeline.filtering.store import RegionShard
from pipeline.filtering.verdicts import JoinedVerdicts
from pipeline.filtering.verifier import thresholds_of
from pipeline.io.tables import write_table
from pipeline.runs.layout import RunLayout
from pipeline.stages import ApplyVerifier, FitVerifier, Ingest, MakeDemoData, ParsePhrases, PseudoLabel, TrainModel

HARD = FilterConfig(threshold=0.3, best_per_phrase=3, min_regions=0)
TUNED = FilterConfig(threshold=0.5, best_per_phrase=1, min_regions=0)
VERDICTS = 300
LOW = 0.2
MEASURES = (
    "hard_precision", "hard_recall", "precision_at_equal_recall_gain", "score_gain", "ece", "ece_hard", "regions",
)  # fmt: skip
JOIN_SHARDS, SHARD_REGIONS, SHARD_VERDICTS = 100, 100_000, 1000


def labelled_run(root: Path, changes: Sequence[str]) -> RunLayout:
    """The demo's scenes, its teacher and its regions, as ``self-train run --recipe demo`` makes them."""
    config = load_recipe("demo", [*changes, "demo.photos=false", "control=false", "resources.threads=1"])
    layout = RunLayout(root)
    root.mkdir(parents=True, exist_ok=True)
    layout.config.write_text(yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False))
    scenes = build(DemoDataConfig, {"seed": config.seed, **(config.demo or {})}, where="demo")
    MakeDemoData(out=layout.data, settings=scenes).run()
    Ingest(manifest=str(MANIFEST), root=str(layout.data), out=layout.train, settings=config.ingest).run()
    crawl = str(layout.data / "crawl")
    ParsePhrases(shards=crawl, out=layout.phrases, settings=config.parse_phrases).run()
    human = {name: str(layout.train / f"{name}-*.tar") for name in config.data.sources}
    settings = config.teacher.training(seed=config.seed)
    TrainModel(settings=settings, sources=human, out=layout.teacher, model=config.model, threads=1).run()
    PseudoLabel(
        shards=crawl, phrases=layout.phrases, teacher=layout.teacher / "final", out=layout.regions(1),
        settings=config.pseudo_label, decoders=1,
    ).run()  # fmt: skip
    return layout


@dataclass(frozen=True)
class Pool:
    """All regions of a store. score (n,); right (n,): as the gold says; hard, tuned (n,): labels of the two rules;
    image, text (n,): numbers; shard, row (n,): where each is."""

    score: np.ndarray
    right: np.ndarray
    hard: np.ndarray
    tuned: np.ndarray
    image: np.ndarray
    text: np.ndarray
    shard: np.ndarray
    row: np.ndarray


def read_pool(paths: Sequence[Path], gold: Path) -> Pool:
    """Read a store's regions; a gold box makes one region of its phrase right, the best that has IoU 0.5 with it."""
    parts, texts, images = [], dict[str, int](), 0
    for number, path in enumerate(paths):
        shard = RegionShard(path)
        codes, keys = shard.keys()
        truth, start, end = comparable(read_gold(gold / path.name), shard)
        matcher = GoldMatcher(truth, codes, keys, start, end, shard.boxes(), shard.numbers("score"), 0.5)
        text_codes, names = shard.texts()
        of_text = np.array([texts.setdefault(name, len(texts)) for name in names.to_pylist()])
        labels = []
        for rule in (HARD, TUNED):
            opened = open_regions(path, rule)
            kept = np.zeros(shard.size, bool)
            kept[np.flatnonzero(shard.numbers("score") >= rule.threshold)] = apply_rules(opened, rule).keeps
            labels.append(kept)
        parts.append(Pool(
            shard.numbers("score"), matcher.match(np.ones(shard.size, bool)) >= 0, *labels, codes + images,
            of_text[text_codes], np.full(shard.size, number), np.arange(shard.size),
        ))  # fmt: skip
        images += len(keys)
    return Pool(*(np.concatenate([getattr(part, name) for part in parts]) for name in Pool.__dataclass_fields__))


def review(paths: Sequence[Path], pool: Pool, chosen: np.ndarray, folder: Path) -> None:
    """Write a verdict on each chosen region: accept if it is right, else reject."""
    with VerdictLog(folder) as log:
        for number in np.unique(pool.shard[chosen]).tolist():
            rows = pool.row[chosen[pool.shard[chosen] == number]]
            right = pool.right[chosen[pool.shard[chosen] == number]]
            log.append(*verdicts_on(paths[number], rows, right))


def verdicts_on(path: Path, rows: np.ndarray, right: np.ndarray) -> list[Verdict]:
    """Verdicts on rows of a regions file."""
    table = RegionShard(path).table(np.ones(RegionShard(path).size, bool), REGIONS).take(rows)
    return [
        Verdict(
            verdict="accept" if ok else "reject", shard=path.stem, box=(r["x1"], r["y1"], r["x2"], r["y2"]), by="gold",
            **{name: r[name] for name in ("key", "phrase", "start", "end", "height", "width")},
        )
        for r, ok in zip(table.to_pylist(), right.tolist(), strict=True)
    ]  # fmt: skip


def measured(pool: Pool, verified: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Figures of some regions."""
    right, hard = pool.right[rows], pool.hard[rows]
    recall, precision = right[hard].sum() / right.sum(), right[hard].mean()

    def ece(of: np.ndarray) -> float:
        return calibration_error(bands_of(verified[rows][of], right[of], 10))

    return {
        "hard_precision": 100 * precision,
        "hard_recall": 100 * recall,
        "precision_at_equal_recall_gain": 100 * (precision_at(verified[rows], right, recall) - precision),
        "score_gain": 100 * (precision_at(pool.score[rows], right, recall) - precision),
        "ece": ece(np.ones(len(rows), bool)),
        "ece_hard": ece(hard),
        "regions": len(rows),
    }


def verify(layout: RunLayout, seed: int) -> dict[str, Any]:
    """Give the verdicts, fit, apply and measure."""
    work, paths = layout.root / "verification", sorted(layout.regions(1).glob("*.parquet"))
    pool, rng = read_pool(paths, layout.data / "crawl_gold"), np.random.default_rng(seed)
    chosen = rng.choice(np.flatnonzero(pool.hard), VERDICTS // 2, replace=False)
    others = np.setdiff1d(np.flatnonzero(pool.score > LOW), chosen)
    chosen = np.sort(np.append(chosen, rng.choice(others, VERDICTS - len(chosen), replace=False)))
    if not (work / "verdicts").exists():
        review(paths, pool, chosen, work / "verdicts")
    regions = str(layout.regions(1))
    FitVerifier(regions=regions, verdicts=work / "verdicts", out=work / "verifier", seed=seed).run()
    ApplyVerifier(regions=regions, verifier=work / "verifier", out=work / "regions").run()
    verified = np.concatenate([RegionShard(work / "regions" / path.name).numbers("verified") for path in paths])
    without = ~np.isin(pool.image, pool.image[chosen])
    figures: dict[str, Any] = measured(pool, verified, np.flatnonzero(without))
    unseen = np.flatnonzero(without & ~np.isin(pool.text, pool.text[chosen]))
    if pool.right[unseen].any():
        figures["unseen"] = measured(pool, verified, unseen)
    labels = np.flatnonzero(without & pool.tuned)
    wrong = (~pool.right[labels]).mean()
    for name, distance in (
        ("uncertain_over_random_wrong", np.abs(verified[labels] - 0.5)),
        ("uncertain_by_score", np.abs(pool.score[labels] - TUNED.threshold)),
    ):
        first = labels[np.argsort(distance, kind="stable")[:VERDICTS]]
        figures[name] = float((~pool.right[first]).mean() / wrong)
    figures["tuned_precision"] = float(100 * (1 - wrong))
    ((found),) = thresholds_of([verified[without]], [0.9])
    if found is not None:
        kept = without & (verified > found[0])
        figures |= {"threshold_90": found[0], "kept_90": int(kept.sum())}
        figures["precision_90"] = float(100 * pool.right[kept].mean())
    return figures


def students(layout: RunLayout, seed: int, threshold: float) -> dict[str, dict[str, float]]:
    """Metrics of students on the hard labels, on those of the demo's rule, and on those above a ``verified``."""
    found = {}
    for name, rules in (
        ("hard", ["threshold=0.3", "best_per_phrase=3"]),
        ("tuned", ["threshold=0.5", "best_per_phrase=1"]),
    ):
        found[name] = option_run(make_labels(layout, rules), seed, "recipe")
    folder = layout.root / "verification"
    inputs = ["--regions", str(folder / "regions"), "--out", str(folder / "labels")]
    rules = ["--set", "score_by=verified", "--set", f"threshold={threshold}"]
    stage = (sys.executable, "-m", "pipeline")
    call(folder / "labels.log", *stage, "filter-boxes", *inputs, *rules)
    inputs = [
        "--shards",
        str(layout.data / "crawl"),
        "--phrases",
        str(layout.phrases),
        "--labels",
        str(folder / "labels"),
    ]
    call(
        folder / "labels.log",
        *stage,
        "build-shards",
        "--recipe",
        str(layout.config),
        *inputs,
        "--out",
        str(folder / "pseudo"),
    )
    found["verified"] = option_run(Labels(layout, folder, folder / "pseudo"), seed, "recipe")
    return found


def make_big_store(folder: Path) -> None:
    """Shards of 5,000 images with 20 regions of four phrases, and verdicts on a hundredth of the regions."""
    rng, n = np.random.default_rng(0), SHARD_REGIONS
    for number in range(JOIN_SHARDS):
        image, phrase = np.repeat(np.arange(n // 20), 20), np.tile(np.repeat(np.arange(4), 5), n // 20)
        x = rng.random((n, 4)).astype(np.float32) * 100
        x[:, 2:] += x[:, :2] + 1
        columns = {"key": [f"k{i}" for i in image], "phrase_row": image * 4 + phrase}
        columns |= {"phrase": [f"cat {i}" for i in phrase], "start": phrase * 6, "end": phrase * 6 + 5}
        columns |= dict(zip(("x1", "y1", "x2", "y2"), x.T, strict=True))
        evidence = ("score", "token_mean", "token_min", "token_max", "centerness")
        columns |= {name: rng.random(n).astype(np.float32) for name in evidence}
        columns |= {"rank": np.tile(np.arange(5), n // 5), "height": np.full(n, 300), "width": np.full(n, 300)}
        write_table(folder / f"{number:05d}.parquet", pa.table(columns).cast(REGIONS), REGIONS, {})


def append(folder: Path) -> float:
    """Append verdicts on random regions one by one; verdicts a second."""
    rng, seconds = np.random.default_rng(1), 0.0
    with VerdictLog(folder / "verdicts") as log:
        for path in sorted(folder.glob("*.parquet")):
            rows = np.sort(rng.choice(SHARD_REGIONS, SHARD_VERDICTS, replace=False))
            given = verdicts_on(path, rows, rng.random(len(rows)) < 0.5)
            started = time.perf_counter()
            for verdict in given:
                log.append(verdict)
            seconds += time.perf_counter() - started
    return JOIN_SHARDS * SHARD_VERDICTS / seconds


def join(store: Path, work: Path, repeats: int) -> dict[str, float]:
    """Read the verdicts, join and judge every shard; seconds, and the process's peak memory."""
    started = time.perf_counter()
    verdicts, judged = Verdicts.read(store / "verdicts"), 0
    for path in sorted(store.glob("*.parquet")):
        shard = RegionShard(path)
        judged += int(JoinedVerdicts(shard, verdicts.of(shard.name)).judge(shard)[0].sum())
    assert judged == len(verdicts) == JOIN_SHARDS * SHARD_VERDICTS, (judged, len(verdicts))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"join_s": round(time.perf_counter() - started, 2), "join_gib": round(peak, 3)}


def means(by_seed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means of numbers over seeds; of dicts their means."""
    return {
        name: means([figures[name] for figures in by_seed]) if isinstance(value, dict)
        else round(mean(figures[name] for figures in by_seed), 2)
        for name, value in by_seed[0].items() if all(name in figures for figures in by_seed)
    }  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/verification"), help="folder of the runs")
    parser.add_argument("--set", dest="changes", action="append", default=[], help="change the recipe")
    parser.add_argument("--students", action="store_true", help="also train a student on each of three kinds of labels")
    parser.add_argument("--without-costs", action="store_true", help="leave out appending and joining")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--part", choices=["join"], help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(join(args.store, args.work, args.repeats)))
        return
    figures: dict[str, Any] = {}
    by_seed: dict[int, dict[str, Any]] = {}
    for seed in args.seeds:
        layout = labelled_run(args.out.absolute() / f"seed-{seed}", [*args.changes, f"seed={seed}"])
        by_seed[seed] = verify(layout, seed)
        if args.students:
            by_seed[seed]["students"] = students(layout, seed, by_seed[seed]["threshold_90"])
        print(f"seed {seed}", json.dumps(by_seed[seed]), flush=True)
    if by_seed:
        figures |= means(list(by_seed.values()))
    if args.students:
        for other in ("hard", "tuned"):
            trained = figures["students"]
            figures[f"student_over_{other}"] = {
                m: round(v - trained[other][m], 2) for m, v in trained["verified"].items()
            }
    if not args.without_costs:
        with tempfile.TemporaryDirectory(prefix="verification-") as name:
            make_big_store(Path(name))
            figures["append_per_s"] = round(append(Path(name)))
            figures |= child(__file__, "join", Path(name), Path(name), 1)
    figures["seeds"] = by_seed
    figures["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(json.dumps({name: value for name, value in figures.items() if name != "seeds"}, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
