"""Overhead of Prefect: a stage whose jobs only commit, and 10,000 task runs on both databases.

    python benchmarks/orchestration.py --json orchestration.json
    python benchmarks/orchestration.py --only overhead --shards 600 --database sqlite    # quick

The empty stage runs as a real one (``chunks``, ``JobBuilder``, ``run_jobs``, tasks of ``chunk_shards``
shards, retries, progress artifacts) against a server in another process; its jobs commit a report
for each shard. ``overhead_seconds_2400_shards``: jobs in the flow's process, the overhead of
Prefect itself. ``child_seconds_2400_shards``: jobs as child processes, as those of real stages,
with the start and supervision of Python but without a stage's imports. ``share_of_run``: the
overhead over 2,400 minutes of work; ``share_of_run_64_gpus``: over the same work on 64 GPUs.
``seconds_of_shards`` and ``linear_fit`` (R²): scaling. ``server_mib``: memory of all server
processes.

``locked_failures``, in total and by database: of 10,000 task runs in flows of 500, four flows at a
time, failed task runs, failed flows, and occurrences of "database is locked" in the logs. The
server writes task runs through a queue in memory; the next four flows start when it is empty, as
real tasks take minutes; ``task_runs_not_on_record`` counts those that were never written. ``--flows
20`` starts all at once. PostgreSQL is started from the programs on PATH. The server has the
settings of ``flows/server_settings.py``, or Prefect's own with ``--prefects-settings``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for the tests' servers, which are not installed

CHUNK = 8
STAGE = 500
"""Maximum number of task runs of a stage in a run of the recipe."""
EMPTY_CHILD = """
import json, sys
stage, out, report, *shards = sys.argv[1:]
for shard in shards:
    with open(f"{out}/{shard}.report.json", "w") as file:
        json.dump({"stage": stage, "shard": shard, "fingerprint": "0"}, file)
with open(report, "w") as file:
    json.dump({"stage": stage, "done": len(shards)}, file)
"""


def empty_stage(out: Path, shards: int, chunk: int, parallel: int, way: str) -> float:
    """Seconds of a stage flow with empty jobs; ``way``: "in_process" or "child"."""
    from prefect import flow
    from prefect.task_runners import ThreadPoolTaskRunner

    import flows.jobs
    from flows.job_builder import JobBuilder, chunks
    from flows.subprocess_jobs import ChildJob
    from pipeline.config import ResourcesConfig, SelfTrainConfig
    from pipeline.execution.commit import commit_report
    from pipeline.execution.reports import ShardReport, StageReport
    from pipeline.io.paths import stem
    from pipeline.runs.layout import RunLayout
    from pipeline.stages import ParsePhrases

    folder = out / "phrases"
    folder.mkdir(parents=True)
    config = SelfTrainConfig(resources=ResourcesConfig(chunk_shards=chunk, parallel=parallel, threads=1))

    def names(job: ChildJob) -> list[str]:
        assert isinstance(job.job, ParsePhrases)
        return [stem(shard) for shard in job.job.shards]

    def commit_only(job: ChildJob) -> dict[str, Any]:
        for name in names(job):
            commit_report(folder, ShardReport(stage=job.stage, shard=name, fingerprint="0"))
        return StageReport(stage=job.stage, done=len(names(job))).model_dump(mode="json")

    def as_child(job: ChildJob) -> ChildJob:
        command = (sys.executable, "-c", EMPTY_CHILD, job.stage, str(folder), str(job.file("report")), *names(job))
        return job.model_copy(update={"command": command})

    if way == "in_process":
        flows.jobs.run_child = commit_only

    @flow(name="empty-stage", task_runner=ThreadPoolTaskRunner(max_workers=parallel))
    def empty() -> StageReport:
        job_builder = JobBuilder(config, RunLayout(out))
        paths = [f"crawl/{i:06d}.tar" for i in range(shards)]
        parts = chunks(paths, chunk, parallel)
        jobs = [
            job_builder.child(f"empty-{i:03d}", ParsePhrases(shards=part, out=folder), together=len(parts))
            for i, part in enumerate(parts)
        ]
        return flows.jobs.run_jobs("empty", jobs if way == "in_process" else [as_child(job) for job in jobs])

    started = time.perf_counter()
    report = empty()
    seconds = time.perf_counter() - started
    assert report.done == shards == len(list(folder.glob("*.report.json")))
    return seconds


def start_flow(server: Any, folder: Path, shards: int, chunk: int, parallel: int, way: str) -> subprocess.Popen[bytes]:
    """Start :func:`empty_stage` in a process that uses the server."""
    folder.mkdir(parents=True)
    arguments = [str(folder / "run"), shards, chunk, parallel, way, str(folder / "seconds")]
    command = [sys.executable, str(Path(__file__).resolve()), "--inner", json.dumps(arguments)]
    with open(folder / "log", "wb") as log:
        return subprocess.Popen(command, env=server.env, stdout=log, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes], folder: Path) -> float:
    """Wait for a flow's process; returns the seconds that it measured."""
    assert process.wait() == 0, (folder / "log").read_text()[-3000:]
    return float((folder / "seconds").read_text())


def memory_mib(pid: int) -> float:
    """Resident memory of a process and its descendants."""
    import psutil

    leader = psutil.Process(pid)
    return sum(p.memory_info().rss for p in [leader, *leader.children(recursive=True)]) / 2**20


def recorded(api: str, state: str | None = None) -> int:
    """Number of the server's task runs, in the given state if any."""
    import httpx

    query = {"task_runs": {"state": {"type": {"any_": [state]}}}} if state else {}
    return int(httpx.post(f"{api}/task_runs/count", json=query, timeout=60).json())


def wait_for_records(api: str, expected: int, timeout: float = 60) -> tuple[int, float]:
    """(completed task runs, seconds waited); stops ``timeout`` seconds after the last new one."""
    started = progressed = time.monotonic()
    before = -1
    while (now := recorded(api, "COMPLETED")) < expected and time.monotonic() - progressed < timeout:
        if now > before:
            before, progressed = now, time.monotonic()
        time.sleep(1)
    return now, time.monotonic() - started


@contextmanager
def database(name: str) -> Iterator[dict[str, str]]:
    """Prefect's setting of a database: SQLite in its own folder, or a PostgreSQL server."""
    from tests.fixtures.servers import postgres

    if name == "sqlite":
        yield {}
        return
    with postgres() as url:
        yield {"PREFECT_API_DATABASE_CONNECTION_URL": url}


def r_squared(x: list[float], y: list[float]) -> float:
    """R² of a linear fit."""
    import numpy as np

    slope, start = np.polyfit(x, y, 1)
    a, b = np.array(x), np.array(y)
    return float(1 - ((b - (slope * a + start)) ** 2).sum() / ((b - b.mean()) ** 2).sum())


def overhead(root: Path, name: str, most: int, parallel: int, server_settings: dict[str, str]) -> dict[str, Any]:
    """Seconds and memory of empty stages of a quarter, a half and all of ``most`` shards."""
    from tests.fixtures.servers import prefect_server

    results: dict[str, Any] = {}
    with database(name) as settings, prefect_server(root / "home", **settings, **server_settings) as server:
        memory = {"idle": memory_mib(server.process.pid)}
        folder = root / "warm"
        finish(start_flow(server, folder, CHUNK, CHUNK, parallel, "in_process"), folder)
        for way in ("in_process", "child"):
            seconds = {}
            for count in (most // 4, most // 2, most):
                folder = root / f"{way}-{count}"
                seconds[count] = finish(start_flow(server, folder, count, CHUNK, parallel, way), folder)
                memory[f"{way}_{count}"] = memory_mib(server.process.pid)
                mib = memory[f"{way}_{count}"]
                print(f"  {name}, {way}: {count} shards {seconds[count]:.1f} s, server {mib:.0f} MiB")
            results[way] = {
                "seconds_of_shards": {str(k): round(v, 2) for k, v in seconds.items()},
                "linear_fit": r_squared([float(k) for k in seconds], list(seconds.values())),
                "seconds": seconds[most],
            }
    results["server_mib"] = {k: round(v, 1) for k, v in memory.items()}
    return results


def locked(
    root: Path, name: str, task_runs: int, flows_at_a_time: int, server_settings: dict[str, str]
) -> dict[str, Any]:
    """Failures of ``task_runs`` task runs on one database, in flows of STAGE task runs.

    ``flows_at_a_time`` flows run at a time; the next ones start when all task runs are recorded.
    """
    from tests.fixtures.servers import prefect_server

    started, expected, spent, waited = time.perf_counter(), 0, 0.0, 0.0
    codes: list[int] = []
    folders: list[Path] = []
    with database(name) as settings, prefect_server(root / "home", **settings, **server_settings) as server:
        while expected < task_runs:
            began = time.perf_counter()
            sizes = [min(STAGE, task_runs - expected - i * STAGE) for i in range(flows_at_a_time)]
            now = [root / f"flow-{len(folders) + i}" for i, size in enumerate(sizes) if size > 0]
            running = [start_flow(server, f, size, 1, 4, "in_process") for f, size in zip(now, sizes, strict=False)]
            codes += [process.wait() for process in running]
            spent += time.perf_counter() - began
            folders += now
            expected += sum(size for size in sizes if size > 0)
            completed, seconds = wait_for_records(server.api, expected)
            waited += seconds
            elapsed = time.perf_counter() - started
            print(f"  {name}: {completed} of {expected} recorded as completed after {elapsed:.0f} s")
        memory = memory_mib(server.process.pid)
        failed = recorded(server.api, "FAILED") + recorded(server.api, "CRASHED")
        logs = [server.log.read_text(errors="replace")] + [(f / "log").read_text(errors="replace") for f in folders]
    locks = sum(log.count("database is locked") for log in logs)
    flows_failed = sum(code != 0 for code in codes)
    return {
        "locked_failures": locks + flows_failed + failed,
        "said_database_is_locked": locks,
        "flows_that_failed": flows_failed,
        "task_runs_failed": failed,
        "task_runs_not_on_record": expected - completed,
        "messages_dropped": logs[0].count("dropping message"),
        "errors_in_server_log": logs[0].count("| ERROR"),
        "seconds_of_flows": round(spent, 1),
        "seconds_of_waiting_for_the_record": round(waited, 1),
        "server_mib": round(memory, 1),
        "first_error": next((line for line in logs[0].splitlines() if "| ERROR" in line), ""),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["overhead", "locked"])
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both", help="of the task runs")
    parser.add_argument("--shards", type=int, default=2400)
    parser.add_argument("--parallel", type=int, default=2, help="jobs at a time of the empty stage")
    parser.add_argument("--task-runs", type=int, default=10_000)
    parser.add_argument("--flows", type=int, default=4, help="flows at a time of the task runs")
    parser.add_argument("--prefects-settings", action="store_true", help="Prefect's own settings of the server")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inner", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inner:
        out, shards, chunk, parallel, way, file = json.loads(args.inner)
        Path(file).write_text(str(empty_stage(Path(out), shards, chunk, parallel, way)))
        return
    from flows.server_settings import SERVER_SETTINGS

    settings = {} if args.prefects_settings else SERVER_SETTINGS
    databases = ["sqlite", "postgresql"] if args.database == "both" else [args.database]
    figures: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if args.only in (None, "overhead"):
            print("empty stage")
            results = overhead(root / "overhead", databases[0], args.shards, args.parallel, settings)
            seconds = results["in_process"]["seconds"]
            figures |= {
                f"overhead_seconds_{args.shards}_shards": seconds,
                f"child_seconds_{args.shards}_shards": results["child"]["seconds"],
                "share_of_run": seconds / (60 * args.shards),
                "share_of_run_64_gpus": seconds / (60 * args.shards / 64),
                "overhead": results,
            }
        if args.only in (None, "locked"):
            print(f"{args.task_runs} task runs")
            parts = {n: locked(root / f"locked-{n}", n, args.task_runs, args.flows, settings) for n in databases}
            figures["locked_failures"] = sum(part["locked_failures"] for part in parts.values())
            figures["task_runs"] = parts
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
