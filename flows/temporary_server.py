"""Temporary Prefect server of a run, out of the terminal's reach and never left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import prefect
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings


class TemporaryServer(SubprocessASGIServer):
    """Prefect's temporary server in a session of its own, which ends with this process.

    A terminal sends SIGINT and SIGHUP to all processes of its session; ``timeout`` and schedulers
    send SIGTERM likewise. The server must outlive the signal to record how the run ended: Prefect
    retries for minutes if it is gone. It ends with this process, even after SIGKILL.
    """

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        """Start the server with the arguments and environment of Prefect's method of this name."""
        own = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        command = [
            sys.executable, "-m", "pipeline.system.parent_watch",
            "uvicorn", "--app-dir", str(prefect.__module_path__.parent),
            "--factory", "prefect.server.api.server:create_app", "--host", "127.0.0.1", "--port", str(self.port),
            "--log-level", "error", "--lifespan", "on",
        ]  # fmt: skip
        return subprocess.Popen(
            command, env={**os.environ, **own, **settings}, stdin=subprocess.PIPE, start_new_session=True
        )


def start_temporary_server() -> None:
    """Start the server that Prefect would start itself where no API URL is set; it ends at exit."""
    settings = get_current_settings()
    if not settings.api.url and settings.server.ephemeral.enabled:
        TemporaryServer().start()  # Prefect keeps one instance per port, and finds this one
