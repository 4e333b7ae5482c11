"""Ctrl-C and SIGTERM end every command soon, with 130 and 143, without children and with a word on how to go on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

COMMAND = """
import sys, time
from pipeline.cli.common import command
from pipeline.execution.options import ShardOptions
from pipeline.execution.run import run_shards
from pipeline.execution.worker import ShardJob

def work(job):
    print("working", flush=True)
    time.sleep(600)

@command("stage")
def stage():
    jobs = [ShardJob(f"{i}.tar", str(i), "f") for i in range(4)]
    kind = KIND
    if kind == "here":
        run_shards("stage", jobs, "out", work)
    elif kind == "processes":
        run_shards("stage", jobs, "out", work, ShardOptions(workers=2))
    else:  # a library's code that lets no handler of Python's run
        print("working", flush=True)
        import ctypes
        libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
        for _ in range(2):
            libc.pthread_mutex_lock(mutex)

if __name__ == "__main__":
    stage()
"""


@pytest.mark.parametrize("kind", ["here", "processes"])
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_and_its_children(kind, sign, tmp_path):
    script = tmp_path / "stage.py"
    script.write_text(COMMAND.replace("KIND", repr(kind)))
    log = tmp_path / "log"
    with open(log, "wb") as output:
        command = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, stdout=output, stderr=output)
    wait_for(log, "working", 1 if kind == "here" else 2)
    children = psutil.Process(command.pid).children(recursive=True)
    assert bool(children) == (kind == "processes")
    command.send_signal(sign)
    assert command.wait(30) == 128 + sign, log.read_text()
    said = log.read_text()
    assert "stage: interrupted; what is finished is kept, and the same command does the rest" in said
    assert "Traceback" not in said and "error" not in said
    _, alive = psutil.wait_procs(children, 10)
    assert not alive


def test_a_library_that_lets_no_handler_run_is_not_waited_for(tmp_path):
    script, log = tmp_path / "stage.py", tmp_path / "log"
    script.write_text(COMMAND.replace("KIND", "'library'"))
    with open(log, "wb") as output:
        command = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, stdout=output, stderr=output)
    wait_for(log, "working", 1)
    command.send_signal(signal.SIGTERM)
    assert command.wait(60) == 143 and "interrupted; " in log.read_text()


def wait_for(log: Path, words: str, times: int) -> None:
    end = time.monotonic() + 90
    while log.read_text().count(words) < times:
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def test_ctrl_c_during_the_imports_leaves_no_traceback():
    """Those of a command take a second or two, before it can say how to go on."""
    code = "import pipeline.cli, signal, time; print('importing', flush=True); time.sleep(60)"
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert command.stdout is not None and command.stdout.readline()
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=30)
    assert command.returncode == -signal.SIGINT and said == "interrupted\n"  # a shell has 130
