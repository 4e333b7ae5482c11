"""``self-train up`` as tests start it: a server, its worker, and what their pids are."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient

from tests.flows.api import ask
from tests.flows.tiny import BIN, ROOT, environment, wait_until


def three_ports() -> int:
    """The first of three ports in a row that nobody listens on."""
    for port in range(21000 + os.getpid() % 3000 * 3, 32000, 3):
        probes = [socket.socket() for _ in range(3)]
        try:
            for i, probe in enumerate(probes):
                probe.bind(("127.0.0.1", port + i))
            return port
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
    raise AssertionError("no three free ports in a row")


def children_of(run: Path, words: str = "") -> list[int]:
    """Pids of living processes that work on the run and have these words in their command line.

    Children of a flow have their job's file there: ``RUN/logs/train-teacher.job.json``.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(run) in command and words in command:
            found.append(int(path.parent.name))
    return found


class Up:
    """A running ``self-train up``; ``api`` and ``url`` are the server's."""

    def __init__(self, home: Path, *options: str, port: int | None = None) -> None:
        self.home, self.runs, self.logs = home, home / "runs", home / "logs"
        self.port = port or three_ports()
        self.url = f"http://127.0.0.1:{self.port}"
        self.api = f"{self.url}/api"
        self.env = environment(
            home / "prefect", PREFECT_API_URL=self.api, GLIP_SELF_TRAIN_NOTIFY="custom-webhook/on-call"
        )
        self._said = home / f"up-{secrets.token_hex(4)}.log"  # another may use the same folder
        self._log = open(self._said, "wb")  # noqa: SIM115 - as long as the process
        command = [
            str(BIN / "self-train"), "up", "--port", str(self.port), "--runs", str(self.runs), "--logs", str(self.logs),
            *options,
        ]  # fmt: skip
        self.process = subprocess.Popen(command, env=self.env, cwd=ROOT, stdout=self._log, stderr=subprocess.STDOUT)

    def wait(self) -> None:
        """Until the worker runs."""
        wait_until(lambda: "start a run" in self.said(), 240, "self-train up", self.process)

    def said(self) -> str:
        return self._said.read_text()

    def prefect(self, *arguments: str, check: bool = True) -> str:
        command = [str(BIN / "prefect"), "--no-prompt", *arguments]
        done = subprocess.run(command, env=self.env, cwd=ROOT, capture_output=True, text=True)
        said = done.stdout + done.stderr
        assert done.returncode == 0 or not check, said
        return said

    def start(self, out: Path, config: Any, flow: str = "self-train") -> str:
        """Ask for a run of a flow, the whole loop by default; returns its id.

        By Prefect's client, which asks again while SQLite is busy (503), and which takes no seconds
        to start as its command does.
        """
        return self.ask_for({"out": str(out), "config": config.model_dump(mode="json")}, flow)

    def ask_for(self, parameters: dict[str, Any], flow: str) -> str:
        """Ask for a run with these parameters; returns its id."""
        with SyncPrefectClient(self.api) as client:
            deployment = client.read_deployment_by_name(f"{flow}/local")
            return str(client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id)

    def family(self, run: str) -> list[str]:
        """The ids of a run and of all runs that it started, and those started."""
        found = new = [run]
        while new:
            wanted = {"flow_runs": {"parent_flow_run_id": {"any_": new}}, "limit": 200}
            new = [r["id"] for r in ask("POST", f"{self.api}/flow_runs/filter", wanted)]
            found = [*found, *new]
        return found

    def artifacts(self, run: str) -> dict[str, dict[str, Any]]:
        """What a run and those that it started put on the dashboard, the latest by key."""
        wanted = {"artifacts": {"flow_run_id": {"any_": self.family(run)}}, "limit": 200}
        found = ask("POST", f"{self.api}/artifacts/filter", wanted)
        return {a["key"]: a for a in sorted(found, key=lambda a: a["created"])}

    def state(self, run: str) -> tuple[str, str]:
        """(type, name) of a run's state; ("", "") while nobody answers."""
        try:
            state = httpx.get(f"{self.api}/flow_runs/{run}", timeout=10).json()["state"]
        except (httpx.HTTPError, json.JSONDecodeError, KeyError):
            return "", ""
        return state["type"], state["name"]

    def ended(self, run: str) -> bool:
        return self.state(run)[0] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

    def child(self, words: str) -> int | None:
        """The pid of the process that it started with these words in its command line."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
                command = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (OSError, ValueError, IndexError):
                continue
            if parent == self.process.pid and words in command:
                return int(stat.parent.name)
        return None

    def kill(self, words: str) -> None:
        """SIGKILL a child, and wait until another has taken its place."""
        pid = self.child(words)
        assert pid is not None, f"no {words}: {self.said()}"
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self.child(words) not in (None, pid), 60, f"a new {words}", self.process)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(180)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()
