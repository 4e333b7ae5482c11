"""A training's report file, and the part of a checkpoint that is not tensors."""

from __future__ import annotations

from operator import not_
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pipeline.training.checkpoints import read_document
from pipeline.training.run_identity import Identity

REPORT, TRAINER = "report.json", "trainer.json"


class TrainReport(BaseModel):
    """Report of a training run.

    ``final``: the model folder, relative to the run's. ``records``: of each source. ``lost``:
    unusable records and boxes, counted by reason. ``skipped_steps``: skipped for a loss or gradient
    that was not finite; ``overflowed_steps``: skipped by the fp16 loss scaler. ``curve``: mean
    losses between log lines. ``validation``: losses on the validation set, by step; ``best``: its row
    of the model in ``best/``.
    """

    model_config = ConfigDict(extra="forbid")

    fingerprint: str
    steps: int
    final: str
    records: dict[str, int]
    lost: dict[str, int]
    skipped_steps: int = 0
    overflowed_steps: int = 0
    curve: list[dict[str, float]]
    validation: list[dict[str, float]] = Field([], exclude_if=not_)
    best: dict[str, float] | None = Field(None, exclude_if=not_)
    run: Identity | None = None


class TrainerState(BaseModel):
    """A checkpoint's ``trainer.json``: report so far, loss sums since its last row, loss scaler."""

    model_config = ConfigDict(extra="forbid")

    report: TrainReport
    sums: dict[str, float]
    counted: int
    averaged: int
    scaler: dict[str, int | float]
    """Types are kept: torch's scaler raises a TypeError for a count that is a float."""


def read_report(folder: Path) -> TrainReport | None:
    """The folder's report; None, with a warning in the log, if it cannot be read."""
    return read_document(folder / REPORT, TrainReport, "a training report")
