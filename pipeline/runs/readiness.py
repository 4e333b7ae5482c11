"""Whether a teacher is ready to label: the precision of its labels, and whether it had stopped learning."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pipeline.config import SelfTrainConfig
from pipeline.errors import RunError
from pipeline.evaluation.calibration import is_judged
from pipeline.evaluation.compare import Evaluated
from pipeline.evaluation.matching import rank_in_class
from pipeline.runs.layout import RunLayout

log = logging.getLogger("glip_self_train")
DOUBTFUL = 60.0
"""Precision in percent below which labels are warned of (docs/training.md#when-labels-do-harm)."""
FEW_LABELS = 20
RISING = 5.0
"""Points by which a control, trained on human labels alone, shows that its teacher was not trained enough."""


class LabelEstimate(NamedTuple):
    """Precision in percent of the labels that a teacher would give on an evaluation set, and their number."""

    set_name: str
    threshold: float
    labels: int
    precision: float

    def __str__(self) -> str:
        return (
            f"{self.precision:.0f} % of {self.labels:,} labels right on {self.set_name} at threshold {self.threshold:g}"
        )


def estimate_labels(config: SelfTrainConfig, layout: RunLayout, teacher: str) -> LabelEstimate | None:
    """Estimate the precision of a teacher's labels from its evaluation; None with fewer than FEW_LABELS.

    Of the first set of data.base and the others, at the threshold of filter_boxes, at most
    best_per_phrase for each name of an image. Only names that are present count, as captions name
    what is there.
    """
    rules = config.filter_boxes
    for name in dict.fromkeys((config.data.base, *config.data.evaluated())):
        if name is None or not layout.evaluation(teacher).is_dir():
            continue
        m = Evaluated.read(layout.evaluation(teacher)).match_tables(name).matches
        rows = np.flatnonzero(is_judged(m) & m.present & (m.score > rules.threshold))
        if rules.best_per_phrase:
            order = rows[np.lexsort((-m.score[rows], m.image[rows]))]
            pair = m.image[order].astype(np.int64) * (int(m.label.max(initial=0)) + 1) + m.label[order]
            rows = order[rank_in_class(pair) < rules.best_per_phrase]
        if len(rows) >= FEW_LABELS:
            return LabelEstimate(name, rules.threshold, len(rows), 100.0 * float(m.tp[rows, 0].mean()))
    return None


def check_teacher(config: SelfTrainConfig, layout: RunLayout, teacher: str) -> str:
    """Say how right a teacher's labels will be, before it labels; "" if that is not known.

    Raises:
        RunError: fewer than ``promotion.least_label_precision`` of them.
    """
    estimate, least = estimate_labels(config, layout, teacher), config.promotion.least_label_precision
    if estimate is None:
        return ""
    advice = (
        "train the teacher longer (teacher.steps), or label less (filter_boxes.threshold); bad labels can make the "
        "student worse than its control"
    )
    if estimate.precision < 100 * least:
        raise RunError(
            f"{teacher}: {estimate}; want {100 * least:g} % (promotion.least_label_precision) before the crawl is "
            f"labelled: {advice}"
        )
    if estimate.precision < DOUBTFUL:
        log.warning("%s: %s: %s", teacher, estimate, advice)
    return f"{teacher}: {estimate}"


def teacher_rises(control_over_teacher: Mapping[str, Mapping[str, float]] | None, set_name: str, metric: str) -> str:
    """Sentence on a control that is much better than its teacher; "" otherwise."""
    rise: Any = (control_over_teacher or {}).get(set_name, {}).get(metric, 0.0)
    if rise < RISING:
        return ""
    return (
        f"the teacher was not trained enough when it labelled: on human labels alone its control rose by {rise:.1f} "
        f"points of {set_name}.{metric} (want more teacher.steps)"
    )
