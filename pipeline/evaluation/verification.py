"""Fit of a verifier on judged regions, cross-validated, and its report (docs/verify.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.data.verdicts import Verdicts
from pipeline.errors import InputError
from pipeline.evaluation.calibration import bands_of, calibration_error
from pipeline.evaluation.plots import reliability
from pipeline.execution.progress import Progress, Silent
from pipeline.filtering.evidence import Mentions, evidence, inputs_of
from pipeline.filtering.gold import Gold, GoldMatcher, comparable, gold_tables, read_gold
from pipeline.filtering.store import RegionShard
from pipeline.filtering.verdicts import JoinedVerdicts
from pipeline.filtering.verifier import Model, Verifier, standard
from pipeline.io.atomic import write_atomic, write_json
from pipeline.io.paths import join, stem

MIN_REGIONS = 50
MIN_OF_EACH = 10
"""Fewest correct and fewest wrong regions."""
MAX_REGIONS = 200_000
FOLDS = 5
RECALLS = (0.5, 0.6, 0.7, 0.8, 0.9)
REPEATS = 3
"""Shuffles of each input for its importance."""
FEW = 1000
"""Number of regions below which model and calibration are simpler."""
LIMIT = 20.0
"""Log odds beyond which a sigmoid is constant."""
RISING = ("score", "margin", "rival_margin", "place_margin")
"""Inputs with which the probability never falls."""
FALLING = ("rank", "same_iou")
"""Inputs with which it never rises."""


@dataclass(frozen=True)
class Judged:
    """Regions that are known to be right or wrong.

    inputs (n, features) float32; correct (n,) bool; image, text (n,): numbers of the image and of the phrase's text.
    """

    inputs: np.ndarray
    correct: np.ndarray
    image: np.ndarray
    text: np.ndarray

    def of(self, rows: np.ndarray) -> Judged:
        """Those of some rows."""
        return Judged(self.inputs[rows], self.correct[rows], self.image[rows], self.text[rows])


def judged_regions(
    regions: Sequence[str], judge: Mapping[str, Any], inputs: Sequence[str], mentions: Mentions, iou: float
) -> Judged:
    """The regions with a verdict, or in images with gold boxes.

    judge: shard name -> its table of verdicts, or the path of its gold table.
    """
    parts, texts_seen, images = [], dict[str, int](), 0
    for path in regions:
        if (given := judge.get(stem(path))) is None:
            continue
        shard, gold = RegionShard(path), read_gold(given) if isinstance(given, str) else None
        judged_keys = given["key"].combine_chunks() if gold is None else gold.keys
        shard.restrict(pc.is_in(shard.whole("key"), value_set=judged_keys).to_numpy(zero_copy_only=False))
        codes, keys = shard.keys()
        if gold is None:
            judged, correct = JoinedVerdicts(shard, given).judge(shard, iou)
        else:
            judged, correct = _by_gold(shard, gold, iou)
        rows = np.flatnonzero(judged)
        text_codes, texts = shard.texts()
        numbers = np.array([texts_seen.setdefault(text, len(texts_seen)) for text in texts.to_pylist()], np.int64)
        if len(rows):
            known = evidence(shard, inputs, mentions)[rows]
            parts.append(Judged(known, correct[rows], codes[rows] + images, numbers[text_codes[rows]]))
        images += len(keys)
    if not parts:
        return Judged(np.zeros((0, len(inputs)), np.float32), np.zeros(0, bool), *(np.zeros(0, np.int64),) * 2)
    return Judged(*(np.concatenate([getattr(p, f) for p in parts]) for f in Judged.__dataclass_fields__))


def _by_gold(shard: RegionShard, gold: Gold, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """All regions in images with gold; correct: the best one of each gold box, as labels are counted."""
    codes, keys = shard.keys()
    truth, start, end = comparable(gold, shard)
    matcher = GoldMatcher(truth, codes, keys, start, end, shard.boxes(), shard.numbers("score"), iou)
    return np.ones(shard.size, bool), matcher.match(np.ones(shard.size, bool)) >= 0


# -- the fit ---------------------------------------------------------------------------------------


def fit_model(judged: Judged, names: Sequence[str], seed: int) -> Model:
    """Gradient boosting with histograms; of few regions small trees, averaged with a logistic regression."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    if judged.correct.all() or not judged.correct.any():  # of a fold
        odds = (judged.correct.sum() + 1) / ((~judged.correct).sum() + 1)
        return Model.constant(float(np.log(odds)), len(names))
    few = len(judged.correct) < FEW
    model = HistGradientBoostingClassifier(
        learning_rate=0.05, max_iter=100 if few else 200, max_leaf_nodes=4 if few else 15,
        min_samples_leaf=12 if few else 40, l2_regularization=5.0, max_features=0.5,
        monotonic_cst=[(name in RISING) - (name in FALLING) for name in names], early_stopping=False, random_state=seed,
    )  # fmt: skip
    with threadpool_limits(1):  # sums in one order
        trees = as_arrays(model.fit(judged.inputs.astype(np.float64), judged.correct))
        if not few:
            return trees
        known = np.ma.masked_invalid(judged.inputs.astype(np.float64))
        mean, scale = known.mean(0).filled(0), known.std(0).filled(0) + 1e-6
        line = LogisticRegression(C=0.1, max_iter=1000).fit(standard(judged.inputs, mean, scale), judged.correct)
    return replace(
        trees, baseline=(trees.baseline + line.intercept_[0]) / 2, value=trees.value / 2, weight=line.coef_[0] / 2,
        mean=mean, scale=scale,
    )  # fmt: skip


def as_arrays(model: Any) -> Model:
    """The trees of a fitted HistGradientBoostingClassifier, of scikit-learn's undocumented attributes."""
    trees = [rounds[0].nodes for rounds in model._predictors]
    sizes = [len(nodes) for nodes in trees]
    roots = np.cumsum(sizes) - sizes
    nodes, offset = np.concatenate(trees), np.repeat(roots, sizes)
    leaf = nodes["is_leaf"].astype(bool)
    features = model.n_features_in_
    return Model(
        baseline=np.asarray(model._baseline_prediction, np.float64).reshape(()), roots=roots,
        feature=np.where(leaf, -1, nodes["feature_idx"]), threshold=np.where(leaf, 0, nodes["num_threshold"]),
        left=np.where(leaf, 0, nodes["left"] + offset), right=np.where(leaf, 0, nodes["right"] + offset),
        missing_left=~leaf & (nodes["missing_go_to_left"] > 0), value=np.where(leaf, nodes["value"], 0),
        weight=np.zeros(features), mean=np.zeros(features), scale=np.ones(features),
    )  # fmt: skip


def fit_calibration(log_odds: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (log odds ascending, probability) of a curve that never falls.

    Of fewer than FEW regions a sigmoid (Platt 1999), else isotonic regression, each level of which is
    one point, at the mean of its log odds (Oron and Flournoy 2017), so that its regions keep their order.
    """
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression

    if len(correct) < FEW:
        points = np.linspace(-LIMIT, LIMIT, 401)
        if correct.any() and not correct.all():
            sigmoid = LogisticRegression(C=100).fit(log_odds[:, None], correct)
            if sigmoid.coef_[0, 0] > 0:
                return points, sigmoid.predict_proba(points[:, None])[:, 1]
        return points, np.full(len(points), correct.mean())  # the model has found nothing
    level = IsotonicRegression(out_of_bounds="clip").fit_transform(log_odds, correct.astype(np.float64))
    values, of, n = np.unique(level, return_inverse=True, return_counts=True)
    return np.bincount(of, log_odds) / n, values


def out_of_fold(judged: Judged, names: Sequence[str], groups: np.ndarray, seed: int) -> tuple[np.ndarray, list[Any]]:
    """((n,) log odds by models that were fitted without the region's group, [(model, rows of the fold)])."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(min(FOLDS, len(np.unique(groups))), shuffle=True, random_state=seed)
    log_odds, fitted = np.zeros(len(groups)), []
    for train, held in folds.split(judged.inputs, judged.correct, groups):
        model = fit_model(judged.of(train), names, seed)
        log_odds[held] = model(judged.inputs[held])
        fitted.append((model, held))
    return log_odds, fitted


def _calibrated_out_of_fold(log_odds: np.ndarray, correct: np.ndarray, fitted: list[Any]) -> np.ndarray:
    """(n,) probabilities by calibrations that did not see the region's fold."""
    probability = np.zeros(len(correct))
    for _, held in fitted:
        others = np.setdiff1d(np.arange(len(correct)), held)
        probability[held] = np.interp(log_odds[held], *fit_calibration(log_odds[others], correct[others]))
    return probability


def average_precision(score: np.ndarray, correct: np.ndarray) -> float:
    """Mean of the precision at each correct region, in order of score; of equal scores that of the last."""
    precision, recall = precision_recall(score, correct)
    return float(np.sum(np.diff(recall, prepend=0) * precision))


def precision_recall(score: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall among the regions at each distinct score, from the highest on."""
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.diff(score[order]) != 0, True)
    found = np.cumsum(correct[order])[ends]
    return found / (np.flatnonzero(ends) + 1), found / max(int(correct.sum()), 1)


def precision_at(score: np.ndarray, correct: np.ndarray, recall: float) -> float:
    """Highest precision at which a threshold finds at least this share of the correct regions."""
    precision, found = precision_recall(score, correct)
    return float(precision[found >= recall].max())


def _figures(score: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    at = {f"{recall:g}": _percent(precision_at(score, correct, recall)) for recall in RECALLS}
    return {"average_precision": _percent(average_precision(score, correct)), "precision_at_recall": at}


def _percent(share: float) -> float:
    return round(100 * share, 2)


def _against_score(
    judged: Judged, names: Sequence[str], groups: np.ndarray, seed: int
) -> tuple[dict[str, Any], np.ndarray, list[Any]]:
    log_odds, fitted = out_of_fold(judged, names, groups, seed)
    probability = _calibrated_out_of_fold(log_odds, judged.correct, fitted)
    verified = _figures(probability, judged.correct) | {
        "ece": round(calibration_error(bands_of(probability, judged.correct, 10)), 2),
        "brier": round(float(np.mean((probability - judged.correct) ** 2)), 4),
    }
    score = _figures(judged.inputs[:, names.index("score")], judged.correct)
    return {"verified": verified, "score": score}, log_odds, fitted


def _importance(judged: Judged, names: Sequence[str], fitted: list[Any], seed: int) -> dict[str, float]:
    """Points of average precision that are lost if an input is shuffled among the regions of a fold (Breiman 2001)."""

    def held_out(inputs: np.ndarray) -> float:
        log_odds = np.zeros(len(inputs))
        for model, held in fitted:
            log_odds[held] = model(inputs[held])
        return average_precision(log_odds, judged.correct)

    rng, whole, lost = np.random.default_rng(seed), held_out(judged.inputs), {}
    for column, name in enumerate(names):
        drops = []
        for _ in range(REPEATS):
            inputs = judged.inputs.copy()
            for _, held in fitted:
                inputs[held, column] = inputs[rng.permutation(held), column]
            drops.append(whole - held_out(inputs))
        lost[name] = _percent(float(np.mean(drops)))
    return dict(sorted(lost.items(), key=lambda item: -item[1]))


def fit_verifier(
    regions: Sequence[str],
    out: str | Path,
    *,
    verdicts: str | None = None,
    gold: str | None = None,
    iou: float = 0.5,
    seed: int = 0,
    progress: Progress = Silent(),
) -> dict[str, Any]:
    """Fit a verifier on the regions with verdicts, or with gold boxes, and write it and its report.

    The model is fitted on all judged regions, at most MAX_REGIONS of them. The calibration is
    fitted on the log odds that models of the other images give each region. The report's figures are
    of regions whose image, and again whose phrase, neither model nor calibration have seen.

    Args:
        verdicts: folder; accept, reject and fixed count. gold: folder of gold tables.
        iou: of a right region with its gold box, and of a fixed one with its right box.

    Returns:
        The report: ``report.json``, of which ``report.md`` and ``reliability.svg`` show a part.

    Raises:
        InputError: too few regions are judged, or nearly all are right or wrong; scikit-learn is missing.
    """
    try:
        import sklearn
    except ImportError:
        raise InputError("verify fit: found no scikit-learn; want it: pip install 'glip-self-train[verify]'") from None
    judge = Verdicts.read(verdicts).shards if verdicts is not None else gold_tables(str(gold))
    progress.begin("verify fit", 3, "steps")
    names, mentions = inputs_of(RegionShard(regions[0])), Mentions.count(RegionShard(path) for path in regions)
    progress.advance(1, "steps")
    judged = judged_regions(regions, judge, names, mentions, iou)
    right = int(judged.correct.sum())
    wrong = len(judged.correct) - right
    images = len(np.unique(judged.image))
    if right + wrong < MIN_REGIONS or min(right, wrong) < MIN_OF_EACH or images < FOLDS:
        raise InputError(
            f"{verdicts or gold}: found {right} right and {wrong} wrong regions of the store, in {images} images; want "
            f"at least {MIN_REGIONS}, of which {MIN_OF_EACH} right and {MIN_OF_EACH} wrong, in {FOLDS} images"
        )
    if right + wrong > MAX_REGIONS:
        chosen = np.random.default_rng(seed).choice(right + wrong, MAX_REGIONS, replace=False)
        judged = judged.of(np.sort(chosen))
    progress.advance(1, "steps")
    by_image, log_odds, fitted = _against_score(judged, names, judged.image, seed)
    probability = _calibrated_out_of_fold(log_odds, judged.correct, fitted)
    unseen = _against_score(judged, names, judged.text, seed)[0] if len(np.unique(judged.text)) > 1 else None
    points = fit_calibration(log_odds, judged.correct)
    verifier = Verifier(names, fit_model(judged, names, seed), *points, mentions)
    curve = bands_of(probability, judged.correct, 10)
    report = {
        "regions": len(judged.correct), "right": int(judged.correct.sum()), "images": len(np.unique(judged.image)),
        "phrases": len(np.unique(judged.text)), "unseen_images": by_image, "unseen_phrases": unseen,
        "importance": _importance(judged, names, fitted, seed), "reliability": curve,
        "by": "verdicts" if verdicts is not None else "gold", "iou": iou, "seed": seed,
        "scikit-learn": sklearn.__version__,
    }  # fmt: skip
    write_atomic(join(out, "reliability.svg"), reliability(curve, "regions"))
    write_atomic(join(out, "report.md"), "\n".join(["# Verifier", "", *_markdown(report), ""]))
    verifier.write(out)
    write_json(join(out, "report.json"), report)
    progress.advance(1, "steps")
    return report


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report as a few lines for a terminal."""
    n, right = report["regions"], report["right"]
    out = [f"{n:,} regions of {report['images']:,} images, {right:,} right ({100 * right / n:.1f} %)"]
    return [*out, *_table(report, "  ".join, 24, 7)]


def _markdown(report: Mapping[str, Any]) -> list[str]:
    head, *rows = _table(report, lambda cells: f"| {' | '.join(cells)} |", 0, 0)
    importance = [f"| `{name}` | {points:.2f} |" for name, points in report["importance"].items()]
    return [
        lines(report)[0] + ".", "", head, "|" + "---|" * (head.count("|") - 1), *rows, "",
        "Percent; by cross-validation: the verifier of a row has seen no region of the same image, or of the same "
        "phrase. AP: average precision. P@R: precision at the threshold that finds R percent of the right regions. "
        "ECE: expected calibration error, in points.", "", "![reliability](reliability.svg)", "",
        "| input | points of AP lost if it is shuffled |", "|---|---|", *importance,
    ]  # fmt: skip


def _table(report: Mapping[str, Any], join_cells: Callable[[list[str]], str], first: int, width: int) -> list[str]:
    """Head and rows of the verifier's figures and the score's."""
    rows = [["", "AP", *(f"P@{100 * recall:g}" for recall in RECALLS), "ECE"]]
    for of, title in (("unseen_images", "unseen images"), ("unseen_phrases", "unseen phrases")):
        for by, figures in (report[of] or {}).items():
            values = [figures["average_precision"], *figures["precision_at_recall"].values(), figures.get("ece")]
            rows.append([f"{by}, {title}", *("-" if value is None else f"{value:.1f}" for value in values)])
    return [join_cells([cells[0].ljust(first), *(cell.rjust(width) for cell in cells[1:])]) for cells in rows]
