"""Whether a student may teach the next round: gates on how its metrics differ from the teacher's."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.evaluation.compare import MEAN, compare, lacking_words
from pipeline.io.atomic import write_json

DEFAULT_GATES = (
    "*.ap >= -1",
    "*.recall_at_1 >= -1",
    "*.precision_at_1 >= -1",
    "*.ap_rare >= 0",
)
"""No headline metric down by more than a point, and rare names not down at all.

Published students that these stop: MM-GroundingDINO with GRIT, LVIS APr 28.1 to 26.6; GLIP-T with CC3M and SBU, ODinW-13 44.4 to 42.7.
Those they let through: GLIP-T (C) to GLIP-T with Cap4M, LVIS minival APr 17.7 to 20.8, COCO AP 46.7 to 46.3 (GLIP, tables 2 and 3).
"""
_FORM = re.compile(r"\s*([^.<>=]+)\.([^\s.<>=]+)\s*(>=|>)\s*([+-]?\d+(?:\.\d*)?)\s*")


@dataclass(frozen=True)
class Gate:
    """student - teacher >= least (> where strict), in points, for metrics whose set and name fit the patterns."""

    text: str
    set_pattern: str
    metric_pattern: str
    strict: bool
    least: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """``SET.METRIC >= POINTS`` with shell patterns, such as ``lvis.ap_rare > 0`` or ``*.ap* >= -0.5``.

        Raises:
            InputError: not of that form.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise InputError(f"gate {text!r}: want SET.METRIC>=POINTS or SET.METRIC>POINTS, such as 'lvis.ap_rare>0'")
        set_pattern, metric_pattern, sign, least = found.groups()
        return cls(
            f"{set_pattern}.{metric_pattern} {sign} {least}", set_pattern, metric_pattern, sign == ">", float(least)
        )

    def holds(self, difference: float) -> bool:
        """Whether a difference passes. Sums of percents are rounded to a billionth of a point first."""
        difference = round(difference, 9)
        return difference > self.least if self.strict else difference >= self.least


def parse_gates(texts: Sequence[str]) -> list[Gate]:
    """Gates from options; several may stand in one, separated by commas."""
    return [Gate.parse(part) for text in texts for part in text.split(",") if part.strip()]


def judge(compared: dict[str, Any], gates: Sequence[Gate], *, may_be_idle: bool = False) -> dict[str, Any]:
    """Each gate against each metric that it fits, from :func:`compare` of teacher and student, in that order.

    Returns:
        ``promoted``; ``gates``: a verdict for each gate and metric; ``failed``: the texts of those that do not hold.

    Raises:
        InputError: a gate that fits no metric (with ``may_be_idle``: no gate fits any); it would hold for nothing. A gate that
            fits a metric which only the teacher has, or figures taken by other settings: they say nothing about the student.
    """
    if compared["unlike"]:
        told = [
            f"{name}: {key} {' and '.join(map(str, values))}"
            for name, settings in compared["unlike"].items()
            for key, values in settings.items()
        ]
        raise InputError(
            f"teacher and student were evaluated by different settings ({'; '.join(told)}); evaluate both by the same"
        )
    verdicts: list[dict[str, Any]] = []
    for gate in gates:
        unmeasured = {
            name: {"metrics": [m for m in one["metrics"] if fnmatchcase(m, gate.metric_pattern)], "whole": False}
            for name, one in compared["lacking"][0].items()
            if _fits(name, gate.set_pattern, one["protocol"])
        }
        if words := lacking_words(unmeasured):
            raise InputError(f"gate {gate.text!r}: the student has no {words}; evaluate it as the teacher was")
        fitting = [
            (name, metric, cells[1])
            for name, rows in compared["sets"].items()
            for metric, cells in rows.items()
            if _fits(name, gate.set_pattern, compared["protocols"][name]) and fnmatchcase(metric, gate.metric_pattern)
        ]
        if not fitting and not may_be_idle:
            there = sorted(f"{name}.{metric}" for name, rows in compared["sets"].items() for metric in rows)
            raise InputError(f"gate {gate.text!r}: fits no metric; there are {', '.join(there)}")
        for name, metric, cell in fitting:
            verdict = {"gate": gate.text, "metric": f"{name}.{metric}", "holds": gate.holds(cell["difference"])}
            verdict |= {key: cell[key] for key in ("difference", "difference_interval", "better") if key in cell}
            verdicts.append(verdict | {"student": cell["value"], "teacher": cell["value"] - cell["difference"]})
    if not verdicts:
        raise InputError("no gate fits any metric that student and teacher share")
    failed = [f"{v['metric']} {v['difference']:+.2f}, wanted {v['gate']}" for v in verdicts if not v["holds"]]
    return {"promoted": not failed, "gates": verdicts, "failed": failed}


def _fits(name: str, pattern: str, protocol: str) -> bool:
    """ODinW's sets are small and many: patterns mean their mean, and one of them only if it is named."""
    return name == pattern or (protocol != MEAN and fnmatchcase(name, pattern))


def promote(
    student: str | Path,
    teacher: str | Path,
    *,
    gates: Sequence[str] = (),
    samples: int = 1000,
    seed: int = 0,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Judge and write ``promotion.json``; returns what it holds.

    Args:
        student, teacher: folders that ``evaluate`` wrote.
        gates: see :class:`Gate`; default: those of them that fit a metric of DEFAULT_GATES.
        out: the verdict's file; default: ``promotion.json`` in the student's folder.

    Returns:
        ``promoted``, ``gates`` and ``failed`` of :func:`judge`; ``sets``, ``protocols``: all metrics of both, teacher first
        (:func:`compare`); ``teacher``, ``student``: revision of each and its folder, relative to the file's.

    Raises:
        InputError: a gate that cannot be read or fits nothing; folders that do not compare.
    """
    parsed = parse_gates(gates or DEFAULT_GATES)
    compared = compare([teacher, student], samples=samples, seed=seed)
    verdict = judge(compared, parsed, may_be_idle=not gates)
    file = Path(out) if out else Path(student) / "promotion.json"
    for role, model in zip(("teacher", "student"), compared["models"], strict=True):
        verdict[role] = model | {"folder": os.path.relpath(model["folder"], file.parent)}
    verdict |= {name: compared[name] for name in ("sets", "protocols", "samples", "seed")}
    write_json(file, verdict)
    return verdict


def check_gates(teacher: str | Path, gates: Sequence[str]) -> None:
    """Whether gates can be judged once a student is there: asked before the costly part, of the teacher's evaluation alone.

    Raises:
        InputError: a gate that cannot be read, or fits no metric of the teacher's.
    """
    judge(compare([teacher, teacher], samples=1), parse_gates(gates or DEFAULT_GATES), may_be_idle=not gates)
