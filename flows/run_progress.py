"""Progress of a whole run: an artifact on its own page, a line on the terminal, and the state in its folder."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.subprocess_jobs import EndedError
from pipeline.cli.common import one_line
from pipeline.config import SelfTrainConfig
from pipeline.execution.folder_lock import folder_lock
from pipeline.io.model_folder import is_released
from pipeline.runs.excluded_shards import STAGES
from pipeline.runs.layout import RunLayout
from pipeline.runs.status import RunState

LOG_SECONDS = 30.0
"""Seconds between lines of the log where there is no terminal to draw on."""
BAR = 20
PROGRESS_KEY = "progress-run"
log = logging.getLogger("glip_self_train")
P = ParamSpec("P")
R = TypeVar("R")


def never_fatal(function: Callable[P, R]) -> Callable[P, R | None]:
    """Decorate a function of artifacts: an error is logged, and None returned."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            log.warning("artifact not written: %s: %s", type(error).__name__, error)
            return None

    return guarded


def run_titles(config: SelfTrainConfig) -> list[str]:
    """Titles of the stages of ``self-train``, in order, if all rounds are run."""
    sets = config.data.evaluated()
    titles = ["make-demo-data"] if config.demo is not None else []
    titles += ["ingest"] if config.data.used() else []
    titles += ["parse-phrases"] if config.data.names is None else []
    titles += ["convert-checkpoint"] if config.teacher.init and is_released(config.teacher.init) else []
    titles += ["train-teacher"] if config.teacher.steps else []
    titles += ["evaluate-teacher"] if sets else []
    for number in range(1, config.rounds + 1):
        titles += round_titles(config, number)
    if config.demo is not None and config.demo.get("photos", True):
        titles += [f"photos-{stage}" for stage in STAGES]
    return titles


def round_titles(config: SelfTrainConfig, number: int) -> list[str]:
    """Titles of the stages of a round, in order."""
    last = "control" if config.trains_control else "student"
    stages = ("pseudo-label", "filter-boxes", "build-shards", "train-student")
    return [f"{s}-round-{number}" for s in stages] + [f"evaluate-{last}-{number}"] * bool(config.data.evaluated())


def run_name() -> str:
    """Name of a flow run: its folder's."""
    return Path(str(flow_run.parameters.get("out", ""))).name or "run"


class RunProgress:
    """Progress over the stages of a run."""

    def __init__(self, layout: RunLayout, titles: Sequence[str]) -> None:
        self._layout, self._titles, self._number = layout, list(titles), ""
        self._line, self._logged, self._stage = "", time.monotonic(), ""
        self._percent = 0.0
        self._live = sys.stderr.isatty()
        self._artifact: Any = never_fatal(create_progress_artifact)(
            progress=0.0, key=PROGRESS_KEY, description="starting"
        )
        if self._live:
            for handler in _handlers():
                handler.addFilter(self._clear)

    def number(self, text: str) -> None:
        """Show a result, such as a metric, until there is a later one."""
        self._number = text

    def update(self, title: str, share: float, words: str) -> None:
        """Show a stage's progress; ``share`` (0..1) of it is done."""
        stage, percent, total = title, self._percent, len(self._titles)
        if title in self._titles:
            at = self._titles.index(title)
            stage, percent = f"stage {at + 1} of {total}: {title}", round(100 * (at + share) / total, 1)
        line = f"{stage}, {words.removeprefix(f'{title}: ')}" + (f"; last: {self._number}" if self._number else "")
        if stage != self._stage:
            self._stage = stage
            RunState.change(self._layout, stage=stage)
        if self._live:
            self._draw(percent, line)
        elif not _of_a_worker() and time.monotonic() - self._logged > LOG_SECONDS:
            self._logged = time.monotonic()
            get_run_logger().info("%.0f %% of the run: %s", percent, line)
        if line != self._line and self._artifact is not None:
            never_fatal(update_progress_artifact)(artifact_id=self._artifact, progress=percent, description=line)
        self._line, self._percent = line, percent

    def close(self, words: str) -> None:
        """Show how the run ended, and give the terminal back."""
        if self._artifact is not None:
            percent = 100.0 if words == "completed" else self._percent
            last = f"; last: {self._number}" if self._number else ""
            never_fatal(update_progress_artifact)(
                artifact_id=self._artifact, progress=percent, description=words + last
            )
        if self._live:
            self._clear(None)
            for handler in _handlers():
                handler.removeFilter(self._clear)

    def _draw(self, percent: float, line: str) -> None:
        filled = round(BAR * percent / 100)
        text = f"{'█' * filled}{'░' * (BAR - filled)} {percent:3.0f} % {line}"
        sys.stderr.write("\r\x1b[2K" + text[: shutil.get_terminal_size().columns - 1])
        sys.stderr.flush()

    def _clear(self, _: logging.LogRecord | None) -> bool:
        """Remove the line, before a log line takes its place; a filter that passes all records."""
        sys.stderr.write("\r\x1b[2K")
        sys.stderr.flush()
        return True


def _of_a_worker() -> bool:
    """Whether a worker started this run: its artifact shows the progress, and a line to the pipe of a worker that
    was killed would end the run.
    """
    return "PREFECT__FLOW_RUN_ID" in os.environ


def _handlers() -> list[logging.Handler]:
    """All handlers that may write to the terminal."""
    names = [*logging.root.manager.loggerDict]
    return list({h for name in [None, *names] for h in logging.getLogger(name).handlers})


_current: list[RunProgress] = []


def current() -> RunProgress | None:
    """The progress of the run that this process carries out, if it is a run of several stages."""
    return _current[-1] if _current else None


@contextmanager
def working(root: Path, flow: str, titles: Sequence[str] = ()) -> Iterator[None]:
    """Hold the lock of a run's folder; of the outermost flow also record its state there, and show its progress.

    Args:
        titles: of the stages, for the progress of the whole; none for a flow that is one stage.
    """
    with folder_lock(root, get_run_logger().warning):
        if flow_run.parent_flow_run_id is not None:
            yield
            return
        layout, words = RunLayout(root), "completed"
        RunState.begin(layout, flow)
        if titles:
            _current.append(RunProgress(layout, titles))
        try:
            yield
            RunState.change(layout, state="completed", ended=time.time())
        except BaseException as error:
            cancelled = isinstance(error, EndedError) or not isinstance(error, Exception)
            line = one_line(error) if isinstance(error, Exception) else None
            reason = line[0] if line else f"{type(error).__name__}: {error}".strip(": ")
            if not isinstance(error, Exception):  # Prefect's, or KeyboardInterrupt
                reason = "interrupted by a signal, or cancelled on the server"
            words = "cancelled" if cancelled else "failed"
            RunState.change(layout, state=words, reason=reason, ended=time.time())
            raise
        finally:
            if titles:
                _current.pop().close(words)
