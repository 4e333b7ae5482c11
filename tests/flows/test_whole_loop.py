"""The whole loop with real processes: deployed on a real server with a worker, and killed twice on the way.

Both ways must leave the same bytes, for what is written depends on data and settings alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.io.hashing import digest_file
from tests.flows.tiny import BIN, ROOT, environment, free_port, run_command, tiny_config, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def outputs(run: Path) -> dict[str, str]:
    """Digests of everything that a run made, but for what tells of times and hosts: logs and what quotes them."""
    skip = {"logs", "tensorboard"}
    quotes = {run / "summary.json", run / "report" / "index.html", run / "config.yaml"}
    files = (p for p in sorted(run.rglob("*")) if p.is_file() and p not in quotes)
    return {str(p.relative_to(run)): digest_file(p) for p in files if not skip & set(p.relative_to(run).parts)}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Prefect server on loopback, its environment, and a worker of the pool ``local``."""
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    env = environment(home, PREFECT_API_URL=f"http://127.0.0.1:{port}/api")
    log = open(home / "server.log", "wb")  # noqa: SIM115 - kept open as long as the server
    command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def healthy() -> bool:
        import httpx

        try:
            return httpx.get(f"http://127.0.0.1:{port}/api/health", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    worker = None
    try:
        wait_until(healthy, 120, "the server's health", process)

        def prefect(*arguments: str, check: bool = True) -> str:
            done = subprocess.run(
                [str(BIN / "prefect"), "--no-prompt", *arguments], env=env, cwd=ROOT, capture_output=True, text=True
            )
            assert done.returncode == 0 or not check, done.stdout + done.stderr
            return done.stdout

        prefect("work-pool", "create", "--type", "process", "local")
        prefect("deploy", "--all", "--prefect-file", "flows/prefect.yaml")
        worker_log = open(home / "worker.log", "wb")  # noqa: SIM115
        command = [str(BIN / "prefect"), "worker", "start", "--pool", "local"]
        worker = subprocess.Popen(
            command, env=env, cwd=ROOT, stdout=worker_log, stderr=subprocess.STDOUT, start_new_session=True
        )
        yield prefect, f"http://127.0.0.1:{port}/api", home
    finally:
        for started in (worker, process):
            if started is not None:
                started.terminate()
                try:
                    started.wait(20)
                except subprocess.TimeoutExpired:  # a worker on a busy machine takes its time to say goodbye
                    os.killpg(started.pid, signal.SIGKILL)
                    started.wait()
        log.close()


@pytest.fixture(scope="module")
def deployed(server, tmp_path_factory) -> Path:
    """A run that ``prefect deployment run self-train/local`` started and a worker carried out."""
    prefect, _, home = server
    out = tmp_path_factory.mktemp("deployed") / "run"
    parameters = {"out": str(out), "config": tiny_config().model_dump(mode="json")}
    said = prefect("deployment", "run", "self-train/local", "--params", json.dumps(parameters), "--watch", check=False)
    assert (out / "summary.json").is_file(), said + (home / "worker.log").read_text()[-3000:]
    return out


def test_the_deployed_run_is_whole(deployed):
    summary = json.loads((deployed / "summary.json").read_text())
    for model in ("teacher", "control", "student"):
        assert set(summary[model]) == {"base_recall_at_1", "base_ap50", "novel_recall_at_1", "novel_ap50"}
    assert summary["chance"] == 25.0 and summary["pseudo_labels"]["all"]["labels"] > 0
    stages = summary["stages"]
    for stage in ("ingest", "parse-phrases", "pseudo-label", "filter-boxes", "build-shards"):
        assert stages[stage]["report"]["tallies"], stage
    for stage in ("train-teacher", "train-student", "train-control", "pseudo-label", "evaluate"):
        assert stages[stage]["seconds"] > 0 and stages[stage]["peak_mib"] > 100, stage
    for page in ("index.html", "labels-round-1.html", "photos.html", "labels.png"):
        assert (deployed / "report" / page).stat().st_size > 1000
    labelled = stages["pseudo-label"]["report"]["tallies"]["samples"]
    assert labelled["seen"] == labelled["kept"] + sum(labelled["dropped"].values())


def test_the_dashboard_has_progress_tables_and_the_comparison(deployed, server):
    import httpx

    _, api, _ = server
    found = httpx.post(f"{api}/artifacts/filter", json={"limit": 200}, timeout=30).json()
    by_key = {a["key"]: a for a in found}
    assert by_key["progress-pseudo-label-round-1"]["data"] == 100.0
    assert {"kept-parse-phrases", "kept-filter-boxes-round-1", "kept-build-shards-round-1"} <= set(by_key)
    rows = json.loads(by_key["comparison"]["data"])
    summary = json.loads((deployed / "summary.json").read_text())
    student = next(r for r in rows if r["name"] == "student")
    assert student["novel_recall_at_1"] == summary["student"]["novel_recall_at_1"]
    assert "peak MiB" in by_key["report"]["data"]
    runs = httpx.post(f"{api}/flow_runs/filter", json={"limit": 100}, timeout=30).json()
    assert {"train-teacher", "pseudo-label-round-1", "build-shards-round-1"} <= {r["name"] for r in runs}


def children_of(run: Path) -> list[str]:
    """Command lines of living processes that work on the run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(run) in words:
            found.append(words)
    return found


def kill_in_the_middle(run: Path, folder: Path, env: dict[str, str], log: Path) -> dict[Path, int]:
    """Start the loop and SIGKILL it as soon as ``folder`` has a finished shard; returns what was finished, by mtime."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            run_command(run), env=env, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            wait_until(lambda: len(list(folder.glob("*.report.json"))) >= 2, 420, f"shards in {folder}", process)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # with its temporary server; the stages are sessions of their own
            process.wait()
    wait_until(lambda: not children_of(run), 20, "orphans to end")
    return {p: p.stat().st_mtime_ns for p in folder.glob("*.report.json")}


def test_killed_twice_it_leaves_the_same_bytes(deployed, tmp_path):
    run, log = tmp_path / "run", tmp_path / "run.log"
    env = environment(tmp_path / "prefect")
    total = len(list((deployed / "data" / "crawl").glob("*.tar")))
    labelled = kill_in_the_middle(run, run / "regions" / "round-1", env, log)
    assert 2 <= len(labelled) < total
    built = kill_in_the_middle(run, run / "pseudo" / "round-1", env, log)
    assert 2 <= len(built) < total
    began = time.time_ns()
    with open(log, "ab") as output:
        done = subprocess.run(run_command(run), env=env, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    said = log.read_text()
    assert done.returncode == 0, said[-3000:]
    for path, time_ns in {**labelled, **built}.items():
        assert path.stat().st_mtime_ns == time_ns < began, f"{path.name} was made again"
    assert outputs(run) == outputs(deployed)
    assert "NOVEL R@1" in said and "chance" in said
