"""Short logs of expected errors: Prefect logs each with a trace, in the task and in every flow above it."""

from __future__ import annotations

import logging

from pipeline.cli.common import one_line

LOGGERS = ("prefect.task_runs", "prefect.flow_runs")


class _OneLine(logging.Filter):
    """Logs an error that needs no trace as one line, and not again when the next flow passes it on."""

    def __init__(self) -> None:
        super().__init__()
        self._last = ""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        found = one_line(error) if isinstance(error, Exception) else None
        if found is None:
            return True
        known, self._last = self._last == found[0], found[0]
        record.msg, record.args, record.exc_info, record.exc_text = "%s", (found[0],), None, None
        return not known


def shorten_error_logs() -> None:
    """Log expected errors of this process's flows and tasks as one line each."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(there, _OneLine) for there in logger.filters):
            logger.addFilter(_SHARED)


_SHARED = _OneLine()
