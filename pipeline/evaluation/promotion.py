"""Promotion of a student to teacher: gates on the differences of its metrics from the teacher's."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.evaluation.compare import MEAN, compare, format_missing
from pipeline.io.atomic import write_json

DEFAULT_GATES = (
    "*.ap >= -1",
    "*.recall_at_1 >= -1",
    "*.precision_at_1 >= -1",
    "*.ap_rare >= 0",
)
"""No headline metric may fall by more than a point, and APr not at all.

Of published students, these reject MM-GroundingDINO with GRIT (LVIS APr 28.1 to 26.6) and GLIP-T
with CC3M and SBU (ODinW-13 44.4 to 42.7), and accept GLIP-T (C) to GLIP-T with Cap4M (LVIS minival
APr 17.7 to 20.8, COCO AP 46.7 to 46.3; GLIP, tables 2 and 3).
"""
_SYNTAX = re.compile(r"\s*([^.<>=]+)\.([^\s.<>=]+)\s*(>=|>)\s*([+-]?\d+(?:\.\d*)?)\s*")


@dataclass(frozen=True)
class Gate:
    """student - teacher >= least (strict: >) in points, for metrics matching both patterns."""

    text: str
    set_pattern: str
    metric_pattern: str
    strict: bool
    least: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Parse ``SET.METRIC >= POINTS`` with shell patterns, as in ``*.ap* >= -0.5``.

        Raises:
            InputError: another syntax.
        """
        match = _SYNTAX.fullmatch(text)
        if match is None:
            raise InputError(f"gate {text!r}: want SET.METRIC>=POINTS or SET.METRIC>POINTS, such as 'lvis.ap_rare>0'")
        set_pattern, metric_pattern, sign, least = match.groups()
        return cls(
            f"{set_pattern}.{metric_pattern} {sign} {least}", set_pattern, metric_pattern, sign == ">", float(least)
        )

    def holds(self, difference: float) -> bool:
        """Whether a difference passes the gate."""
        difference = round(difference, 9)  # without the error of floating-point sums
        return difference > self.least if self.strict else difference >= self.least


def parse_gates(texts: Sequence[str]) -> list[Gate]:
    """Gates from options, each with one gate or several separated by commas."""
    return [Gate.parse(part) for text in texts for part in text.split(",") if part.strip()]


def judge(compared: dict[str, Any], gates: Sequence[Gate], *, may_be_idle: bool = False) -> dict[str, Any]:
    """Apply each gate to the metrics it matches in :func:`compare` of [teacher, student].

    Returns:
        ``promoted``; ``gates``: a verdict for each gate and metric; ``failed``: as text.

    Raises:
        InputError: a gate matches no metric (with ``may_be_idle``: no gate matches any), as it
            would have no effect; a gate matches a metric that the student lacks; the settings of
            teacher and student differ.
    """
    if compared["unlike"]:
        differing = [
            f"{name}: {key} {' and '.join(map(str, values))}"
            for name, settings in compared["unlike"].items()
            for key, values in settings.items()
        ]
        raise InputError(
            f"teacher and student were evaluated with different settings ({'; '.join(differing)}); evaluate both with "
            "the same"
        )
    verdicts: list[dict[str, Any]] = []
    for gate in gates:
        missing = {
            name: {"metrics": [m for m in one["metrics"] if fnmatchcase(m, gate.metric_pattern)], "whole": False}
            for name, one in compared["lacking"][0].items()
            if _matches(name, gate.set_pattern, one["protocol"])
        }
        if metrics := format_missing(missing):
            raise InputError(f"gate {gate.text!r}: the student has no {metrics}; evaluate it as the teacher was")
        matched = [
            (name, metric, cells[1])
            for name, rows in compared["sets"].items()
            for metric, cells in rows.items()
            if _matches(name, gate.set_pattern, compared["protocols"][name])
            and fnmatchcase(metric, gate.metric_pattern)
        ]
        if not matched and not may_be_idle:
            available = sorted(f"{name}.{metric}" for name, rows in compared["sets"].items() for metric in rows)
            raise InputError(f"gate {gate.text!r}: fits no metric; there are {', '.join(available)}")
        for name, metric, cell in matched:
            verdict = {"gate": gate.text, "metric": f"{name}.{metric}", "holds": gate.holds(cell["difference"])}
            verdict |= {key: cell[key] for key in ("difference", "difference_interval", "better") if key in cell}
            verdicts.append(verdict | {"student": cell["value"], "teacher": cell["value"] - cell["difference"]})
    if not verdicts:
        raise InputError("no gate fits any metric that student and teacher share")
    failed = [f"{v['metric']} {v['difference']:+.2f}, wanted {v['gate']}" for v in verdicts if not v["holds"]]
    return {"promoted": not failed, "gates": verdicts, "failed": failed}


def _matches(name: str, pattern: str, protocol: str) -> bool:
    """Whether a set matches: ODinW's many small sets only by name, as patterns match their mean."""
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
    """Compare student and teacher, apply the gates, write ``promotion.json``; returns it.

    Args:
        student, teacher: folders that ``evaluate`` wrote.
        gates: see :class:`Gate`; default: those of DEFAULT_GATES that match a metric.
        out: the verdict's file; default: ``promotion.json`` in the student's folder.

    Returns:
        ``promoted``, ``gates`` and ``failed`` of :func:`judge`; ``sets``, ``protocols``: metrics of
        [teacher, student] (:func:`compare`); ``teacher``, ``student``: revision and folder of each,
        relative to the file's.

    Raises:
        InputError: a gate has a wrong syntax or matches nothing; the folders cannot be compared.
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
    """Check before a round that its gates can be applied, by the teacher's evaluation alone.

    Raises:
        InputError: a gate has a wrong syntax, or matches no metric of the teacher.
    """
    judge(compare([teacher, teacher], samples=1), parse_gates(gates or DEFAULT_GATES), may_be_idle=not gates)
