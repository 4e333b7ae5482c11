"""Prefect server of a run: the configured one, or a temporary one that is never left behind."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import prefect
from prefect.logging import get_logger
from prefect.logging.configuration import setup_logging
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings

from flows.server_checks import failure_reason
from pipeline.errors import RunError

PORTS = 3
"""Ports to try, as another program may take one meanwhile."""
STOP_SECONDS = 2.0
"""Seconds that an ending server has. Its database is one of transactions, so nothing is broken after them."""


class TemporaryServer(SubprocessASGIServer):
    """Prefect's temporary server in a session of its own, which ends with this process.

    A terminal sends SIGINT and SIGHUP to all processes of its session; ``timeout`` and schedulers
    send SIGTERM likewise. The server must outlive the signal to record how the run ended: Prefect
    retries for minutes if it is gone. It ends with this process, even after SIGKILL.

    Attributes:
        log: file that receives its output.
    """

    log: Path

    def start(self, timeout: int | None = None) -> None:
        """Start the server and wait until it answers. Prefect's method of this name starts a dying one for ever.

        Raises:
            RunError: the server ends, with the reason, or does not answer in time.
        """
        if self.running:
            return
        seconds = timeout or get_current_settings().server.ephemeral.startup_timeout_seconds
        for attempt in range(PORTS):
            self.port = self.find_available_port()
            get_logger().info("Starting temporary server on %s", self.address)
            begin = self.log.stat().st_size if self.log.exists() else 0
            self.server_process = self._run_uvicorn_command()
            self.running = True
            atexit.register(self.stop)
            if self._answers(time.monotonic() + seconds):
                return
            code, output = self.server_process.poll(), self.log.read_bytes()[begin:]
            self.running = False
            if code is None:
                self.stop()
                raise RunError(f"Prefect's temporary server does not answer after {seconds} s; its log: {self.log}")
            self.server_process = None
            if b"address already in use" not in output or attempt == PORTS - 1:
                raise RunError(
                    f"Prefect's temporary server ended at its start: {failure_reason(output)} (its log: {self.log})"
                )

    def stop(self) -> None:
        """End the server, after STOP_SECONDS by SIGKILL; Prefect would wait for five seconds."""
        if self.server_process is not None:
            self.server_process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.server_process.wait(STOP_SECONDS)
            self.server_process.kill()
        super().stop()

    def _answers(self, deadline: float) -> bool:
        """Wait until the server answers (True), ends or is late (False)."""
        with httpx.Client(trust_env=False, timeout=2) as client:
            while self.server_process is not None and self.server_process.poll() is None:
                if time.monotonic() > deadline:
                    return False
                try:
                    if client.get(f"{self.api_url}/health").status_code == 200:
                        return True
                except httpx.HTTPError:
                    pass
                time.sleep(0.1)
        return False

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        """Start the server with the arguments and environment of Prefect's method of this name."""
        own = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        command = [
            sys.executable, "-m", "pipeline.system.parent_watch",
            "uvicorn", "--app-dir", str(prefect.__module_path__.parent),
            "--factory", "prefect.server.api.server:create_app", "--host", "127.0.0.1", "--port", str(self.port),
            "--log-level", "error", "--lifespan", "on",
            "--timeout-graceful-shutdown", "1",  # connections of this process stay open
        ]  # fmt: skip
        with open(self.log, "ab") as output:
            return subprocess.Popen(
                command, env={**os.environ, **own, **settings}, stdin=subprocess.PIPE, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip


def start_temporary_server(log: Path) -> None:
    """Start the server that Prefect would start itself where no API URL is set; it ends at exit.

    Raises:
        RunError: the server ends or does not answer.
    """
    setup_logging()  # a flow would do it, but later
    server = TemporaryServer()  # Prefect keeps one instance per port, and finds this one
    server.log = log
    server.start()
