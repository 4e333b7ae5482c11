"""Paths of a self-training run. Rounds count from 1; round N's student teaches round N + 1."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import TeacherConfig
from pipeline.io.model_folder import is_released


class RunLayout:
    """Paths below one run's folder ``root``.

    Attributes:
        config: the run's resolved settings.
        data: the demo's generated data.
        train: human-labelled and evaluation shards.
        phrases: noun phrases of the crawl, the same for every round.
        teacher: training folder of the first teacher.
        converted: a released checkpoint that ``teacher.init`` names, as a model folder ``final``.
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
        self.converted = root / "checkpoints" / "converted"
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

    def model(self, name: str, given: TeacherConfig) -> Path:
        """Model folder of "teacher", "student-1" or "control-1".

        given: settings of the first teacher, which may be a model of another place as it is.
        """
        if name == "teacher" and given.steps == 0:
            return self.initial(given) or self.teacher / "final"
        return self.root / "checkpoints" / name / "final"

    def initial(self, given: TeacherConfig) -> Path | None:
        """Model folder that the first teacher starts from; None: a new network."""
        if given.init is None:
            return None
        return self.converted / "final" if is_released(given.init) else Path(given.init).absolute()

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
