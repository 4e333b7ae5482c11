"""Decision at the end of a round: promotion of the student, and whether another round follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from pipeline.config import SelfTrainConfig
from pipeline.errors import InputError
from pipeline.evaluation import promotion
from pipeline.evaluation.compare import Evaluated
from pipeline.io.atomic import write_json
from pipeline.io.strict_model import StrictModel
from pipeline.runs.layout import RunLayout
from pipeline.runs.readiness import teacher_rises

HEADLINES = ("recall_at_1", "precision_at_1", "ap")
"""Metrics of a round's gain if the recipe names none: the first that the set has."""


class RoundResult(StrictModel):
    """Result of a round. ``go_on``: another round may follow; ``why``: the reason, as text."""

    round: int
    teacher: str
    student: str
    promoted: bool | None = Field(description="None: no evaluation set, so nothing to judge by")
    failed: tuple[str, ...] = Field((), description="gates that do not hold")
    metric: str | None = Field(None, description="SET.METRIC of the gain")
    gain: float | None = Field(None, description="student minus teacher, in points")
    gain_interval: tuple[float, float] | None = Field(None, description="95 %, by the bootstrap over images")
    control_gain: float | None = Field(None, description="student minus control, in points of the same metric")
    control_gain_interval: tuple[float, float] | None = Field(None, description="95 %")
    better_control: str | None = Field(
        None, description="the control, where it is the model to use: the student is refused, and it beats the teacher"
    )
    go_on: bool
    why: str


def gain_metric(config: SelfTrainConfig, layout: RunLayout) -> tuple[str, str]:
    """(set, metric) that measures a round's gain; reads the evaluation of the first teacher.

    Raises:
        InputError: the teacher has no such metric.
    """
    evaluated = Evaluated.read(layout.evaluation("teacher"))
    if (gain := config.promotion.gain) is not None:
        set_name, _, metric = gain.rpartition(".")
        if metric not in evaluated.sets.get(set_name, {}):
            available = ", ".join(f"{s}.{m}" for s, metrics in evaluated.sets.items() for m in metrics)
            raise InputError(f"promotion.gain: {gain!r} is no metric of the teacher's; there are {available}")
        return set_name, metric
    sets = [name for name in (config.data.novel, *config.data.evaluated()) if name is not None]
    for name in sets:
        for metric in HEADLINES:
            if metric in evaluated.sets.get(name, {}):
                return name, metric
    raise InputError(f"promotion.gain: name a SET.METRIC; {', '.join(sets)} have none of {', '.join(HEADLINES)}")


def check_promotion(config: SelfTrainConfig, layout: RunLayout) -> None:
    """Check the recipe's gates and gain by the first teacher's metrics, before labelling.

    Raises:
        InputError: one of them matches no metric.
    """
    promotion.check_gates(layout.evaluation("teacher"), _gates(config), control=config.trains_control)
    gain_metric(config, layout)


def decide(config: SelfTrainConfig, layout: RunLayout, round_number: int) -> RoundResult:
    """Compare the round's student with its teacher and control; write promotion.json and
    rounds/round-N.json.

    Without evaluation sets every student is the next round's teacher.
    """
    names: dict[str, Any] = {
        "round": round_number, "teacher": layout.teacher_name(round_number), "student": f"student-{round_number}"
    }  # fmt: skip
    if not config.data.evaluated():
        why = "no evaluation set (data.base, data.novel, data.evaluation), so nothing was judged"
        result = RoundResult(**names, promoted=None, go_on=True, why=why)
    else:
        verdict = promotion.promote(
            layout.evaluation(names["student"]), layout.evaluation(names["teacher"]),
            control=layout.evaluation(f"control-{round_number}") if config.trains_control else None,
            gates=_gates(config), samples=config.promotion.samples, seed=config.seed,
        )  # fmt: skip
        result = RoundResult(**names, **_decision(config, layout, verdict, round_number))
    write_json(layout.round(round_number), result.model_dump(mode="json"))
    return result


def _gates(config: SelfTrainConfig) -> list[str]:
    """The recipe's gates, those on the control only where one is trained."""
    gates = promotion.parse_gates(config.promotion.gates)
    return [gate.text for gate in gates if config.trains_control or gate.reference == "teacher"]


def _decision(config: SelfTrainConfig, layout: RunLayout, verdict: dict[str, Any], number: int) -> dict[str, Any]:
    set_name, metric = gain_metric(config, layout)
    if (cells := verdict["sets"].get(set_name, {}).get(metric)) is None:
        raise InputError(
            f"promotion.gain: found no {set_name}.{metric} of the student; want it evaluated as the teacher was, or "
            "another metric of both"
        )
    cell = cells[1]
    gain, least = round(float(cell["difference"]), 9), config.promotion.least_gain
    better_control = None
    if verdict["promoted"]:
        why = f"promoted: {set_name}.{metric} {gain:+.1f}"
        if gain < least:
            why += f"; no further round, as the gain is below promotion.least_gain {least:g}"
    else:
        harmed = "the labels harmed: " if verdict.get("harmed") else ""
        why = f"not promoted: {harmed}{'; '.join(verdict['failed'])}"
        over_teacher = verdict.get("control_over_teacher") or {}
        if over_teacher.get(set_name, {}).get(metric, 0.0) > 0:
            better_control = f"control-{number}"
    if rises := teacher_rises(verdict.get("control_over_teacher"), set_name, metric):
        why += f"; {rises}"
    over_control = verdict.get("control_sets", {}).get(set_name, {}).get(metric, [{}, {}])[1]
    return {
        "promoted": verdict["promoted"], "failed": tuple(verdict["failed"]), "metric": f"{set_name}.{metric}",
        "gain": gain, "gain_interval": cell.get("difference_interval"),
        "control_gain": over_control.get("difference"),
        "control_gain_interval": over_control.get("difference_interval"), "better_control": better_control,
        "go_on": verdict["promoted"] and gain >= least, "why": why,
    }  # fmt: skip


def best_model(results: Sequence[RoundResult]) -> str:
    """The last student that was not rejected, a later control that beats its teacher, or the first teacher."""
    models = (r.student if r.promoted is not False else r.better_control for r in reversed(results))
    return next((model for model in models if model), "teacher")
