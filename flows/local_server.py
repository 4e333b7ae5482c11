"""A Prefect server and a worker on this machine, kept alive: what ``self-train up`` starts."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from pipeline.errors import RunError
from pipeline.report.inside import BOARD, FILES

log = logging.getLogger("glip_self_train")

ROOT = Path(__file__).resolve().parents[1]
DEPLOYMENTS = ROOT / "flows" / "prefect.yaml"
POOL = "local"
HEARTBEAT_SECONDS = 60
"""A run tells so often that it lives; one that is silent for three times that is marked as crashed (zombies)."""
PATIENCE = 120.0
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
"""Hosts that mean all addresses of this machine, and the one by which it finds itself; others are told its name."""


class _Kept:
    """A child process that is started again when it dies, but not for ever in a row."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str], logs: Path) -> None:
        self.name, self._command, self._environment = name, list(command), environment
        self._log = logs / f"{name}.log"
        self._starts: list[float] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    def start(self) -> None:
        now = time.monotonic()
        self._starts = [t for t in self._starts if now - t < 60] + [now]
        if len(self._starts) > 3:
            raise RunError(f"the {self.name} died three times within a minute; its last words are in {self._log}")
        self._output = self._output or open(self._log, "ab")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            self._command, env=self._environment, cwd=ROOT, stdout=self._output, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
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


class LocalServer:
    """Server, deployments, worker; beside them the runs' pages and TensorBoard on the next two ports.

    url: the dashboard's address; pages, board: those of the others. runs: the folder that they show.
    """

    def __init__(self, host: str, port: int, limit: int, logs: Path, runs: Path) -> None:
        shown = socket.gethostname() if host in ANYWHERE else host
        self.url, self.pages, self.board = (f"http://{shown}:{port + i}" for i in range(3))
        self._near = f"http://{ANYWHERE.get(host, host)}:{port}"
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
        prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
        self._prefect_command = prefect
        self._server = _Kept(
            "server", [*prefect, "server", "start", "--host", host, "--port", str(port)], self.environment, logs
        )
        worker = [*prefect, "worker", "start", "--pool", POOL, "--limit", str(limit), "--name", "self-train"]
        self._worker = _Kept("worker", worker, self.environment, logs)
        serve = [sys.executable, "-m", "http.server", str(port + 1), "--bind", host, "--directory", str(runs)]
        board = [
            sys.executable,
            "-m",
            "tensorboard.main",
            "--logdir",
            str(runs),
            "--host",
            host,
            "--port",
            str(port + 2),
        ]
        self._others = [
            self._worker,
            _Kept("pages", serve, self.environment, logs),
            _Kept("tensorboard", board, self.environment, logs),
        ]
        self._ours = False

    def healthy(self) -> bool:
        """Whether a server answers."""
        import httpx

        try:
            return httpx.get(f"{self._near}/api/health", timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def start(self) -> None:
        """Start a server if none answers there, deploy every flow, start a worker.

        Raises:
            RunError: the server does not come up, or a deployment fails.
        """
        if not self.healthy():
            self._ours = True
            self._server.start()
            self._wait()
        self._prefect("work-pool", "create", "--type", "process", "--overwrite", POOL)
        self._prefect("deploy", "--all", "--prefect-file", str(DEPLOYMENTS))
        self._mark_zombies()
        for child in self._others:
            child.start()

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
        code = "from flows.zombies import ensure_automation; ensure_automation()"
        done = subprocess.run(
            [sys.executable, "-c", code], env=self.environment, cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode:
            log.warning("no automation for zombie runs: %s", done.stderr.strip().splitlines()[-1:])

    def run(self, **parameters: str) -> str:
        """Start a run of the whole loop; returns its page."""
        given = [word for name, value in parameters.items() for word in ("--param", f"{name}={json.dumps(value)}")]
        said = self._prefect("deployment", "run", "self-train/local", *given)
        return next((w for line in said.splitlines() for w in line.split() if w.startswith(self.url)), self.url)

    def keep(self) -> None:
        """Start again what died. Call now and then."""
        if self._ours and self._server.died():
            log.warning("the server died and is started again")
            self._server.start()
            self._wait()
        for child in self._others:
            if child.died():
                log.warning("the %s died and is started again", child.name)
                child.start()

    def stop(self) -> None:
        """The worker first: it tells the server that it goes."""
        for child in self._others:
            child.stop()
        if self._ours:
            self._server.stop()
