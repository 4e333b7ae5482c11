"""Options of a run: what decides how a stage runs and never what it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, SkipValidation

from pipeline.config import Config
from pipeline.execution.progress import Progress, Silent

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Cli:
    """Name and value of a field on the command line, where the field's own name does not say them.

    name: such as ``--source``; without dashes it is an argument. metavar: the value in the help.
    """

    name: str = ""
    metavar: str | None = None


class WorkLeft(Exception):
    """Raised where :attr:`RunOptions.check_only` is set and something is to be made."""


class RunOptions(Config):
    """How a stage runs. None of it enters a fingerprint.

    Attributes:
        progress: receives counts while the stage runs; :class:`pipeline.execution.progress.Terminal` shows them.
        check_only: make nothing; raise :class:`WorkLeft` if there is something to make.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    max_failed: int = Field(0, ge=0, description="Shards that may fail before the run does.")
    progress: SkipValidation[Progress] = Field(Silent(), exclude=True, repr=False)
    check_only: bool = Field(False, exclude=True, repr=False)


class ShardOptions(RunOptions):
    """How a stage without a network runs."""

    workers: int = Field(1, ge=1, description="Shards worked on at a time, each in a process of its own.")


class DeviceOptions(RunOptions):
    """How a stage with a network runs: one copy of it in each process."""

    device: Device = "cpu"
    processes: int | None = Field(
        None, ge=1, description="Copies of the model, each in a process of its own.  [default: one a GPU; 1 on the CPU]"
    )
    decoders: Annotated[int | None, Cli("--workers")] = Field(
        None,
        ge=1,
        description="Threads of each process that decode images ahead.  [default: its share of the cores, 8 at most]",
    )


class LabellingOptions(DeviceOptions):
    """How a stage that costs GPU hours runs."""

    limit: int | None = Field(
        None, ge=1, description="Make at most so many shards now, and report what the rest takes."
    )
    price: Annotated[float | None, Cli("--price-per-hour")] = Field(
        None, ge=0, description="Of one device; the report then has the costs."
    )
