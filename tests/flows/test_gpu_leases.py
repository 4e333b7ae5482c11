"""Runs that share a machine share its GPUs: with a real server, and processes that say which they were given."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness

from flows.gpu_leases import gpus_here, limit_name, taken
from flows.job_builder import job_builder
from flows.jobs import run_jobs
from flows.subprocess_jobs import VISIBLE, ChildJob
from pipeline.config.recipes import load_recipe
from pipeline.errors import InputError
from pipeline.stages.jobs import PseudoLabel, TrainModel
from pipeline.system.host_lock import LOCKS, host_lock
from tests.flows.tiny import ROOT, wait_until

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(autouse=True, scope="module")
def locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder of locks of our own: others may test on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOCKS, str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture(scope="module")
def server():
    with prefect_test_harness(server_startup_timeout=180):
        yield


def test_ids_are_those_that_the_environment_names(monkeypatch):
    monkeypatch.setenv(VISIBLE, "3, GPU-8f2a,")
    assert gpus_here() == ["3", "GPU-8f2a"]
    for none in ("", "-1"):
        monkeypatch.setenv(VISIBLE, none)
        assert gpus_here() == []


def test_ids_are_uuids_where_the_driver_tells_them(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n[ $2 = --format=csv,noheader ] && printf '0, GPU-8f2a-one\\n1, GPU-90cc-two\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for visible, ids in (
        ("1,0", ["GPU-90cc-two", "GPU-8f2a-one"]),
        ("GPU-90,0,0", ["GPU-90cc-two", "GPU-8f2a-one"]),  # CUDA takes the beginning of a UUID
        ("GPU-, 7, MIG-3", ["GPU-", "7", "MIG-3"]),  # which one it is cannot be told
    ):
        monkeypatch.setenv(VISIBLE, visible)
        assert gpus_here() == ids
    monkeypatch.delenv(VISIBLE)
    assert gpus_here() == ["GPU-8f2a-one", "GPU-90cc-two"]
    tool.write_text("#!/bin/sh\necho 'Failed to initialize NVML'; exit 9\n")
    assert gpus_here() == []


@pytest.mark.slow
def test_a_job_holds_its_gpus_and_others_get_what_is_left(server, monkeypatch):
    monkeypatch.setenv(VISIBLE, "0,1,2")
    with taken(2) as mine:
        with taken(1) as theirs:
            assert sorted(mine + theirs) == ["0", "1", "2"]
    with taken(3) as every:
        assert sorted(every) == ["0", "1", "2"]
    with pytest.raises(InputError, match=r"wants 4 GPUs, and there are 3 on .* \(CUDA_VISIBLE_DEVICES=0,1,2\)"):
        with taken(4):
            pass


@pytest.mark.slow
def test_an_error_of_the_job_is_not_taken_for_a_gpu_that_is_not_free(server, monkeypatch):
    monkeypatch.setenv(VISIBLE, "0")
    for _ in range(2):  # and the GPU is free again
        with pytest.raises(TimeoutError, match="the job's own"), taken(1):
            raise TimeoutError("the job's own")


CHILD = """
import os, sys, time
began = time.time()
time.sleep(1.5)
print(os.environ["CUDA_VISIBLE_DEVICES"], began, time.time(), file=open(sys.argv[1], "w"))
"""
RUN = """
import sys
from pathlib import Path
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from flows.subprocess_jobs import ChildJob
from flows.jobs import run_job

folder, code = sys.argv[1:]

@flow(task_runner=ThreadPoolTaskRunner(max_workers=3))
def stage():
    commands = [(sys.executable, "-c", code, f"{folder}/{i}.said") for i in range(3)]
    jobs = [ChildJob(name=f"job-{i}", stage="s", command=c, logs=Path(folder), gpus=1) for i, c in enumerate(commands)]
    for future in [run_job.submit(job) for job in jobs]:
        future.result()

stage()
"""


@pytest.mark.slow
def test_two_runs_of_three_jobs_each_never_share_a_gpu(server, tmp_path):
    api = str(get_current_settings().api.url)
    env = os.environ | {VISIBLE: "0,1", "PREFECT_API_URL": api, "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"}
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", RUN, str(tmp_path / name), CHILD]
        runs.append(subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    for run in runs:
        said, _ = run.communicate(timeout=300)
        assert run.returncode == 0, said.decode()[-3000:]
    held: dict[str, list[tuple[float, float]]] = {}
    for path in tmp_path.glob("*/*.said"):
        gpu, began, ended = path.read_text().split()
        held.setdefault(gpu, []).append((float(began), float(ended)))
    assert sum(map(len, held.values())) == 6 and set(held) == {"0", "1"}
    for spans in held.values():
        spans.sort()
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans)), held


@pytest.mark.slow
def test_a_limit_that_somebody_raised_lets_jobs_share(server, monkeypatch):
    monkeypatch.setenv(VISIBLE, "shared")
    with taken(1):
        pass
    with get_client(sync_client=True) as client:
        client.update_global_concurrency_limit(limit_name("shared"), GlobalConcurrencyLimitUpdate(limit=2))
    with taken(1) as mine, taken(1) as theirs:
        assert mine == theirs == ["shared"]


@pytest.mark.slow
def test_a_job_whose_lease_is_lost_keeps_its_gpu(server, monkeypatch):
    """As after an outage: the server has given the slot back, and nobody renews it."""
    monkeypatch.setenv(VISIBLE, "lost")
    name = limit_name("lost")
    said: list[str] = []

    def patience(words: str) -> None:
        said.append(words)
        if len(said) == 2:
            raise TimeoutError("not free")

    with get_client(sync_client=True) as client:
        with taken(1):
            client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(active_slots=0))
            with pytest.raises(TimeoutError, match="not free"), taken(1, patience):
                pass
            assert client.read_global_concurrency_limit_by_name(name).active_slots == 0  # it was the machine's lock
        with taken(1, patience) as mine:
            assert mine == ["lost"]
            assert client.read_global_concurrency_limit_by_name(name).active_slots == 1
    assert said == ["waiting for 1 of the GPUs lost"] * 2


@pytest.mark.slow
def test_a_killed_flow_does_not_hold_the_machines_lock(server, monkeypatch):
    monkeypatch.setenv(VISIBLE, "killed")
    code = (
        "import time\nfrom flows.gpu_leases import taken\nwith taken(1): print('has it', flush=True); time.sleep(600)"
    )
    env = os.environ | {"PREFECT_API_URL": str(get_current_settings().api.url)}
    with subprocess.Popen([sys.executable, "-c", code], env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True) as flow:
        assert flow.stdout is not None and flow.stdout.readline() == "has it\n"
        with host_lock(f"{limit_name('killed')}-0") as free:
            assert not free
        flow.kill()
        flow.wait()
    with host_lock(f"{limit_name('killed')}-0") as free:
        assert free


@pytest.mark.slow
def test_a_job_that_waits_for_a_gpu_says_so_on_its_page(server, monkeypatch, tmp_path):
    monkeypatch.setenv(VISIBLE, "busy")
    job = ChildJob(name="job-0", stage="s", command=(sys.executable, "-c", ""), logs=tmp_path, gpus=1)
    words = "waiting for 1 of the GPUs busy"
    asked, free = threading.Event(), threading.Event()

    def hold() -> None:
        with taken(1):
            asked.set()
            free.wait(120)

    def shown() -> bool:
        with get_client(sync_client=True) as client:
            found = client.read_artifacts(limit=50)
        return any(a.key == "progress-waits" and a.description == f"job-0: {words}" for a in found)

    @flow
    def stage() -> None:
        run_jobs("waits", [job])

    def watch() -> None:
        try:
            wait_until(shown, 60, "the words in the progress")
        finally:
            free.set()

    with ThreadPoolExecutor(2) as threads:
        holding = threads.submit(hold)
        assert asked.wait(180)
        watching = threads.submit(watch)
        stage()
        holding.result()
        watching.result()
    assert job.note() is None  # it ran, and said nothing of its own


def jobs_of(tmp_path: Path, *changes: str) -> tuple[ChildJob, ChildJob]:
    """A run's labelling of two chunks, and its training."""
    maker = job_builder(
        str(tmp_path), load_recipe("demo", ["resources.device=cuda", "resources.chunk_shards=1", *changes])
    )
    labelling = maker.chunked("label", PseudoLabel(shards=["0.tar", "1.tar"], teacher="t", out=tmp_path))
    training = maker.training("t", "train-teacher", maker.config.teacher, {"a": ["0.tar"]}, tmp_path / "t", init=None)
    return labelling[0], training


def test_jobs_share_a_machines_gpus_out(tmp_path, monkeypatch):
    monkeypatch.setenv(VISIBLE, "0,1,2,3")
    label, train = jobs_of(tmp_path, "resources.parallel=2")
    assert isinstance(label.job, PseudoLabel) and isinstance(train.job, TrainModel)
    assert label.gpus == 2 and label.job.device == "cuda" and train.job.device == "cuda"
    command = train.arguments()
    assert train.gpus == 4 and "--multi_gpu" in command
    assert command[command.index("--num_processes") + 1] == "4"
    label, train = jobs_of(tmp_path, "resources.parallel=4", "resources.gpus=1", "resources.fsdp=true")
    assert label.gpus == train.gpus == 1 and "accelerate.commands.launch" not in train.arguments()
    label, train = jobs_of(tmp_path, "resources.gpus=4", "resources.fsdp=true")
    assert "--use_fsdp" in train.arguments() and "--multi_gpu" not in train.arguments()
    monkeypatch.setenv(VISIBLE, "")
    label, train = jobs_of(tmp_path)
    assert label.gpus == train.gpus == 0  # the command itself says that there is none
    label, train = jobs_of(tmp_path, "resources.device=cpu")
    assert label.gpus == 0 and isinstance(train.job, TrainModel) and train.job.device == "cpu"


@pytest.mark.slow
def test_the_launcher_starts_as_many_processes_as_asked_and_the_users_own_configuration_has_no_say(tmp_path):
    """It would give a training another GPU than the one whose lock it holds."""
    own = tmp_path / "hf" / "accelerate" / "default_config.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\n"
        "fsdp_config: {fsdp_version: 1, fsdp_offload_params: true}\n"
        "mixed_precision: bf16\nnum_machines: 1\nnum_processes: 8\ngpu_ids: '0'\nuse_cpu: false\ndebug: false\n"
    )
    code = (
        "import json, os\n"
        "open(os.environ['SAID'] + os.environ.get('RANK', '0'), 'w').write(json.dumps(dict(os.environ)))"
    )
    (tmp_path / "says.py").write_text(code)
    for name, options in {
        "two": {"processes": 2},
        "fsdp": {"processes": 2, "fsdp": True},
    }.items():
        env = os.environ | {"SAID": str(tmp_path / f"{name}-"), "PYTHONPATH": str(tmp_path), VISIBLE: "GPU-aaaa"}
        env |= {"HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
        child = ChildJob(name=name, stage="train", logs=tmp_path, **options)
        command = child.arguments()
        at = command.index("pipeline")  # the launched module and its arguments
        done = subprocess.run([*command[:at], "says"], env=env, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        said = [json.loads(p.read_text()) for p in sorted(tmp_path.glob(f"{name}-*"))]
        assert len(said) == options["processes"]
        assert [(seen["RANK"], seen["WORLD_SIZE"]) for seen in said] == [("0", "2"), ("1", "2")]
        for seen in said:
            assert seen[VISIBLE] == "GPU-aaaa" and seen["ACCELERATE_MIXED_PRECISION"] == "no"
            assert seen.get("ACCELERATE_USE_FSDP", "false") == str(name == "fsdp").lower()
            assert seen.get("FSDP_VERSION", "2") == "2" and seen.get("FSDP_OFFLOAD_PARAMS", "false") == "false"
