"""A run that is interrupted ends at once with all that it started, says how to go on, and goes on."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.flows.tiny import ROOT, environment, run_command, wait_until
from tests.flows.up import children_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def interrupted(out: Path, home: Path, sign: signal.Signals, child: str) -> tuple[int, str, float]:
    """Run the loop until a ``child`` works, and send a signal to all that the terminal would send it to.

    Returns:
        the exit code, what was said, and how many seconds it took to end.
    """
    with open(home / "run.log", "wb") as output:
        run = subprocess.Popen(
            run_command(out), env=environment(home / "prefect"), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            wait_until(lambda: children_of(out, child), 420, child, run)
            began = time.monotonic()
            os.killpg(run.pid, sign)
            code = run.wait(180)
            return code, (home / "run.log").read_text(), time.monotonic() - began
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()


def port_of_server(said: str) -> int:
    found = re.search(r"temporary server on http://127\.0\.0\.1:(\d+)", said)
    assert found, said
    return int(found[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_signal_ends_the_children_and_the_same_command_goes_on(tmp_path):
    out = tmp_path / "run"
    for sign, child in ((signal.SIGTERM, "parse-phrases"), (signal.SIGINT, "train_main")):
        code, said, seconds = interrupted(out, tmp_path, sign, child)
        assert code == 128 + sign, said[-3000:]
        assert seconds < 60, f"{sign.name}: {seconds:.0f} s to end"
        assert not children_of(out)
        assert not listens(port_of_server(said))
        words = f"self-train: interrupted; the same command goes on where it was; done so far is in {out}"
        assert said.splitlines().count(words) == 1 and "Traceback" not in said, said[-3000:]
        assert "Finished in state Crashed" in said, said[-3000:]  # the server lived to be told
        assert not (out / "summary.json").exists()
    done = subprocess.run(
        run_command(out), env=environment(tmp_path / "prefect"), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert (out / "summary.json").is_file() and "NOVEL R@1" in done.stdout


def test_a_killed_run_leaves_no_server(tmp_path):
    code, said, _ = interrupted(tmp_path / "run", tmp_path, signal.SIGKILL, "demo.cli")
    assert code == -signal.SIGKILL
    wait_until(lambda: not listens(port_of_server(said)), 30, "the server's end")
    wait_until(lambda: not children_of(tmp_path / "run"), 20, "the children's end")
