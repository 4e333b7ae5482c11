"""What a training tells about itself in files: the report of a run, and what a checkpoint holds beside tensors."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.training.run_identity import Identity

log = logging.getLogger("glip_self_train")
REPORT, TRAINER = "report.json", "trainer.json"


class TrainReport(BaseModel):
    """What a training run did. ``final`` is the model folder below the run's; ``curve`` has a row a log line.

    ``skipped_steps`` were left out for a loss or gradient that was not finite, ``overflowed_steps`` by fp16's loss scaler.
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
    run: Identity | None = None


class Resumed(BaseModel):
    """What a checkpoint holds beside tensors: the report so far, the figures since its last row, the loss scaler's state."""

    model_config = ConfigDict(extra="forbid")

    report: TrainReport
    sums: dict[str, float]
    counted: int
    averaged: int
    scaler: dict[str, int | float]
    """As the scaler gave it: a count that comes back as a float would end the next step with a TypeError."""


def read_report(folder: Path) -> TrainReport | None:
    """The folder's report; None if there is none that can be read (told in the log)."""
    try:
        return TrainReport.model_validate_json((folder / REPORT).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        log.warning("%s: not a training's report (%s); left aside", folder / REPORT, error.errors()[0]["msg"])
        return None


def read_resumed(folder: Path) -> Resumed | None:
    """What a checkpoint holds beside tensors; None if it cannot be read, as another version's may not."""
    try:
        return Resumed.model_validate_json((folder / TRAINER).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
