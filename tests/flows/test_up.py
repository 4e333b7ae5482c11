"""``self-train up``: two runs at a time, and nothing left behind however it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from flows.deployments import POOL
from flows.local_server import UP
from pipeline.config import SelfTrainConfig
from pipeline.config.recipes import load_recipe
from tests.flows.api import answer, ask
from tests.flows.tiny import CHANGES, ROOT, wait_until
from tests.flows.up import Up, children_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
KEPT = ("server start", "worker start", "flows.cli view", "tensorboard")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up")


@pytest.fixture(scope="module")
def two(home) -> Iterator[Up]:
    """A worker that carries out two runs at a time."""
    up = Up(home, "--limit", "2")
    try:
        up.wait()
        yield up
    finally:
        up.stop()


ROOT_RUNS = {"flow_runs": {"parent_task_run_id": {"is_null_": True}}}


def endless() -> SelfTrainConfig:
    return load_recipe("demo", [*CHANGES, "teacher.steps=1000000"])


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def children_with_parent(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def test_two_runs_go_on_at_a_time_but_one_in_a_folder_and_cancelling_ends_one(two):
    out = two.runs / "a"
    first = two.start(out, endless())
    wait_until(lambda: children_of(out, "logs/train-"), 420, "the first run's training", two.process)
    second = two.start(out, endless())
    log = two.logs / "worker.log"
    wait_until(
        lambda: "another run works there (process " in log.read_text(), 120, "the second run's words", two.process
    )
    assert two.state(first)[0] == two.state(second)[0] == "RUNNING"
    trainings = set(children_of(out, "logs/train-"))
    two.prefect("flow-run", "cancel", first)
    wait_until(lambda: not any(map(alive, trainings)), 60, "the cancelled run's children to end", two.process)
    # by the run itself, not with it when Prefect's patience has ended
    wait_until(
        lambda: "train-teacher: ended, as the run was interrupted" in log.read_text(),
        30,
        "the run's words",
        two.process,
    )
    wait_until(lambda: two.state(first)[0] == "CANCELLED", 60, "the state", two.process)
    wait_until(
        lambda: set(children_of(out, "logs/train-")) - trainings, 120, "the second run in its place", two.process
    )


def test_a_run_whose_worker_was_killed_can_be_cancelled(two):
    out = two.runs / "a"
    (run,) = [r["id"] for r in ask("POST", f"{two.api}/flow_runs/filter", ROOT_RUNS) if r["state_type"] == "RUNNING"]
    trainings = children_of(out, "logs/train-")
    two.kill("worker start")
    assert trainings and all(map(alive, trainings)), "a run goes on without its worker"
    two.prefect("flow-run", "cancel", run)
    wait_until(lambda: not any(map(alive, trainings)), 120, "the end of the cancelled run", two.process)
    wait_until(lambda: two.state(run)[0] == "CANCELLED", 60, "its state", two.process)
    two.start(out, endless())  # for the next test
    wait_until(lambda: children_of(out, "logs/train-"), 180, "the next run's training", two.process)


ORPHAN = """
import threading
from flows import orphan_watch as orphans
orphans.LOOK_SECONDS = 0.1
orphans.flow_run.id  # Prefect's, from the environment as in a run
orphans.end_unwanted()
print("begun", flush=True)
threading.Event().wait()
"""


def test_a_run_ends_with_the_up_that_started_it():
    """Its worker, killed before, does not see to it."""
    with subprocess.Popen(["sleep", "600"]) as up:
        env = os.environ | {
            "PREFECT__FLOW_RUN_ID": str(uuid4()),
            UP: str(up.pid),
            "PREFECT_API_URL": "http://127.0.0.1:9/api",
        }
        with subprocess.Popen([sys.executable, "-c", ORPHAN], cwd=ROOT, env=env, stdout=subprocess.PIPE) as run:
            try:
                assert run.stdout and run.stdout.readline() == b"begun\n"
                with pytest.raises(subprocess.TimeoutExpired):
                    run.wait(3)
                up.kill()
                assert run.wait(60) == -signal.SIGTERM
            finally:
                up.kill()
                run.kill()


def test_a_killed_up_leaves_nothing_and_another_that_used_its_server_goes_on(home, two):
    """With a run under way: the one that took the folder over."""
    deployment = f"{two.api}/deployments/name/self-train/local"
    found = ask("GET", deployment)["id"]
    two.prefect("work-pool", "create", "local", "--type", "process")
    answer("PATCH", f"{two.api}/deployments/{found}", {"concurrency_limit": 1, "work_pool_name": "local"})
    assert ask("GET", deployment)["global_concurrency_limit"]["limit"] == 1  # as earlier versions deployed it
    other = Up(home, port=two.port)
    try:
        other.wait()
        assert ask("GET", deployment)["global_concurrency_limit"] is None
        assert ask("GET", deployment)["work_pool_name"] == POOL
        for port, name in ((two.port + 1, "pages"), (two.port + 2, "tensorboard")):
            assert f"port {port} is in use, so there will be no {name}" in other.said()
            assert f"\n{name}:" not in other.said()
        pids = {words: two.child(words) for words in KEPT}
        assert all(pids.values()), pids
        worker = pids["worker start"]
        assert worker
        work = [*children_of(two.runs / "a", "logs/train-"), *children_with_parent(worker)]  # and the run itself
        assert len(work) >= 2
        two.process.kill()
        two.process.wait()
        for words, pid in pids.items():
            wait_until(lambda pid=pid: not alive(pid), 60, f"the end of {words}")
        wait_until(lambda: not any(map(alive, work)), 60, "the end of the run")
        wait_until(lambda: "the server is gone and is started again" in other.said(), 30, "the words", other.process)
        assert ask("GET", f"{other.api}/work_pools/{POOL}")["name"] == POOL  # once the new server answers
        wait_until(
            lambda: other.child("worker start"), 120, "a worker, which ends when its server is gone", other.process
        )
        pids = {words: other.child(words) for words in KEPT}
        assert pids["server start"] and pids["worker start"] and not pids["flows.cli view"], pids
        other.process.send_signal(signal.SIGHUP)  # as when the terminal is closed
        assert other.process.wait(180) == 128 + signal.SIGHUP, other.said()
    finally:
        other.stop()
    assert not any(alive(pid) for pid in pids.values() if pid)
    assert "Traceback" not in other.said()


CRON = {"schedule": {"cron": "0 3 * * 0", "timezone": "UTC"}, "active": True, "slug": "sundays"}


def test_what_somebody_set_survives_a_restart(tmp_path):
    up, set_ = Up(tmp_path), {"parameters": {"rounds": 2}, "job_variables": {"env": {"A": "1"}}, "tags": ["mine"]}
    try:
        up.wait()
        api, name = up.api, "deployments/name/self-train/local"
        found = ask("GET", f"{api}/{name}")["id"]
        answer("PATCH", f"{api}/deployments/{found}", set_ | {"concurrency_limit": 3, "entrypoint": "old.py:old"})
        ask("POST", f"{api}/deployments/{found}/schedules", [CRON])
        pool = ask("GET", f"{api}/work_pools/{POOL}")
        template = pool["base_job_template"]
        template["variables"]["properties"]["env"]["default"] = {"B": "2"}
        answer("PATCH", f"{api}/work_pools/{POOL}", {"base_job_template": template, "concurrency_limit": 5})
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(180) == 143 and "interrupted; the same command starts it again" in up.said()
    finally:
        up.stop()
    again = Up(tmp_path, port=up.port)
    try:
        again.wait()
        kept = ask("GET", f"{api}/{name}")
        assert kept["id"] == found and {key: kept[key] for key in set_} == set_
        assert kept["global_concurrency_limit"]["limit"] == 3 and kept["entrypoint"] == "flows/self_train.py:self_train"
        assert [s["slug"] for s in kept["schedules"]] == ["sundays"] and "config" in str(
            kept["parameter_openapi_schema"]
        )
        pool = ask("GET", f"{api}/work_pools/{POOL}")
        assert pool["base_job_template"] == template and pool["concurrency_limit"] == 5
        assert len(ask("POST", f"{api}/automations/filter", {})) == 1
        assert len(ask("POST", f"{api}/deployments/filter", {})) == 11
    finally:
        again.stop()


def test_a_port_that_something_else_has_is_named(home):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        up = Up(home, port=other.getsockname()[1])
        assert up.process.wait(180) == 2
        assert f"port {up.port} is in use, and no Prefect server answers there" in up.said()
