"""A Prefect server and a worker on this machine, started and kept alive by ``self-train up``."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import httpx
import yaml

from flows.deployments import DEPLOYMENTS, POOL, ROOT
from flows.server_checks import bypass_proxies, check_home, failure_reason, prefect_settings
from pipeline.errors import InputError, RunError
from pipeline.io.files import check_writable
from pipeline.report.urls import BOARD, FILES

log = logging.getLogger("glip_self_train")

AUTOMATION = "mark silent runs as crashed"
AUTOMATION_FILE = ROOT / "flows" / "deploy" / "heartbeat-automation.yaml"
UP = "GLIP_SELF_TRAIN_UP"
"""Environment variable of the worker: pid of the ``self-train up`` that started it; its runs end with that process."""
PATIENCE = 120.0
"""Seconds until a started server must answer."""
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
"""Hosts that mean all addresses of this machine -> its loopback address. Other machines get its host name."""
PREFECT = ("prefect", "--no-prompt")


class _Service:
    """A Python module as a child process that is restarted when it dies, and ends with this process."""

    def __init__(
        self, name: str, module: Sequence[str], environment: dict[str, str], logs: Path, address: str = ""
    ) -> None:
        """environment: read at each start. address: URL to show."""
        self.name, self.address, self.log = name, address, logs / f"{name}.log"
        self._command, self._environment = [sys.executable, "-m", "pipeline.system.parent_watch", *module], environment
        self._started = -math.inf
        self._short_lives = self._begin = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    def start(self) -> None:
        """Start the process.

        Raises:
            RunError: three starts in a row each lasted less than a minute.
        """
        now = time.monotonic()
        self._short_lives = self._short_lives + 1 if now - self._started < 60 else 0
        if self._short_lives == 3:
            raise RunError(f"the {self.name} died three times within a minute of its start: {self.reason()}")
        self._started = now
        self._output = self._output or open(self.log, "ab")  # noqa: SIM115 - as long as the process
        self._begin = self.log.stat().st_size
        self.process = subprocess.Popen(
            self._command, env=self._environment, cwd=ROOT, stdout=self._output, stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE, start_new_session=True,  # a closing terminal signals this process alone
        )  # fmt: skip

    def reason(self) -> str:
        """The line of the log that says why the process ended."""
        with open(self.log, "rb") as log_file:
            log_file.seek(self._begin)
            return f"{failure_reason(log_file.read())} (its log: {self.log})"

    def died(self) -> bool:
        """Whether the process was started and has ended."""
        return self.process is not None and self.process.poll() is not None

    def stop(self) -> None:
        """Send SIGTERM to the process, and after 20 seconds SIGKILL to its group."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(10)
        if self._output is not None:
            self._output.close()


class LocalServer:
    """Server, deployments and worker; besides, the runs' pages and TensorBoard on the next two ports.

    Attributes:
        url, pages, board: addresses of the dashboard, the pages and TensorBoard.
        environment: environment variables of all these processes.
    """

    def __init__(self, host: str, port: int, limit: int, logs: Path, runs: Path) -> None:
        """limit: maximum of concurrent runs. runs: folder of the runs that pages and TensorBoard show."""
        self.host, self.port = host, port
        in_url = f"[{host}]" if ":" in host else host
        shown = socket.gethostname() if host in ANYWHERE else in_url
        self.url, self.pages, self.board = (f"http://{shown}:{port + i}" for i in range(3))
        self._near = f"http://{ANYWHERE.get(host, in_url)}:{port}"
        for folder in (logs, runs):
            check_writable(folder)
            folder.mkdir(parents=True, exist_ok=True)
        self.environment = env = os.environ | {
            **bypass_proxies(os.environ, *([] if host in ANYWHERE else [host])),
            "PREFECT_API_URL": f"{self._near}/api",
            "PREFECT_UI_URL": self.url,
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60",  # AUTOMATION counts a run as dead after three minutes without
            "PREFECT_CLIENT_MAX_RETRIES": "8",  # outlasts a restart of the server
            "NO_COLOR": "1",
            UP: str(os.getpid()),
            FILES: f"{self.pages} {runs.resolve()}",
            BOARD: self.board,
        }
        server = [*PREFECT, "server", "start", "--host", host, "--port", str(port)]
        worker = [*PREFECT, "worker", "start", "--pool", POOL, "--limit", str(limit), "--name", "self-train"]
        pages = ["flows.cli", "view", "--runs", str(runs), "--host", host, "--port", str(port + 1)]
        board = ["tensorboard.main", "--logdir", str(runs), "--host", host, "--port", str(port + 2)]
        self._server, self._worker = _Service("server", server, env, logs), _Service("worker", worker, env, logs)
        self._extras = [
            _Service("pages", pages, env, logs, self.pages),
            _Service("tensorboard", board, env, logs, self.board),
        ]

    def extras(self) -> dict[str, str]:
        """Name -> address of the services beside the server."""
        return {extra.name: extra.address for extra in self._extras}

    def healthy(self) -> bool:
        """Whether a server answers."""
        try:
            return httpx.get(f"{self._near}/api/health", timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def start(self) -> None:
        """Start a server unless one answers there, deploy every flow, and start a worker.

        Pages or TensorBoard are left out if another program has their port; runs do not link to them then.

        Raises:
            InputError: another program has the server's port, or Prefect's home cannot be written.
            RunError: the server does not come up, or a deployment or the automation fails.
        """
        for extra, variable, port in zip(list(self._extras), (FILES, BOARD), (self.port + 1, self.port + 2)):
            if self._busy(port):
                advice = "end the program that uses it, or give another --port (three in a row are needed)"
                log.warning("port %d is in use, so there will be no %s: %s", port, extra.name, advice)
                self._extras.remove(extra)
                del self.environment[variable]
        if not self.healthy():
            if self._busy(self.port):
                raise InputError(
                    f"port {self.port} is in use, and no Prefect server answers there; name another with --port"
                )
            check_home(prefect_settings())
            self._start_server()
        if missing := self._checked("flows.deployments").split():
            every = yaml.safe_load(DEPLOYMENTS.read_text())
            every["deployments"] = [entry for entry in every["deployments"] if entry["entrypoint"] in missing]
            file = self._server.log.with_name("deployed.yaml")
            file.write_text(yaml.safe_dump(every))
            self._prefect("deploy", "--all", "--prefect-file", str(file))
        if self._python(*PREFECT, "automation", "inspect", AUTOMATION).returncode:
            self._prefect("automation", "create", "--from-file", str(AUTOMATION_FILE))
        for service in (self._worker, *self._extras):
            service.start()

    def _busy(self, port: int) -> bool:
        """Whether another program listens there."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family) as probe:
            # as the servers do: a closed connection in TIME_WAIT does not count
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, port))
            except OSError as error:
                return error.errno == errno.EADDRINUSE  # the server itself reports other errors
        return False

    def _start_server(self) -> None:
        self._server.start()
        deadline = time.monotonic() + PATIENCE
        while not self.healthy():
            if self._server.died():
                raise RunError(f"the server ended at its start: {self._server.reason()}")
            if time.monotonic() > deadline:
                raise RunError(
                    f"the server does not answer on {self.url} after {PATIENCE:.0f} s: {self._server.reason()}"
                )
            time.sleep(0.2)

    def _python(self, *module: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", *module]
        return subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True)

    def _prefect(self, *arguments: str) -> str:
        return self._checked(*PREFECT, *arguments)

    def _checked(self, *module: str) -> str:
        """Standard output of a Python module. Raises RunError if it fails, with the reason."""
        done = self._python(*module)
        if done.returncode:
            raise RunError(f"{' '.join(module)}: {failure_reason((done.stdout + done.stderr).encode())}")
        for line in done.stderr.splitlines():
            log.debug("%s: %s", module[0], line)
        return done.stdout

    def run(self, **parameters: str) -> str:
        """Start a run of the whole loop; returns the URL of its page."""
        given = [word for name, value in parameters.items() for word in ("--param", f"{name}={json.dumps(value)}")]
        words = self._prefect("deployment", "run", "self-train/local", *given).split()
        return next((word for word in words if word.startswith(self.url)), self.url)

    def keep(self) -> None:
        """Restart the services that died, and replace a server that was there before; to be called regularly.

        Raises:
            RunError: server or worker died three times in a row. Pages or TensorBoard are then left out.
        """
        if self._server.died() or (self._server.process is None and not self._busy(self.port)):
            log.warning("the server is gone and is started again")
            self._start_server()
        if self._worker.died():
            log.warning("the worker died and is started again")
            self._worker.start()
        for extra in [extra for extra in self._extras if extra.died()]:
            try:
                extra.start()
                log.warning("the %s died and is started again", extra.name)
            except RunError as error:
                log.warning("%s; runs continue without", error)
                self._extras.remove(extra)

    def stop(self) -> None:
        """Stop all services, the worker first: it ends its runs and reports to the server."""
        for service in (self._worker, *self._extras, self._server):
            service.stop()
