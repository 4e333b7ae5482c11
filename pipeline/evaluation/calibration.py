"""How far a score can be trusted: the share of right detections in bands of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.matching import Matches

BANDS = 20


def is_judged(matches: Matches) -> np.ndarray:
    """(n,) bool: detections that are right or wrong at IoU 0.5. Not those of crowds, nor of names of which nothing is known in their image."""
    return ~matches.ignored[:, 0] & (matches.present | matches.absent)


def score_bands(matches: Matches, bands: int = BANDS) -> list[dict[str, float]]:
    """Detections that are :func:`is_judged`, by score: ``from``, ``to``, mean ``score``, ``detections``, ``right``, ``precision`` in
    percent. Empty bands are left out."""
    counts = is_judged(matches)
    score, right = np.asarray(matches.score[counts], np.float64), matches.hit[counts, 0]
    band = np.clip((score * bands).astype(int), 0, bands - 1)
    n = np.bincount(band, minlength=bands)
    good = np.bincount(band, right, minlength=bands)
    total = np.bincount(band, score, minlength=bands)
    return [
        {
            "from": i / bands, "to": (i + 1) / bands, "score": float(total[i] / n[i]), "detections": int(n[i]),
            "right": int(good[i]), "precision": 100.0 * float(good[i] / n[i]),
        }
        for i in np.flatnonzero(n)
    ]  # fmt: skip


def calibration_error(bands: Sequence[dict[str, float]]) -> float:
    """Expected calibration error in points: mean distance of score and precision, weighted by detections (Guo et al. 2017)."""
    total = sum(b["detections"] for b in bands)
    return sum(b["detections"] * abs(100 * b["score"] - b["precision"]) for b in bands) / max(total, 1)
