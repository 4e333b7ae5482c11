"""Paths of a self-training run. Rounds count from 1; round N's student teaches round N + 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunLayout:
    """Paths below one run's folder."""

    root: Path

    @property
    def config(self) -> Path:
        """The run's resolved settings."""
        return self.root / "config.yaml"

    @property
    def data(self) -> Path:
        """The demo's generated data."""
        return self.root / "data"

    @property
    def train(self) -> Path:
        """Human-labelled and evaluation shards."""
        return self.root / "train"

    @property
    def phrases(self) -> Path:
        """Noun phrases of the crawl; the same for every round."""
        return self.root / "phrases"

    def regions(self, round_: int) -> Path:
        """All regions predicted by the round's teacher."""
        return self.root / "regions" / f"round-{round_}"

    def labels(self, round_: int) -> Path:
        """The regions after filtering, with their status."""
        return self.root / "labels" / f"round-{round_}"

    def pseudo(self, round_: int) -> Path:
        """Training shards of the round's labels."""
        return self.root / "pseudo" / f"round-{round_}"

    @property
    def teacher(self) -> Path:
        """Training folder of the first teacher."""
        return self.root / "checkpoints" / "teacher"

    def student(self, round_: int) -> Path:
        """Training folder of the round's student."""
        return self.root / "checkpoints" / f"student-{round_}"

    def control(self, round_: int) -> Path:
        """Training folder of the round's control: same number of steps, human labels only."""
        return self.root / "checkpoints" / f"control-{round_}"

    def teacher_of(self, round_: int) -> Path:
        """Model folder of a round's teacher."""
        return (self.teacher if round_ == 1 else self.student(round_ - 1)) / "final"

    def teacher_name(self, round_: int) -> str:
        """Name of a round's teacher in evaluations."""
        return "teacher" if round_ == 1 else f"student-{round_ - 1}"

    def round(self, round_: int) -> Path:
        """Result of a round (:class:`pipeline.runs.rounds.RoundResult`)."""
        return self.root / "rounds" / f"round-{round_}.json"

    def evaluation(self, model: str) -> Path:
        """Metrics of a model: "teacher", "student-1", "control-1"."""
        return self.root / "evaluation" / model

    def excluded(self, title: str) -> Path:
        """Failed shards of a stage (:mod:`pipeline.runs.excluded_shards`)."""
        return self.root / "set-aside" / f"{title}.json"

    @property
    def photos(self) -> Path:
        """The labelling stages' outputs on the demo's photographs."""
        return self.root / "photos"

    @property
    def report(self) -> Path:
        """HTML pages and images."""
        return self.root / "report"

    @property
    def logs(self) -> Path:
        """Output and times of the child processes; never an input of a stage."""
        return self.root / "logs"

    @property
    def summary(self) -> Path:
        """The run's metrics, tallies and costs."""
        return self.root / "summary.json"
