"""Calibration of scores: precision of detections in bands of their score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.matching import Matches

BANDS = 20


def is_judged(matches: Matches) -> np.ndarray:
    """(n,) bool: detections that are true or false positives at IoU 0.5.

    The others match a crowd box, or their class is annotated neither as present nor as absent.
    """
    judged: np.ndarray = ~matches.ignored[:, 0] & (matches.present | matches.absent)
    return judged


def score_bands(matches: Matches) -> list[dict[str, float]]:
    """:func:`bands_of` the detections of :func:`is_judged`."""
    judged = is_judged(matches)
    return bands_of(matches.score[judged], matches.tp[judged, 0])


def bands_of(score: np.ndarray, tp: np.ndarray, number: int = BANDS) -> list[dict[str, float]]:
    """Detections in equal bands of score (n,) 0..1, without empty bands; tp (n,): true positives.

    Returns:
        ``from``, ``to``, mean ``score``, ``detections``, ``right`` (true positives), ``precision``
        (percent) of each band.
    """
    score = np.asarray(score, np.float64)
    band = np.clip((score * number).astype(int), 0, number - 1)
    n = np.bincount(band, minlength=number)
    correct = np.bincount(band, tp, minlength=number)
    total = np.bincount(band, score, minlength=number)
    return [
        {
            "from": i / number, "to": (i + 1) / number, "score": float(total[i] / n[i]), "detections": int(n[i]),
            "right": int(correct[i]), "precision": 100.0 * float(correct[i] / n[i]),
        }
        for i in np.flatnonzero(n)
    ]  # fmt: skip


def calibration_error(bands: Sequence[dict[str, float]]) -> float:
    """Expected calibration error in percentage points (Guo et al. 2017)."""
    total = sum(b["detections"] for b in bands)
    return sum(b["detections"] * abs(100 * b["score"] - b["precision"]) for b in bands) / max(total, 1)
