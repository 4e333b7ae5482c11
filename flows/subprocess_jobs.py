"""Stages run as child processes: memory is measured and given back, and a crash takes nothing else along."""

from __future__ import annotations

import json
import logging
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

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from pipeline.errors import InputError, RunError
from pipeline.execution.progress import PROGRESS_FILE, ProgressNote
from pipeline.io.paths import stem
from pipeline.stages.jobs import Job, PerShardJob, write_job
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
FAILURE_BYTES = 1 << 15
log = logging.getLogger("glip_self_train")


class EndedError(RunError):
    """A child was ended, or not started, because the run was interrupted."""


class ChildJob(BaseModel):
    """One child process: a stage on some of its inputs.

    ``name`` is unique in the run and names its files in ``logs``; ``stage`` is what its time and memory are counted under.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    stage: str
    logs: Path
    job: SerializeAsAny[Job] | None = Field(None, description="what it runs; written to a file for it")
    command: tuple[str, ...] = Field((), description="default: run-job with the job's file")
    threads: int | None = Field(None, description="CPU threads; default: all cores")
    processes: int = Field(1, ge=1, description="of a training, under accelerate's launcher if there are several")
    fsdp: bool = Field(False, description="the processes share the weights out (FSDP2); else each has them all (DDP)")
    persistent_worker: bool = Field(
        False, description="run in a process that keeps what it loads; see flows/ray_runner.py"
    )
    gpus: int = Field(0, ge=0, description="of this machine that it needs for itself; see flows/gpu_leases.py")

    def _file(self, kind: str) -> Path:
        return self.logs / f"{self.name}.{kind}.json"

    @property
    def job_file(self) -> Path:
        """File of the job, which ``run-job`` reads."""
        return self._file("job")

    @property
    def report(self) -> Path:
        """File of the report that the command writes."""
        return self._file("report")

    @property
    def failure(self) -> Path:
        """File of the error that the command ended with: spaces to write over, as a full disk has room for no more."""
        return self._file("failure")

    @property
    def progress(self) -> Path:
        """File of the command's ProgressNote."""
        return self._file("progress")

    def note(self) -> ProgressNote | None:
        """The command's progress, once there is any."""
        try:
            return ProgressNote.model_validate_json(self.progress.read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def read_report(self) -> Any:
        """The report that the command wrote, or None."""
        return json.loads(self.report.read_text()) if self.report.is_file() else None

    def finished(self) -> Any:
        """The report if all outputs are there, so that no process is needed, else None."""
        if self.job is None:
            return None
        try:
            return self.job.finished()
        except Exception as error:  # the child meets it again, and reports it
            log.debug("%s: not known whether it is finished: %s", self.name, error)
            return None

    def split(self) -> dict[str, ChildJob]:
        """A job for each of its shards alone, by the shard's name; none where a job has no list of shards."""
        if not isinstance(self.job, PerShardJob) or not self.job.shards_field:
            return {}
        field = self.job.shards_field
        return {
            stem(shard): self.model_copy(
                update={
                    "name": f"{self.name}-{stem(shard)}",
                    "job": self.job.model_copy(update={field: (shard,), "max_failed": 1}),
                }
            )
            for shard in getattr(self.job, field)
        }

    def arguments(self) -> tuple[str, ...]:
        """The command line."""
        if self.command:
            return self.command
        run = ("-m", "pipeline", "run-job", str(self.job_file))
        files = ("--report-json", str(self.report), "--failure-json", str(self.failure))
        return (sys.executable, *self._launcher(), *run, *files)

    def _launcher(self) -> tuple[str, ...]:
        """``accelerate launch`` of several processes on this machine, with every setting of it named.

        None is left to the user's own configuration of accelerate, which may name other GPUs than those that the job holds.
        """
        if self.processes == 1:
            return ()
        # the trainer sets the precision; any free port, as several trainings may run on a machine; also on CPUs --multi_gpu:
        # accelerate's --cpu starts one process whatever the number
        shared = ("--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP")
        return (
            "-m", "accelerate.commands.launch", "--config_file", str(ACCELERATE), "--gpu_ids", "all",
            "--num_processes", str(self.processes), "--num_machines", "1", "--main_process_port", "0",
            "--mixed_precision", "no", "--dynamo_backend", "no", *(shared if self.fsdp else ("--multi_gpu",)),
        )  # fmt: skip


def run_child(job: ChildJob, gpus: Sequence[str] = ()) -> dict[str, Any] | None:
    """Run a job to its end with its output in ``logs/NAME.log``; its time and peak memory go to ``times.jsonl``.

    It sees the ``gpus`` with these ids and no others; without any, those that this process sees.

    Whatever ends this function early ends the child, and what the child started, too.

    Returns:
        the report that the command wrote, as plain values, or None if it writes none.

    Raises:
        InputError: the child's input is wrong (exit code 2), with the child's own error line.
        EndedError: the children of this process are being ended (:func:`end_children`).
        RunError: it failed otherwise, with the child's own error line.
    """
    prepare_files(job)
    job.failure.write_bytes(b" " * FAILURE_BYTES)
    output_file = job.logs / f"{job.name}.log"
    # torch's threads wait for each other by spinning: where another process wants the core too, long spins made a
    # training 7 times slower than it had to be, short ones 2.5 times; alone they cost nothing that could be measured
    environment = {"GOMP_SPINCOUNT": "30000"} | dict(os.environ, TOKENIZERS_PARALLELISM="false")
    # safe path: a pipeline.py or a folder model/ in the user's folder must not take the place of ours
    environment |= {PROGRESS_FILE: str(job.progress), LIFELINE: "stdin", "PYTHONSAFEPATH": "1"}
    if gpus:
        environment[VISIBLE] = ",".join(gpus)
    if job.threads:
        environment |= {"OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
    began, command = time.monotonic(), job.arguments()
    with open(output_file, "ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        start = output.tell()
        with _STARTS:  # a child is started before its like are ended, and ended with them, or not at all
            go_on_or_end(job.name)
            child = subprocess.Popen(
                command,
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
        job.failure.unlink(missing_ok=True)
        write_times(job, time.monotonic() - began, peak_kib / 1024)
        return job.read_report()
    go_on_or_end(job.name)
    raise _error(job, code, output_file, start)


def prepare_files(job: ChildJob) -> None:
    """Write the job's file, and remove what an earlier try of it left."""
    job.logs.mkdir(parents=True, exist_ok=True)
    for stale in (job.report, job.progress):
        stale.unlink(missing_ok=True)
    if job.job is not None:
        write_job(job.job_file, job.job)


def _error(job: ChildJob, code: int, output_file: Path, start: int) -> Exception:
    """The child's own error and exit code; without one, as when it was killed, the last lines of its log."""
    try:
        failure = json.loads(job.failure.read_bytes())
        line, code = str(failure["error"]), int(failure["exit_code"])
        message = f"{job.name}: {line} (exit code {code}; log: {output_file})"
    except (OSError, ValueError, KeyError):
        said = output_file.read_bytes()[start:].decode(errors="replace").strip().splitlines()
        message = f"{job.name} ended with {code}; last lines of {output_file}:\n" + "\n".join(said[-TAIL_LINES:])
    return InputError(message) if code == InputError.exit_code else RunError(message)


def write_times(job: ChildJob, seconds: float, peak_mib: float) -> None:
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
