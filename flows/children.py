"""Stages run as child processes: memory is measured and given back, and a crash takes nothing else along."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.errors import InputError, RunError

_TIMES = threading.Lock()
TAIL_LINES = 12


def stage_command(*arguments: str) -> list[str]:
    """``python -m pipeline STAGE ...`` with this interpreter."""
    return [sys.executable, "-m", "pipeline", *arguments]


def launch_command(module: str, *arguments: str, device: str = "cpu", processes: int = 1) -> list[str]:
    """``accelerate launch`` of a module, every question that it would ask answered."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    launcher += ["--num_processes", str(processes), "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]  # the recipe's precision is the trainer's affair
    if device == "cpu":
        launcher.append("--cpu")
    return [*launcher, "-m", module, *arguments]


def run_child(
    name: str,
    stage: str,
    command: Sequence[str],
    logs: Path,
    *,
    threads: int | None = None,
    watch: Callable[[], None] | None = None,
) -> None:
    """Run a command to its end with its output in ``logs/NAME.log``; its time and peak memory go to ``times.jsonl``.

    ``watch`` is called about once a second meanwhile. Whatever ends this function early ends the child too.

    Raises:
        InputError: the child said that its input is wrong (exit code 2), with its last words.
        RunError: it failed otherwise.
    """
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{name}.log"
    environment = dict(os.environ, TOKENIZERS_PARALLELISM="false")
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    began = time.monotonic()
    with open(log, "ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        start = output.tell()
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        try:
            status, usage = _wait(child, watch)
        except BaseException:
            _end(child)
            raise
    row = {
        "name": name,
        "stage": stage,
        "seconds": round(time.monotonic() - began, 2),
        "peak_mib": round(usage.ru_maxrss / 1024, 1),
    }
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        with _TIMES, open(logs / "times.jsonl", "a") as times:
            times.write(json.dumps(row) + "\n")
        return
    said = log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
    words = f"{name} ended with {code}; last lines of {log}:\n" + "\n".join(said[-TAIL_LINES:])
    raise InputError(words) if code == 2 else RunError(words)


def _wait(child: subprocess.Popen[bytes], watch: Callable[[], None] | None) -> tuple[int, os.struct_rusage]:  # type: ignore[name-defined]
    import resource

    looked = time.monotonic()
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return status, resource.struct_rusage(usage) if not hasattr(usage, "ru_maxrss") else usage
        if watch is not None and time.monotonic() - looked > 1.0:
            looked = time.monotonic()
            watch()
        time.sleep(0.05)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child's whole process group: politely, then not."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, sign)
            child.wait(timeout=10)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
