"""Promotion of a student to teacher: gates on the differences of its metrics from the teacher's and
the control's.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.evaluation.compare import MEAN, Evaluated, Rows, compare, format_interval, format_missing
from pipeline.io.atomic import write_json

log = logging.getLogger("glip_self_train")

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
DEFAULT_CONTROL_GATES = ("control:*.ap >= 0", "control:*.recall_at_1 >= 0", "control:*.precision_at_1 >= 0")
"""Gates on the control: labels that leave the student below it did harm. RefCOCO has precision_at_1 alone."""
FEW_BOXES = 100
"""Gold boxes of a set below which :func:`promote` warns."""
_SYNTAX = re.compile(r"\s*(control:)?\s*([^.<>=:]+)\.([^\s.<>=]+)\s*(>=|>)\s*([+-]?\d+(?:\.\d*)?)\s*")


@dataclass(frozen=True)
class Gate:
    """student - reference >= least (strict: >) in points, for metrics matching both patterns.

    reference: "teacher" or "control".
    """

    text: str
    set_pattern: str
    metric_pattern: str
    strict: bool
    least: float
    reference: str = "teacher"

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Parse ``SET.METRIC >= POINTS`` with shell patterns, as in ``*.ap* >= -0.5``; with
        ``control:`` before it, a gate on the difference from the control.

        Raises:
            InputError: another syntax.
        """
        match = _SYNTAX.fullmatch(text)
        if match is None:
            raise InputError(
                f"gate {text!r}: want SET.METRIC>=POINTS or SET.METRIC>POINTS, such as 'lvis.ap_rare>0' or, against "
                "the control, 'control:*.ap>=0'"
            )
        control, set_pattern, metric_pattern, sign, least = match.groups()
        return cls(
            f"{control or ''}{set_pattern}.{metric_pattern} {sign} {least}",
            set_pattern, metric_pattern, sign == ">", float(least), "control" if control else "teacher",
        )  # fmt: skip

    def holds(self, difference: float) -> bool:
        """Whether a difference passes the gate."""
        difference = round(difference, 9)  # without the error of floating-point sums
        return difference > self.least if self.strict else difference >= self.least


def parse_gates(texts: Sequence[str]) -> list[Gate]:
    """Gates from options, each with one gate or several separated by commas."""
    return [Gate.parse(part) for text in texts for part in text.split(",") if part.strip()]


def judge(compared: dict[str, Any], gates: Sequence[Gate], *, may_be_idle: bool = False) -> dict[str, Any]:
    """Apply each gate to the metrics it matches in :func:`compare` of [reference, student].

    Args:
        gates: all of one reference, which messages name.

    Returns:
        ``promoted``; ``gates``: a verdict for each gate and metric; ``failed``: as text;
        ``warnings``: of verdicts within chance and of sets with few boxes.

    Raises:
        InputError: a gate matches no metric (with ``may_be_idle``: no gate matches any), as it
            would have no effect; a gate matches a metric that the student lacks; the settings of
            reference and student differ.
    """
    reference = gates[0].reference if gates else "teacher"
    if compared["unlike"]:
        differing = [
            f"{name}: {key} {' and '.join(map(str, values))}"
            for name, settings in compared["unlike"].items()
            for key, values in settings.items()
        ]
        raise InputError(
            f"{reference} and student were evaluated with different settings ({'; '.join(differing)}); evaluate both "
            "with the same"
        )
    verdicts: list[dict[str, Any]] = []
    for gate in gates:
        _check_missing(gate, compared["lacking"][0], "student", reference)
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
            verdict |= {"bound": gate.least, "set": name}
            verdict |= {key: cell[key] for key in ("difference", "difference_interval", "better") if key in cell}
            verdicts.append(verdict | {"student": cell["value"], reference: cell["value"] - cell["difference"]})
    if not verdicts and not (may_be_idle and reference == "control"):
        raise InputError(f"no gate fits any metric that student and {reference} share")
    failed = [
        f"{v['metric']} {v['difference']:+.2f}{_against(v)}, wanted {v['gate']}" for v in verdicts if not v["holds"]
    ]
    return {"promoted": not failed, "gates": verdicts, "failed": failed, "warnings": _warnings(verdicts, compared)}


def _warnings(verdicts: Sequence[dict[str, Any]], compared: dict[str, Any]) -> list[str]:
    """Verdicts that another sample of images could reverse, and sets too small for any."""
    warnings = []
    for v in verdicts:
        low, high = v.get("difference_interval") or (math.inf, -math.inf)
        if low <= v["bound"] <= high:
            warnings.append(
                f"{v['metric']} {v['difference']:+.2f}{format_interval((low, high), '+')}: the interval contains the "
                f"bound of {v['gate']}, so other images could decide otherwise; want more images, or a bound outside it"
            )
    boxes = compared.get("gold_boxes", {})
    for name in dict.fromkeys(v["set"] for v in verdicts if boxes.get(v["set"], FEW_BOXES) < FEW_BOXES):
        warnings.append(f"set {name}: found {boxes[name]} gold boxes; want {FEW_BOXES} or more to decide by")
    return warnings


def _check_missing(gate: Gate, lacking: Mapping[str, Any], role: str, other: str) -> None:
    """Raise InputError if a model lacks a metric of a gate that the other has (:meth:`Evaluated.missing_from`)."""
    missing = {
        name: {"metrics": [m for m in one["metrics"] if fnmatchcase(m, gate.metric_pattern)], "whole": False}
        for name, one in lacking.items()
        if _matches(name, gate.set_pattern, one["protocol"])
    }
    if metrics := format_missing(missing):
        raise InputError(f"gate {gate.text!r}: the {role} has no {metrics}; evaluate it as the {other} was")


def _against(verdict: dict[str, Any]) -> str:
    if "control" not in verdict:
        return ""
    return f"{format_interval(verdict.get('difference_interval'), '+')} against the control"


def _matches(name: str, pattern: str, protocol: str) -> bool:
    """Whether a set matches: ODinW's many small sets only by name, as patterns match their mean."""
    return name == pattern or (protocol != MEAN and fnmatchcase(name, pattern))


def promote(
    student: str | Path,
    teacher: str | Path,
    *,
    control: str | Path | None = None,
    gates: Sequence[str] = (),
    samples: int = 1000,
    seed: int = 0,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Compare the student with teacher and control, apply the gates, write ``promotion.json``.

    Args:
        student, teacher, control: folders that ``evaluate`` wrote. control: the model trained as
            the student was, without its labels.
        gates: see :class:`Gate`; default: those of DEFAULT_GATES that match a metric, and for the
            control, also where gates name only the teacher, DEFAULT_CONTROL_GATES.
        out: the verdict's file; default: ``promotion.json`` in the student's folder.

    Returns:
        The file's content. ``promoted``, ``gates``, ``failed`` and ``warnings`` of :func:`judge`; ``sets``,
        ``protocols``: metrics of [teacher, student] (:func:`compare`); ``teacher``, ``student``:
        revision and folder of each, relative to the file's. With a control: ``control``;
        ``control_sets``: metrics of [control, student]; ``harmed``: the student fails a gate of the
        control; ``control_over_teacher``: set -> metric -> points, if the control passes the
        teacher's gates, else None.

    Raises:
        InputError: a gate has a wrong syntax or matches nothing, or names a control that there is
            not; the folders cannot be compared.
    """
    of_teacher, of_control = _gates(gates, control is not None)
    old, new = Evaluated.read(teacher), Evaluated.read(student)
    compared = compare([old, new], samples=samples, seed=seed)
    verdict = judge(compared, of_teacher, may_be_idle=not _given(gates, "teacher"))
    models = dict(zip(("teacher", "student"), compared["models"], strict=True))
    if control is not None:
        without_labels = Evaluated.read(control)
        unmeasured = new.missing_from(without_labels)
        for gate in of_control:  # else a student would not be compared with it on that set
            _check_missing(gate, unmeasured, "control", "student")
        over_control = compare([without_labels, new], samples=samples, seed=seed)
        judged = judge(over_control, of_control, may_be_idle=not _given(gates, "control"))
        by_teacher = compare([old, without_labels], samples=samples, seed=seed)
        passes = judge(by_teacher, of_teacher, may_be_idle=True)["promoted"]
        models["control"] = over_control["models"][0]
        verdict = {
            "promoted": verdict["promoted"] and judged["promoted"],
            "gates": verdict["gates"] + judged["gates"],
            "failed": judged["failed"] + verdict["failed"],
            "warnings": verdict["warnings"] + judged["warnings"],
            "harmed": not judged["promoted"],
            "control_sets": over_control["sets"],
            "control_over_teacher": _differences(by_teacher["sets"]) if passes else None,
        }
    file = Path(out) if out else Path(student) / "promotion.json"
    for role, model in models.items():
        verdict[role] = model | {"folder": os.path.relpath(model["folder"], file.parent)}
    verdict |= {name: compared[name] for name in ("sets", "protocols", "samples", "seed")}
    verdict["warnings"] = list(dict.fromkeys(verdict["warnings"]))  # a set may be one of both references'
    write_json(file, verdict)
    for warning in verdict["warnings"]:
        log.warning("%s", warning)
    return verdict


def _differences(sets: dict[str, Rows]) -> dict[str, dict[str, float]]:
    return {name: {m: cells[1]["difference"] for m, cells in rows.items()} for name, rows in sets.items()}


def _given(texts: Sequence[str], reference: str) -> list[Gate]:
    return [gate for gate in parse_gates(texts) if gate.reference == reference]


def _gates(texts: Sequence[str], control: bool) -> tuple[list[Gate], list[Gate]]:
    """(gates on the teacher, gates on the control), the defaults for one that none is given for."""
    of_control = _given(texts, "control")
    if of_control and not control:
        raise InputError(
            f"gate {of_control[0].text!r}: found no control; want one (promote --control, or control=true)"
        )
    return (
        _given(texts, "teacher") or parse_gates(DEFAULT_GATES),
        of_control or (parse_gates(DEFAULT_CONTROL_GATES) if control else []),
    )


def check_gates(teacher: str | Path, gates: Sequence[str], *, control: bool = False) -> None:
    """Check before a round that its gates can be applied, by the teacher's evaluation alone.

    Args:
        control: whether the round has a control.

    Raises:
        InputError: a gate has a wrong syntax, or matches no metric of the teacher, or names a
            control that there is not.
    """
    itself = compare([teacher, teacher], samples=1)
    for reference, ones in zip(("teacher", "control"), _gates(gates, control), strict=True):
        if ones:
            judge(itself, ones, may_be_idle=not _given(gates, reference))
