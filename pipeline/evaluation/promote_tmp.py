"""promote: does a student teach the next round? Its evaluation against the teacher's, judged by gates.

Seconds of work on two evaluation folders, so it is done whenever it is asked; the same folders give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.compare import compare
from pipeline.evaluation.promotion import DEFAULT_GATES, judge, parse_gates
from pipeline.io.atomic import write_json


def run(
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
        gates: see :class:`pipeline.evaluation.promotion.Gate`; default: those of them that fit a metric of DEFAULT_GATES.
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
