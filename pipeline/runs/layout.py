"""Paths of a self-training run. Rounds count from 1; round N's student teaches round N + 1."""

from __future__ import annotations

from pathlib import Path


class RunLayout:
    """Paths below one run's folder ``root``.

    Attributes:
        config: the run's resolved settings.
        data: the demo's generated data.
        train: human-labelled and evaluation shards.
        phrases: noun phrases of the crawl, the same for every round.
        teacher: training folder of the first teacher.
        photos: the labelling stages' outputs on the demo's photographs.
        report: HTML pages and images.
        logs: output and times of the child processes; never an input of a stage.
        summary: the run's metrics, tallies and costs.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.data = root / "data"
        self.train = root / "train"
        self.phrases = root / "phrases"
        self.teacher = root / "checkpoints" / "teacher"
        self.photos = root / "photos"
        self.report = root / "report"
        self.logs = root / "logs"
        self.summary = root / "summary.json"

    def regions(self, round_: int) -> Path:
        """All regions predicted by the round's teacher."""
        return self.root / "regions" / f"round-{round_}"

    def labels(self, round_: int) -> Path:
        """The regions after filtering, with their status."""
        return self.root / "labels" / f"round-{round_}"

    def pseudo(self, round_: int) -> Path:
        """Training shards of the round's labels."""
        return self.root / "pseudo" / f"round-{round_}"

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
