"""Where everything of a self-training run lies. Rounds count from 1; a round's student is the next round's teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunLayout:
    """Paths below one run's folder."""

    root: Path

    @property
    def config(self) -> Path:
        """The run's settings as they were resolved."""
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
        """What the round's teacher boxed."""
        return self.root / "regions" / f"round-{round_}"

    def labels(self, round_: int) -> Path:
        """What the rules kept of it."""
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
        """Training folder of the round's control: as many steps, human labels alone."""
        return self.root / "checkpoints" / f"control-{round_}"

    def teacher_of(self, round_: int) -> Path:
        """Model folder that labels in a round."""
        return (self.teacher if round_ == 1 else self.student(round_ - 1)) / "final"

    def teacher_name(self, round_: int) -> str:
        """The same model, as evaluations name it."""
        return "teacher" if round_ == 1 else f"student-{round_ - 1}"

    def round(self, round_: int) -> Path:
        """What was decided at the end of a round (:class:`pipeline.runs.rounds.RoundResult`)."""
        return self.root / "rounds" / f"round-{round_}.json"

    def evaluation(self, model: str) -> Path:
        """Metrics of a model: "teacher", "student-1", "control-1"."""
        return self.root / "evaluation" / model

    def aside(self, title: str) -> Path:
        """Notes of the shards that a stage set aside (:mod:`pipeline.runs.excluded_shards`)."""
        return self.root / "set-aside" / f"{title}.json"

    @property
    def photos(self) -> Path:
        """The labelling stages' outputs on the demo's photographs."""
        return self.root / "photos"

    @property
    def report(self) -> Path:
        """Pages and pictures for people."""
        return self.root / "report"

    @property
    def logs(self) -> Path:
        """What the child processes said, and their times; never an input of anything."""
        return self.root / "logs"

    @property
    def summary(self) -> Path:
        """The run's numbers."""
        return self.root / "summary.json"
