"""Stages run as child processes: memory is measured and given back, and a crash takes nothing else along."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import InputError, RunError
from pipeline.execution.progress import PROGRESS_FILE, ProgressNote
from pipeline.system.parent_watch import LIFELINE

ACCELERATE = Path(__file__).parent / "deploy" / "accelerate.yaml"
_TIMES = threading.Lock()
_STARTS = threading.Lock()
_LIVE: set[subprocess.Popen[bytes]] = set()
ENDING = threading.Event()
"""Set from the moment this process's children are being ended: none is started then, and nothing is tried again."""
END_SECONDS = 10.0
"""How long a child that was asked to end may take."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
TAIL_LINES = 12


class EndedError(RunError):
    """A child was ended, or not started, because the run was interrupted."""


class Job(BaseModel):
    """One child process: a stage on some of its inputs.

    ``name`` is unique in the run and names its log; ``stage`` is what its time and memory are counted under.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    stage: str
    command: tuple[str, ...]
    logs: Path
    threads: int | None = Field(None, description="CPU threads; default: all cores")
    kept: bool = Field(False, description="run in a process that keeps what it loads; see flows/ray_runner.py")
    gpus: int = Field(0, ge=0, description="of this machine that it needs for itself; see flows/gpu_leases.py")
    one_by_one: dict[str, Job] = Field({}, description="a job for each of its shards alone, by the shard's name")

    @property
    def report(self) -> Path:
        """Where the command writes its StageReport."""
        return self.logs / f"{self.name}.report.json"

    @property
    def progress(self) -> Path:
        """Where the command keeps its ProgressNote."""
        return self.logs / f"{self.name}.progress.json"

    def note(self) -> ProgressNote | None:
        """Where the command stands, once it has said so."""
        try:
            return ProgressNote.model_validate_json(self.progress.read_bytes())
        except (FileNotFoundError, ValueError):
            return None


def pipeline_command(stage: str, *arguments: str) -> tuple[str, ...]:
    """``python -m pipeline STAGE ...`` with this interpreter."""
    return (sys.executable, "-m", "pipeline", stage, *arguments)


def launch_command(
    module: str, *arguments: str, device: str = "cpu", processes: int = 1, fsdp: bool = False
) -> tuple[str, ...]:
    """``accelerate launch`` of a module in ``processes`` on this machine, every question that it would ask answered.

    None is left to the user's own configuration of accelerate, which may name other GPUs than those that the job holds.

    fsdp: they share the weights out (FSDP2); else each has them all (DDP).
    """
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ACCELERATE),
        "--gpu_ids",
        "all",
    ]
    launcher += ["--num_processes", str(processes), "--num_machines", "1"]
    # the recipe's precision is the trainer's affair
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    if processes > 1:
        launcher += ["--main_process_port", "0"]  # any that is free: several trainings may run on a machine
        # of CPUs too: accelerate's --cpu starts one process whatever the number
        shared = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
        launcher += shared if fsdp else ["--multi_gpu"]
    elif device == "cpu":
        launcher.append("--cpu")
    return (*launcher, "-m", module, *arguments)


def run_child(job: Job, gpus: Sequence[str] = ()) -> dict[str, Any] | None:
    """Run a job to its end with its output in ``logs/NAME.log``; its time and peak memory go to ``times.jsonl``.

    It sees the ``gpus`` with these ids and no others; without any, those that this process sees.

    Whatever ends this function early ends the child, and what the child started, too.

    Returns:
        the StageReport that the command wrote, as plain values, or None if it writes none.

    Raises:
        InputError: the child said that its input is wrong (exit code 2), with its last words.
        EndedError: the children of this process are being ended (:func:`end_children`).
        RunError: it failed otherwise.
    """
    job.logs.mkdir(parents=True, exist_ok=True)
    for stale in (job.report, job.progress):
        stale.unlink(missing_ok=True)
    log = job.logs / f"{job.name}.log"
    # torch's threads wait for each other by spinning: where another process wants the core too, long spins made a
    # training 7 times slower than it had to be, short ones 2.5 times; alone they cost nothing that could be measured
    environment = {"GOMP_SPINCOUNT": "30000"} | dict(os.environ, TOKENIZERS_PARALLELISM="false")
    environment |= {PROGRESS_FILE: str(job.progress), LIFELINE: "stdin"}
    if gpus:
        environment[VISIBLE] = ",".join(gpus)
    if job.threads:
        environment |= {"OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
    began = time.monotonic()
    with open(log, "ab") as output:
        output.write(f"$ {' '.join(job.command)}\n".encode())
        output.flush()
        start = output.tell()
        with _STARTS:  # a child is started before its like are ended, and ended with them, or not at all
            go_on_or_end(job.name)
            child = subprocess.Popen(
                job.command,
                stdin=subprocess.PIPE,  # held open: the child ends when it ends, as this process does
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a Ctrl-C at the terminal is this process's to pass on
            )
            _LIVE.add(child)
        try:
            code, peak_kib = _wait(child)
        except BaseException:
            _end([child])
            raise
        finally:
            _LIVE.discard(child)
            assert child.stdin is not None
            child.stdin.close()
    if code == 0:
        write_times(job, time.monotonic() - began, peak_kib / 1024)
        return json.loads(job.report.read_text()) if job.report.is_file() else None
    go_on_or_end(job.name)
    said = log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
    words = f"{job.name} ended with {code}; last lines of {log}:\n" + "\n".join(said[-TAIL_LINES:])
    raise InputError(words) if code == 2 else RunError(words)


def write_times(job: Job, seconds: float, peak_mib: float) -> None:
    """Add what a job took to ``times.jsonl``."""
    row = {"name": job.name, "stage": job.stage, "seconds": round(seconds, 2), "peak_mib": round(peak_mib, 1)}
    with _TIMES, open(job.logs / "times.jsonl", "a") as times:
        times.write(json.dumps(row) + "\n")


def _wait(child: subprocess.Popen[bytes]) -> tuple[int, int]:
    """(exit code, peak resident KiB of the largest process of the child's session).

    Read from the kernel's high-water marks while it runs: what wait4 tells counts the starter's own memory too.
    """
    peak, looks = 0, 0
    while child.poll() is None:
        # the launcher's own children are looked for now and then only, as that means reading all of /proc
        pids = _group(child.pid) if looks % 10 == 0 else [child.pid]
        peak = max([peak, *map(_high_water, pids)])
        looks += 1
        time.sleep(0.05)
    return child.returncode, peak


def _group(leader: int) -> list[int]:
    """Processes of the session that ``leader`` leads."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[3]) == leader:
                found.append(int(stat.parent.name))
        except (OSError, IndexError, ValueError):
            continue
    return found


def _high_water(pid: int) -> int:
    """Peak resident KiB of a process, 0 if it is gone (or the system has no /proc)."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return 0


def end_children() -> None:
    """End every child of this process, what they started too, and start no more until :func:`begin_anew`."""
    with _STARTS:
        ENDING.set()
        live = list(_LIVE)
    _end(live)


def begin_anew() -> None:
    """Children may be started again: whoever had them ended is done with that."""
    ENDING.clear()


def go_on_or_end(name: str) -> None:
    """Raises EndedError if the children of this process are being ended."""
    if ENDING.is_set():
        raise EndedError(f"{name}: ended, as the run was interrupted")


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the children's whole process groups: politely, all at once; then not."""
    _signal(children, signal.SIGTERM)
    deadline = time.monotonic() + END_SECONDS
    try:
        for child in children:
            child.wait(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        end_children_now(children)
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=END_SECONDS)
    except BaseException:  # whoever waits was told to hurry
        end_children_now(children)
        raise


def end_children_now(children: Sequence[subprocess.Popen[bytes]] | None = None) -> None:
    """SIGKILL to the process groups of children, by default of all."""
    _signal(list(_LIVE) if children is None else children, signal.SIGKILL)


def _signal(children: Sequence[subprocess.Popen[bytes]], sign: signal.Signals) -> None:
    for child in children:
        with suppress(ProcessLookupError, PermissionError):  # it is gone, or was just going
            os.killpg(child.pid, sign)
