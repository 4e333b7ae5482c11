"""Jobs as child processes: their memory is measured and released, and a crash affects no other job."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from pipeline.errors import InputError, RunError, StageError
from pipeline.execution.progress import PROGRESS_FILE, ProgressNote
from pipeline.io.paths import stem
from pipeline.stages.jobs import Job, PerShardJob, plain, write_job
from pipeline.system.parent_watch import LIFELINE

ACCELERATE = Path(__file__).parent / "deploy" / "accelerate.yaml"
_TIMES = threading.Lock()
_STARTS = threading.Lock()
_LIVE: set[subprocess.Popen[bytes]] = set()
ENDING = threading.Event()
"""Set while this process's children are being ended: none is started then, and no task is tried again."""
END_SECONDS = 10.0
"""Seconds between SIGTERM and SIGKILL for a child."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
TAIL_LINES = 12
FAILURE_BYTES = 1 << 15
log = logging.getLogger("glip_self_train")


class EndedError(Exception):
    """A child was ended, or not started, because the run was interrupted."""


class ChildJob(BaseModel):
    """One child process: a stage on some of its inputs.

    Attributes:
        name: unique in the run; names the child's files in ``logs``.
        stage: name that its time and memory are counted under.
        threads, gpus: with ``persistent_worker`` those of the task on a Ray cluster.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    stage: str
    logs: Path
    job: SerializeAsAny[Job] | None = Field(None, description="passed to the child as a file")
    command: tuple[str, ...] = Field((), description="default: run-job with the job's file")
    threads: int | None = Field(None, description="CPU threads; default: all cores")
    processes: int = Field(1, ge=1, description="processes of a training; several run under accelerate's launcher")
    fsdp: bool = Field(False, description="shard the weights among the processes (FSDP2); else replicate them (DDP)")
    persistent_worker: bool = Field(False, description="run in a process that keeps what it loads (ray_runner.py)")
    gpus: int = Field(0, ge=0, description="GPUs of this machine for this job alone (gpu_leases.py)")

    def file(self, kind: Literal["job", "report", "failure", "progress"]) -> Path:
        """A file of the child in ``logs``: its job; what it writes: report, error, ProgressNote."""
        return self.logs / f"{self.name}.{kind}.json"

    def note(self) -> ProgressNote | None:
        """The command's progress; None if there is none yet."""
        try:
            return ProgressNote.model_validate_json(self.file("progress").read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def read_report(self) -> dict[str, Any] | None:
        """The report that the command wrote, or None."""
        file = self.file("report")
        report: dict[str, Any] | None = json.loads(file.read_text()) if file.is_file() else None
        return report

    def finished(self) -> dict[str, Any] | None:
        """The report if all outputs exist, so that no process is needed; else None."""
        report: dict[str, Any] | None = None
        try:
            report = None if self.job is None else plain(self.job.finished())
        except Exception as error:  # the child meets it again, and reports it
            log.debug("%s: cannot tell whether it is finished: %s", self.name, error)
        return report

    def split(self) -> dict[str, ChildJob]:
        """Shard name -> job of that shard alone; empty for a job without a list of shards."""
        if not isinstance(self.job, PerShardJob) or not self.job.shards_field:
            return {}
        jobs = {}
        for shard in getattr(self.job, self.job.shards_field):
            job = self.job.model_copy(update={self.job.shards_field: (shard,), "max_failed": 1})
            jobs[stem(shard)] = self.model_copy(update={"name": f"{self.name}-{stem(shard)}", "job": job})
        return jobs

    def arguments(self) -> tuple[str, ...]:
        """The command line."""
        if self.command:
            return self.command
        run = ("-m", "pipeline", "run-job", str(self.file("job")))
        files = ("--report-json", str(self.file("report")), "--failure-json", str(self.file("failure")))
        return (sys.executable, *self._launcher(), *run, *files)

    def _launcher(self) -> tuple[str, ...]:
        """Arguments of ``accelerate launch`` for several processes on this machine; empty for one process.

        Every setting is given here: the user's own configuration of accelerate may name other GPUs
        than those that the job holds.
        """
        if self.processes == 1:
            return ()
        # The trainer sets the precision. Port 0: any free one, as several trainings may share the machine.
        # --multi_gpu also on CPUs: with --cpu accelerate starts one process, whatever the number.
        fsdp = ("--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP")
        return (
            "-m", "accelerate.commands.launch", "--config_file", str(ACCELERATE), "--gpu_ids", "all",
            "--num_processes", str(self.processes), "--num_machines", "1", "--main_process_port", "0",
            "--mixed_precision", "no", "--dynamo_backend", "no", *(fsdp if self.fsdp else ("--multi_gpu",)),
        )  # fmt: skip


def run_child(job: ChildJob, gpus: Sequence[str] = ()) -> dict[str, Any] | None:
    """Run a job in a child process; output goes to ``logs/NAME.log``, time and peak memory to ``times.jsonl``.

    Any exception here also ends the child and its descendants.

    Args:
        gpus: ids of the GPUs that are visible to the child; default: those of this process.

    Returns:
        the report that the command wrote, or None.

    Raises:
        InputError: the child's input is wrong (exit code 2), with the child's own error line.
        EndedError: the children of this process are being ended (:func:`end_children`).
        StageError: all jobs of the stage would fail alike, with the child's own error line.
        RunError: the child failed otherwise, with the child's own error line.
    """
    prepare_files(job)
    failure = job.file("failure")
    failure.write_bytes(b" " * FAILURE_BYTES)  # to be overwritten: a full disk has no room for a new file
    output_file = job.logs / f"{job.name}.log"
    # torch's threads wait for each other by spinning. On a core that another process uses too, long spins
    # made a training 7 times slower, short ones 2.5 times; on a free core they cost nothing measurable.
    environment = {"GOMP_SPINCOUNT": "30000"} | dict(os.environ, TOKENIZERS_PARALLELISM="false")
    # safe path: a pipeline.py or model/ in the user's folder must not shadow our packages
    environment |= {PROGRESS_FILE: str(job.file("progress")), LIFELINE: "stdin", "PYTHONSAFEPATH": "1"}
    if gpus:
        environment[VISIBLE] = ",".join(gpus)
    if job.threads:
        environment |= {"OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
    began, command = time.monotonic(), job.arguments()
    with open(output_file, "ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        start = output.tell()
        with _STARTS:  # end_children sees each started child, or keeps it from starting
            check_not_ending(job.name)
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # its end of file, when this process ends, ends the child
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # the terminal's Ctrl-C reaches this process alone
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
        failure.unlink(missing_ok=True)
        write_times(job, time.monotonic() - began, peak_kib / 1024)
        return job.read_report()
    check_not_ending(job.name)
    raise _error(job, code, output_file, start)


def prepare_files(job: ChildJob) -> None:
    """Write the job's file, and remove report and progress of an earlier try."""
    job.logs.mkdir(parents=True, exist_ok=True)
    job.file("report").unlink(missing_ok=True)
    job.file("progress").unlink(missing_ok=True)
    if job.job is not None:
        write_job(job.file("job"), job.job)


def _error(job: ChildJob, code: int, output_file: Path, start: int) -> Exception:
    """The child's own error; if it left none, as when killed, the last lines of its log from ``start``."""
    try:
        failure = json.loads(job.file("failure").read_bytes())
        line, code = str(failure["error"]), int(failure["exit_code"])
        message = f"{job.name}: {line} (exit code {code}; log: {output_file})"
        if failure.get("stage_wide"):
            return StageError(message)
    except (OSError, ValueError, KeyError):
        lines = output_file.read_bytes()[start:].decode(errors="replace").strip().splitlines()
        message = f"{job.name} ended with {code}; last lines of {output_file}:\n" + "\n".join(lines[-TAIL_LINES:])
    return InputError(message) if code == InputError.exit_code else RunError(message)


def write_times(job: ChildJob, seconds: float, peak_mib: float) -> None:
    """Add a job's time and peak memory to ``times.jsonl``."""
    row = {"name": job.name, "stage": job.stage, "seconds": round(seconds, 2), "peak_mib": round(peak_mib, 1)}
    with _TIMES, open(job.logs / "times.jsonl", "a") as times:
        times.write(json.dumps(row) + "\n")


def _wait(child: subprocess.Popen[bytes]) -> tuple[int, int]:
    """(exit code, peak resident KiB of the largest process of the child's session).

    Polls the kernel's high-water marks: wait4 includes the memory of the process that forked.
    """
    peak, looks = 0, 0
    while child.poll() is None:
        pids = _session(child.pid) if looks % 10 == 0 else [child.pid]  # seldom, as it lists all of /proc
        peak = max([peak, *map(_peak_kib, pids)])
        looks += 1
        time.sleep(0.05)
    return child.returncode, peak


def _session(leader: int) -> list[int]:
    """Processes of the session that ``leader`` leads."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(folder.name)) == leader:
                found.append(int(folder.name))
    return found


def _peak_kib(pid: int) -> int:
    """Peak resident KiB of a process; 0 if it is gone, or the system has no /proc."""
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text()):
            return int(found[1])
    return 0


def check_not_ending(name: str) -> None:
    """Raise EndedError if the children of this process are being ended."""
    if ENDING.is_set():
        raise EndedError(f"{name}: ended, as the run was interrupted")


def end_children() -> None:
    """End all children of this process and their descendants; none is started until ENDING is cleared."""
    with _STARTS:
        ENDING.set()
        live = list(_LIVE)
    _end(live)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Send SIGTERM to the children's process groups, and SIGKILL to those that are left after END_SECONDS."""
    _signal(children, signal.SIGTERM)
    deadline = time.monotonic() + END_SECONDS
    try:
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=max(0.1, deadline - time.monotonic()))
    finally:  # also when the waiting is interrupted
        left = [child for child in children if child.poll() is None]
        _signal(left, signal.SIGKILL)
    for child in left:
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=END_SECONDS)


def end_children_now() -> None:
    """Send SIGKILL to the process groups of all children."""
    _signal(list(_LIVE), signal.SIGKILL)


def _signal(children: Sequence[subprocess.Popen[bytes]], sign: signal.Signals) -> None:
    for child in children:
        with suppress(ProcessLookupError, PermissionError):  # it is gone, or just going
            os.killpg(child.pid, sign)
