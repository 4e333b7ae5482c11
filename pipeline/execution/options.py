"""Run options: they decide how a stage runs, never what it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, SkipValidation

from pipeline.config import Config
from pipeline.execution.progress import Progress, Silent

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Cli:
    """Annotation of a job's field whose option differs from the field's name.

    name: such as ``--source``; without dashes it is an argument. metavar: placeholder of the value
    in the help.
    """

    name: str = ""
    metavar: str | None = None


class WorkLeft(Exception):
    """Raised if :attr:`RunOptions.check_only` is set and an output is missing."""


class RunOptions(Config):
    """Options of every stage. None enters a fingerprint.

    Attributes:
        progress: receives counts while the stage runs, such as
            :class:`pipeline.execution.progress.Terminal`.
        check_only: write nothing; raise :class:`WorkLeft` if an output is missing.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    max_failed: int = Field(0, ge=0, description="Shards that may fail before the run does.")
    progress: SkipValidation[Progress] = Field(Silent(), exclude=True, repr=False)
    check_only: bool = Field(False, exclude=True, repr=False)


class ShardOptions(RunOptions):
    """Options of a stage without a network."""

    workers: int = Field(1, ge=1, description="Shards processed at a time, each in its own process.")


class DeviceOptions(RunOptions):
    """Options of a stage with a network: each process has a copy."""

    device: Device = "cpu"
    processes: int | None = Field(
        None, ge=1, description="Copies of the model, each in its own process.  [default: one per GPU; 1 on the CPU]"
    )
    decoders: Annotated[int | None, Cli("--workers")] = Field(
        None,
        ge=1,
        description="Image-decoding threads of each process.  [default: its share of the cores, 8 at most]",
    )


class LabellingOptions(DeviceOptions):
    """Options of a stage that costs GPU hours."""

    limit: int | None = Field(
        None, ge=1, description="Process at most this many shards now, and estimate the time of the rest."
    )
    price: Annotated[float | None, Cli("--price-per-hour")] = Field(
        None, ge=0, description="Price of one device-hour; the report then shows costs."
    )
