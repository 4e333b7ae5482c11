"""Parsing and labelling on a real Ray cluster of two machines (here: two raylets), one of which is killed."""

from __future__ import annotations

import json
import os
import pickle
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.job_builder import job_builder
from flows.task_runners import task_runner
from pipeline.config.recipes import load_recipe
from pipeline.io.hashing import digest_file
from pipeline.io.tars import write_tar
from pipeline.runs.layout import RunLayout
from pipeline.stages.jobs import ParsePhrases, PseudoLabel
from tests.fixtures.crawl import jpeg
from tests.fixtures.faults import dying_at
from tests.fixtures.servers import BIN, ROOT, PrefectServer, environment, free_port, prefect_server, started, wait_for

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = pytest.mark.timeout(1200)

SHARDS, IMAGES = 10, 24
FLOW = """
import sys
from flows import stages
from flows.task_runners import task_runner
from pipeline.config.recipes import load_recipe
out, cluster, names, *changes = sys.argv[1:]
config = load_recipe("demo", [*changes, f"resources.cluster={cluster}"])
for stage in (getattr(stages, name) for name in names.split(",")):
    print(stage.with_options(task_runner=task_runner(config.resources, stage.name))(out, config).model_dump_json())
"""


@pytest.fixture(scope="module")
def crawl(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("crawl")
    rng = np.random.default_rng(0)
    for shard in range(SHARDS):
        samples = []
        for i in range(IMAGES):
            caption = f"a red car next to a small green tree and a dog number {rng.integers(100)}"
            samples.append((f"{shard:05d}{i:04d}", {"jpg": jpeg(100 * shard + i), "txt": caption.encode()}))
        write_tar(folder / f"{shard:05d}.tar", iter(samples))
    return folder


@pytest.fixture(scope="module")
def changes(crawl) -> list[str]:
    return [
        "demo=null", f"data.crawl={json.dumps([str(crawl)])}", "pseudo_label.floor=0.0001", "pseudo_label.batch_size=2",
        "resources.chunk_shards=1", "resources.threads=1", "resources.parallel=2",
    ]  # fmt: skip


def run_folder(path: Path, teacher: Path) -> RunLayout:
    layout = RunLayout(path)
    shutil.copytree(teacher, layout.teacher / "final")
    return layout


def outputs(layout: RunLayout) -> dict[str, str]:
    files = [*layout.phrases.iterdir(), *layout.regions(1).iterdir()]
    return {str(f.relative_to(layout.root)): digest_file(f) for f in sorted(files)}


@pytest.fixture(scope="module")
def quiet(crawl, changes, teacher, tmp_path_factory) -> dict[str, str]:
    """What the stages write without Ray, without Prefect, undisturbed."""
    layout = run_folder(tmp_path_factory.mktemp("quiet") / "run", teacher)
    config = load_recipe("demo", changes)
    shards = sorted(str(p) for p in crawl.glob("*.tar"))
    ParsePhrases(settings=config.parse_phrases, shards=shards, out=layout.phrases).run()
    PseudoLabel(
        settings=config.pseudo_label,
        shards=shards,
        out=layout.regions(1),
        phrases=layout.phrases,
        teacher=layout.teacher / "final",
        decoders=1,
    ).run()
    return outputs(layout)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL for all of a machine at once: its raylet, its agents, its workers."""
    everything = [process.pid, *(p.pid for p in psutil.Process(process.pid).children(recursive=True))]
    for pid in everything:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def cluster(stack: ExitStack, tmp_path: Path, machines: int) -> tuple[int, dict[str, str], list[subprocess.Popen]]:
    """A head without cores and machines of one core: the port, what a flow must have in its
    environment, and the machines."""
    port, log = free_port(), tmp_path / "ray.log"
    # Ray's processes listen on all addresses: only who knows the token may ask anything of them
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    env = environment(tmp_path / "home", OMP_NUM_THREADS="1", **settings)
    node = [str(BIN / "ray"), "start", "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    # free ports for workers: by default, both machines count up from the same one, and a worker that loses never starts
    node += ["--min-worker-port=0", "--max-worker-port=0"]
    head = [*node, "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
    head += [f"--ray-client-server-port={free_port()}"]
    worker = [*node, f"--address=127.0.0.1:{port}", "--num-cpus=1"]
    leader = stack.enter_context(started(head, log, env=env))
    wait_for(lambda: "Ray runtime started" in log.read_text(), 120, "the head of the cluster", leader)
    started_ones = []
    for i in range(machines):  # one after the other, with ports of their own: they share this machine
        command = [*worker, f"--dashboard-agent-listen-port={free_port()}"]
        started_ones.append(stack.enter_context(started(command, log, env=env)))
        wait_for(lambda i=i: log.read_text().count("Ray runtime started") == 2 + i, 120, "a machine", started_ones[i])
    return port, settings, started_ones


def begun(stack: ExitStack, tmp_path: Path, command: list[str], env: dict[str, str]) -> subprocess.Popen:
    """A flow, which ends with the stack; what it says is in flow.log."""
    output = stack.enter_context((tmp_path / "flow.log").open("wb"))
    flow = subprocess.Popen(command, env=env, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    stack.callback(lambda: flow.poll() is None and os.killpg(flow.pid, signal.SIGKILL))
    return flow


def done(layout: RunLayout) -> int:
    return len(list(layout.regions(1).glob("*.report.json"))) if layout.regions(1).exists() else 0


@dataclass
class Team:
    """A server, and a cluster of two machines: how a flow reaches them, and the machines themselves."""

    address: str
    env: dict[str, str]
    machines: list[subprocess.Popen]
    log: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[PrefectServer]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as started_one:
        yield started_one


@pytest.fixture(scope="module")
def team(server, tmp_path_factory) -> Iterator[Team]:
    """What the first test here leaves of it, one machine, does for the second."""
    folder = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        port, settings, machines = cluster(stack, folder, 2)
        yield Team(f"127.0.0.1:{port}", server.env | settings, machines, folder / "ray.log")


@pytest.mark.slow
def test_a_machine_dies_and_the_bytes_are_the_same(team, changes, quiet, teacher, tmp_path):
    layout = run_folder(tmp_path / "run", teacher)
    with ExitStack() as stack:
        both = "parse_phrases,pseudo_label"
        command = [sys.executable, "-c", FLOW, str(layout.root), team.address, both, *changes]
        flow = begun(stack, tmp_path, command, team.env)
        try:
            wait_for(lambda: done(layout) >= 2, 300, "labelled shards", flow)
            kill(team.machines[0])
            assert done(layout) < SHARDS, "the machine died too late to matter"
            assert flow.wait(300) == 0
        except (AssertionError, subprocess.TimeoutExpired) as error:
            said = (tmp_path / "flow.log").read_text()[-4000:] + team.log.read_text()[-1000:]
            for log in sorted(Path("/tmp/ray/session_latest/logs").glob("raylet*.*")):  # why no worker started
                said += f"\n{log.name}: {log.read_text(errors='replace')[-2000:]}"
            raise AssertionError(f"{error}\n{said}") from None
    assert outputs(layout) == quiet
    machines_of = [line for p in layout.logs.glob("pseudo-label*.log") for line in p.read_text().splitlines()]
    processes = {line.split()[-1] for line in machines_of if line.startswith("on ")}
    chunks = sum(line.startswith("$ ") for line in machines_of)
    assert 2 <= len(processes) <= chunks // 2, "a process does many chunks"


@pytest.mark.slow
def test_what_a_killed_flow_left_on_the_cluster_ends_by_itself(team, crawl, changes, teacher, tmp_path):
    """It would go on by the settings of before, and write over what the run's next start makes by others."""
    layout = run_folder(tmp_path / "run", teacher)
    config = load_recipe("demo", changes)
    ParsePhrases(
        settings=config.parse_phrases, shards=sorted(str(p) for p in crawl.glob("*.tar")), out=layout.phrases
    ).run()
    with ExitStack() as stack:
        command = [sys.executable, "-c", FLOW, str(layout.root), team.address, "pseudo_label", *changes]
        flow = begun(stack, tmp_path, command, team.env)
        wait_for(lambda: done(layout) >= 1, 300, "a labelled shard", flow)
        os.killpg(flow.pid, signal.SIGKILL)
        logs = [line for p in layout.logs.glob("pseudo-label*.log") for line in p.read_text().splitlines()]
        keepers = {int(line.split()[-1]) for line in logs if line.startswith("on ")}
        living = [machine for machine in team.machines if machine.poll() is None]
        assert 1 <= len(keepers) <= len(living) and any(map(psutil.pid_exists, keepers))
        wait_for(lambda: not any(map(psutil.pid_exists, keepers)), 60, "the end of the processes that label")


GPUS = """
import json, pickle, sys
import ray
from flows import ray_runner as on_ray
from pipeline.errors import InputError
jobs = pickle.load(open(sys.argv[1], "rb"))
ray.init("local", num_cpus=2, num_gpus=2, **on_ray.LOCAL)  # Ray does not look whether there are any
anchor = on_ray.anchored()
# the process that asks is another each time
ask = ray.remote(num_gpus=1, num_cpus=0, max_calls=1)(on_ray.run_persistent)
done = sum(report["done"] for report in ray.get([ask.remote(job) for job in jobs]))
work = jobs[0].job.model_copy(update={"teacher": jobs[0].job.teacher.replace("/teacher/", "/nobody/")})
broken = jobs[0].model_copy(update={"job": work})
try:
    ray.get(ask.remote(broken))
except InputError as error:
    print(json.dumps([done, len(ray.util.list_named_actors(all_namespaces=True)) - 1, str(error)]))
on_ray.dismiss_keepers()
"""


@pytest.mark.slow
def test_a_gpu_has_one_process_that_keeps_the_teacher(crawl, changes, quiet, teacher, tmp_path):
    layout = run_folder(tmp_path / "run", teacher)
    config = load_recipe("demo", [*changes, "resources.cluster=local"])
    shards = sorted(str(p) for p in crawl.glob("*.tar"))
    ParsePhrases(settings=config.parse_phrases, shards=shards, out=layout.phrases).run()
    maker = job_builder(str(layout.root), config)
    job = PseudoLabel(
        shards=shards, phrases=layout.phrases, teacher=layout.teacher / "final", out=layout.regions(1),
        settings=config.pseudo_label,
    )  # fmt: skip
    jobs = maker.chunked("label", job, persistent=True)
    assert all(job.persistent_worker for job in jobs)
    (tmp_path / "jobs").write_bytes(pickle.dumps(jobs))
    env = environment(tmp_path / "home", RAY_USAGE_STATS_ENABLED="0", OMP_NUM_THREADS="1")
    command = [sys.executable, "-c", GPUS, str(tmp_path / "jobs")]
    ended = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    done, keepers, error = json.loads(ended.stdout.splitlines()[-1])
    assert done == SHARDS and keepers == 2 and "nobody" in error
    logs = [(layout.logs / f"{job.name}.log").read_text() for job in jobs]
    processes = {line.split()[-1] for text in logs for line in text.splitlines() if line.startswith("on ")}
    assert len(processes) == 2
    assert outputs(layout) == quiet


KEEPER = """
import sys
from pathlib import Path
from flows import ray_runner
from flows.subprocess_jobs import ChildJob
from pipeline.stages.jobs import ParsePhrases
def run_file(*arguments):
    raise ArithmeticError("unheard-of")
ray_runner.run_file = run_file
job = ParsePhrases(shards="0.tar", out="out")
ray_runner.Keeper("anchor").run(ChildJob(name="job", stage="parse-phrases", job=job, logs=Path(sys.argv[1])))
print("still there")
"""


@pytest.mark.slow
def test_a_process_ends_with_what_it_did_not_expect(tmp_path):
    """A GPU that broke down would fail every other job that the process is given, at once."""
    ended = subprocess.run([sys.executable, "-c", KEEPER, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1 and "still there" not in ended.stdout
    log = (tmp_path / "job.log").read_text()
    assert "Traceback" in log and "unheard-of" in log


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tasks_of_labelling_hold_gpus_and_those_of_parsing_cores_alone(device, monkeypatch, tmp_path):
    from prefect_ray.context import RemoteOptionsContext

    from flows import ray_runner

    config = load_recipe("demo", ["resources.cluster=127.0.0.1:1", f"resources.device={device}", "resources.threads=3"])
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        runners = [task_runner(config.resources, stage) for stage in ("parse-phrases", "pseudo-label")]
    assert [runner.address for runner in runners] == ["127.0.0.1:1"] * 2
    monkeypatch.setattr(ray_runner.ray, "is_initialized", lambda: True)
    for name in ("anchored", "dismiss_keepers"):
        monkeypatch.setattr(ray_runner, name, lambda: None)
    held = []
    for job in (ParsePhrases(shards="0.tar", out="out"), PseudoLabel(shards="0.tar", teacher="t", out="out")):
        (child,) = job_builder(str(tmp_path), config).chunked("name", job, persistent=True)
        with ray_runner.cluster_tasks(child):
            options = RemoteOptionsContext.get().current_remote_options
        held.append((options["num_cpus"], options["num_gpus"]))
    assert held == [(3, 0.0), (3, float(device == "cuda"))]
    assert not RemoteOptionsContext.get().current_remote_options


@pytest.mark.slow
def test_a_shard_at_which_processes_of_the_cluster_die_is_set_aside_alone(server, crawl, changes, tmp_path):
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    settings["PYTHONPATH"] = dying_at("/00001.tar", tmp_path / "faults")
    more = ["resources.chunk_shards=4", "resources.max_failed=1"]
    command = [sys.executable, "-c", FLOW, str(tmp_path / "run"), "local", "parse_phrases", *changes, *more]
    ended = subprocess.run(command, env=server.env | settings, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-4000:]
    report = json.loads(ended.stdout.splitlines()[-1])
    (lost,) = report["failed"]
    assert lost["shard"] == "00001" and "died 2 times" in lost["error"]
    made = {p.stem for p in (tmp_path / "run" / "phrases").glob("*.parquet")}
    assert made == {f"{n:05d}" for n in range(SHARDS)} - {"00001"}


FULL = """
import errno, os, sys, time
def fault(event, about):
    if event == "open" and "default_worker" in " ".join(sys.orig_argv):
        if str(about[0]).endswith("/00001.tar"):
            time.sleep(5)  # until the other task works too
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(about[0]))
        if str(about[0]).endswith(".tar"):
            time.sleep(600)
sys.addaudithook(fault)
"""


@pytest.mark.slow
def test_a_failure_that_concerns_all_ends_what_is_under_way_on_the_cluster(server, crawl, changes, tmp_path):
    """The jobs beside it would fail alike; one that is under way took its time."""
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "sitecustomize.py").write_text(FULL)
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    settings["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "faults"), str(ROOT)])
    command = [sys.executable, "-c", FLOW, str(tmp_path / "run"), "local", "parse_phrases", *changes]
    ended = subprocess.run(command, env=server.env | settings, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 1 and "StageError" in ended.stderr and "No space left" in ended.stderr
    assert not list((tmp_path / "run").glob("phrases/*.parquet"))
