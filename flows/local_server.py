"""A Prefect server and a worker on this machine, kept alive: what ``self-train up`` starts."""

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
from pathlib import Path
from typing import IO

from pipeline.errors import InputError, RunError
from pipeline.report.urls import BOARD, FILES

log = logging.getLogger("glip_self_train")

ROOT = Path(__file__).resolve().parents[1]
DEPLOYMENTS = ROOT / "flows" / "prefect.yaml"
POOL = "local"
HEARTBEAT_SECONDS = 60
"""A run tells so often that it lives; one that is silent for three times that is marked as crashed (zombies)."""
UP = "GLIP_SELF_TRAIN_UP"
"""Environment of the worker: the pid of the ``self-train up`` that started it, with which its runs end."""
PATIENCE = 120.0
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
"""Hosts that mean all addresses of this machine, and the one by which it finds itself; others are told its name."""


class _Kept:
    """A Python module as a child process that is started again when it dies, but not for ever in a row. It ends with this process, however
    that ends."""

    def __init__(self, name: str, module: Sequence[str], environment: dict[str, str], logs: Path) -> None:
        self.name, self._environment = name, environment
        self._command = [sys.executable, "-m", "pipeline.system.parent_watch", *module]
        self._log = logs / f"{name}.log"
        self._started = -math.inf
        self._short_lives = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    def start(self) -> None:
        now = time.monotonic()
        self._short_lives = self._short_lives + 1 if now - self._started < 60 else 0
        if self._short_lives == 3:
            raise RunError(
                f"the {self.name} died three times within a minute of its start; its last words are in {self._log}"
            )
        self._started = now
        self._output = self._output or open(self._log, "ab")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            self._command, env=self._environment, cwd=ROOT, stdout=self._output, stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE, start_new_session=True,  # of a session of its own: a terminal that closes is ours to pass on
        )  # fmt: skip

    def died(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def stop(self) -> None:
        """Politely, then not; what it started goes with it."""
        process = self._process
        if process is None:
            return
        for sign, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
            try:
                process.send_signal(sign) if sign == signal.SIGTERM else os.killpg(process.pid, sign)
                process.wait(patience)
                break
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        if self._output is not None:
            self._output.close()


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class LocalServer:
    """Server, deployments, worker; beside them the runs' pages and TensorBoard on the next two ports.

    url: the dashboard's address; pages, board: those of the others. runs: the folder that they show.
    """

    def __init__(self, host: str, port: int, limit: int, logs: Path, runs: Path) -> None:
        self.host, self.port = host, port
        shown = socket.gethostname() if host in ANYWHERE else _in_url(host)
        self.url, self.pages, self.board = (f"http://{shown}:{port + i}" for i in range(3))
        self._near = f"http://{ANYWHERE.get(host, _in_url(host))}:{port}"
        for folder in (logs, runs):
            folder.mkdir(parents=True, exist_ok=True)
        self.environment = os.environ | {
            "PREFECT_API_URL": f"{self._near}/api",
            "PREFECT_UI_URL": self.url,
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
            "PREFECT_CLIENT_MAX_RETRIES": "8",  # a server that is started again is waited for
            "NO_COLOR": "1",
            FILES: f"{self.pages} {runs.resolve()}",
            BOARD: self.board,
        }
        prefect = ["prefect", "--no-prompt"]
        self._prefect_command = [sys.executable, "-m", *prefect]
        server = [*prefect, "server", "start", "--host", host, "--port", str(port)]
        self._server = _Kept("server", server, self.environment, logs)
        worker = [*prefect, "worker", "start", "--pool", POOL, "--limit", str(limit), "--name", "self-train"]
        self._worker = _Kept("worker", worker, self.environment | {UP: str(os.getpid())}, logs)
        pages = ["http.server", str(port + 1), "--bind", host, "--directory", str(runs)]
        board = ["tensorboard.main", "--logdir", str(runs), "--host", host, "--port", str(port + 2)]
        self._extras = [
            _Kept("pages", pages, self.environment, logs),
            _Kept("tensorboard", board, self.environment, logs),
        ]
        self._ours = False

    def extras(self) -> dict[str, str]:
        """Addresses of what runs beside the server, by name."""
        addresses = {"pages": self.pages, "tensorboard": self.board}
        return {extra.name: addresses[extra.name] for extra in self._extras}

    def healthy(self) -> bool:
        """Whether a server answers."""
        import httpx

        try:
            return httpx.get(f"{self._near}/api/health", timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def start(self) -> None:
        """Start a server if none answers there, deploy every flow, start a worker. Pages or TensorBoard whose port others have are left out.

        Raises:
            InputError: the port is another program's.
            RunError: the server does not come up, or a deployment fails.
        """
        self._leave_out(FILES, "pages", self.port + 1)
        self._leave_out(BOARD, "tensorboard", self.port + 2)
        if not self.healthy():
            if self._busy(self.port):
                raise InputError(
                    f"port {self.port} is in use, and no Prefect server answers there; name another with --port"
                )
            self._ours = True
            self._server.start()
            self._wait()
        self._prefect("work-pool", "create", "--type", "process", "--overwrite", POOL)
        self._prefect("deploy", "--all", "--prefect-file", str(DEPLOYMENTS))
        self._mark_zombies()
        for child in (self._worker, *self._extras):
            child.start()

    def _leave_out(self, variable: str, name: str, port: int) -> None:
        """Do without an extra whose port another program has; runs are not told of it then."""
        if self._busy(port):
            advice = "end what has it, or name another --port (three in a row are needed)"
            log.warning("port %d is in use, so there will be no %s: %s", port, name, advice)
            self._extras = [extra for extra in self._extras if extra.name != name]
            self.environment.pop(variable, None)

    def _busy(self, port: int) -> bool:
        """Whether somebody else listens there."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family) as probe:
            # as the servers do: what is left of a connection does not count
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, port))
            except OSError as error:
                return error.errno == errno.EADDRINUSE  # any other trouble is for the server to tell
        return False

    def _wait(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self.healthy():
            if self._server.died() or time.monotonic() > deadline:
                raise RunError(f"the server does not answer on {self.url}; its last words are in {self._server._log}")
            time.sleep(0.2)

    def _prefect(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._prefect_command, *arguments], env=self.environment, cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode:
            raise RunError(f"prefect {' '.join(arguments)}: {(done.stdout + done.stderr).strip()[-1500:]}")
        return done.stdout

    def _mark_zombies(self) -> None:
        """An automation that marks runs whose process is gone as crashed, so that they do not seem to run for ever."""
        done = subprocess.run(
            [sys.executable, "-m", "flows.heartbeat_automation"],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            log.warning("no automation for zombie runs: %s", done.stderr.strip().splitlines()[-1:])

    def run(self, **parameters: str) -> str:
        """Start a run of the whole loop; returns its page."""
        given = [word for name, value in parameters.items() for word in ("--param", f"{name}={json.dumps(value)}")]
        said = self._prefect("deployment", "run", "self-train/local", *given)
        return next((w for line in said.splitlines() for w in line.split() if w.startswith(self.url)), self.url)

    def keep(self) -> None:
        """Start again what died. Call now and then.

        Raises:
            RunError: server or worker die again and again. Without pages or TensorBoard runs go on.
        """
        if self._ours and self._server.died():
            log.warning("the server died and is started again")
            self._server.start()
            self._wait()
        elif not self._ours and not self._busy(self.port):
            log.warning("the server that was there is gone, and one is started in its place")
            self._ours = True
            self._server.start()
            self._wait()
        if self._worker.died():
            log.warning("the worker died and is started again")
            self._worker.start()
        for extra in [extra for extra in self._extras if extra.died()]:
            try:
                extra.start()
                log.warning("the %s died and is started again", extra.name)
            except RunError as error:
                log.warning("%s; runs go on without", error)
                self._extras.remove(extra)

    def stop(self) -> None:
        """The worker first: it ends its runs and tells the server that it goes."""
        for child in (self._worker, *self._extras):
            child.stop()
        if self._ours:
            self._server.stop()
