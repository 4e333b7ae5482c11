"""The server of a run that has none: Prefect's own temporary one, but out of the terminal's reach, and never left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import prefect
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings


class TemporaryServer(SubprocessASGIServer):
    """As Prefect starts it, in a session of its own and with a lifeline.

    A terminal sends Ctrl-C and its own end to all that was started in it, and so do ``timeout`` and schedulers with SIGTERM. The server
    must live to be told how the run ended: Prefect would try for minutes to tell a dead one. It ends with this process, even if that
    was killed.
    """

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        """The command and the environment are those of Prefect's method of this name."""
        own = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        command = [
            sys.executable,
            "-m",
            "pipeline.system.parent_watch",
            "uvicorn",
            "--app-dir",
            str(prefect.__module_path__.parent),
        ]
        command += [
            "--factory",
            "prefect.server.api.server:create_app",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        command += ["--log-level", "error", "--lifespan", "on"]
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        return subprocess.Popen(
            command, env={**os.environ, **own, **settings}, stdin=subprocess.PIPE, start_new_session=True
        )


def start_temporary_server() -> None:
    """Start the server that Prefect would start when it needs one and none is named. It ends as Prefect's does, when Python ends."""
    settings = get_current_settings()
    if not settings.api.url and settings.server.ephemeral.enabled:
        TemporaryServer().start()  # the one of this process from now on, as the class keeps one an address
