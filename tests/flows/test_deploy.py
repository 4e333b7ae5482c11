"""Templates for clusters: rendered and checked against schemas, and what can run on one machine is run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from flows.server_settings import SERVER_SETTINGS
from pipeline.config import ModelConfig, TrainConfig
from pipeline.config.recipes import load_recipe
from pipeline.data.records import GroundingRecord, Region
from tests.conftest import tiny_model
from tests.fixtures.crawl import jpeg
from tests.fixtures.servers import (
    PREFECT,
    ROOT,
    PrefectServer,
    environment,
    free_port,
    prefect_server,
    started,
    wait_for,
)
from tests.flows.api import ask
from tests.flows.tiny import SCENES

DEPLOY = ROOT / "flows" / "deploy"
SCRIPTS = sorted(DEPLOY.glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_bash(script):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "set -euo pipefail" in script.read_text()


def compose() -> dict:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_compose_file_is_consistent():
    services = compose()["services"]
    assert {"postgres", "redis", "server", "services", "deploy", "worker"} <= set(services)
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} listens beyond loopback: {port}"
    assert "ports" not in services["postgres"] and "ports" not in services["redis"]
    settings = services["server"]["environment"]
    leases = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage"}  # several servers share them
    assert {k: settings[k] for k in SERVER_SETTINGS} == SERVER_SETTINGS | leases


CONTAINERS = DEPLOY / "prefect-gpus.yaml"


def deployments(file: Path) -> dict:
    return yaml.safe_load(file.read_text())


def test_containers_are_offered_the_same_flows():
    def offered(file: Path) -> list[tuple[str, str]]:
        return [(d["entrypoint"], d["description"]) for d in deployments(file)["deployments"]]

    assert offered(CONTAINERS) == offered(ROOT / "flows" / "prefect.yaml")
    pools = {d["work_pool"]["name"] for d in deployments(CONTAINERS)["deployments"]}
    worker, deploy = compose()["services"]["worker"], compose()["services"]["deploy"]
    assert pools == {"gpus"} == {worker["command"][worker["command"].index("--pool") + 1]}
    assert str(CONTAINERS.relative_to(ROOT)) in deploy["command"][-1] and "worker" not in deploy.get("depends_on", {})
    assert "deploy" in worker["depends_on"]
    assert str(ROOT / "runs") == os.path.normpath(DEPLOY / worker["volumes"][0].partition(":-")[2].partition("}")[0])
    outs = {d["parameters"]["out"] for d in deployments(CONTAINERS)["deployments"]}
    assert {str(Path(out).parent) for out in outs} == {worker["volumes"][0].rpartition(":")[2]} == {"/runs"}


def test_the_image_has_what_its_deployments_look_for():
    lines = [line.strip() for line in (DEPLOY / "Dockerfile").read_text().splitlines()]
    (folder,) = (line.split()[1] for line in lines if line.startswith("WORKDIR "))
    (step,) = deployments(CONTAINERS)["pull"]
    assert step == {"prefect.deployments.steps.set_working_directory": {"directory": folder}}
    copied = {source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]}
    assert all((ROOT / source).exists() for source in copied)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored and {line[1:] for line in ignored if line.startswith("!")} == copied
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages | {"data_manifests", "pyproject.toml", "constraints.txt", project["project"]["readme"]} <= copied
    (extras,) = (line.partition("[")[2].partition("]")[0] for line in lines if "-e '.[" in line)
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[PrefectServer]:
    """A server with a pool of our Kubernetes template."""
    with prefect_server(tmp_path_factory.mktemp("home")) as started_one:
        file = str(DEPLOY / "kubernetes.json")
        started_one.prefect("work-pool", "create", "gpus", "--type", "kubernetes", "--base-job-template", file)
        yield started_one


@pytest.mark.slow
def test_flows_deployed_for_containers_run_there(server, tmp_path):
    server.prefect("deploy", "--all", "--prefect-file", str(CONTAINERS))
    found = ask("POST", f"{server.api}/deployments/filter", {})
    assert len(found) == len(deployments(CONTAINERS)["deployments"])
    for deployment in found:
        assert (deployment["name"], deployment["work_pool_name"]) == ("gpus", "gpus")
        assert deployment["pull_steps"] == deployments(CONTAINERS)["pull"]
        assert deployment["parameters"] == {"out": "/runs/demo"}

    # the same file for a worker that starts elsewhere; here the checkout takes the image's place
    text = (
        CONTAINERS.read_text().replace("/opt/glip-self-train", str(ROOT)).replace("{name: gpus}", "{name: processes}")
    )
    (tmp_path / "prefect.yaml").write_text(text)
    server.prefect("work-pool", "create", "processes", "--type", "process")
    server.prefect("deploy", "--all", "--prefect-file", str(tmp_path / "prefect.yaml"))
    config = load_recipe("demo", [f"demo={json.dumps(SCENES)}"]).model_dump(mode="json")
    parameters = json.dumps({"out": str(tmp_path / "run"), "config": config})
    said = server.prefect("deployment", "run", "make-demo-data/gpus", "--params", parameters)
    found = re.search(r"UUID: (\S+)", said)
    assert found
    worker = [PREFECT, "worker", "start", "--pool", "processes", "--type", "process", "--run-once"]
    (tmp_path / "elsewhere").mkdir()
    env = {k: v for k, v in server.env.items() if k != "PYTHONPATH"}
    with started(worker, tmp_path / "worker.log", env=env, cwd=tmp_path / "elsewhere") as process:

        def state() -> str:
            return ask("GET", f"{server.api}/flow_runs/{found[1]}")["state"]["type"]

        wait_for(lambda: state() in ("COMPLETED", "FAILED", "CRASHED"), 240, "the run's end")
        assert state() == "COMPLETED", (tmp_path / "worker.log").read_text()[-3000:]
        assert process.pid
    assert list((tmp_path / "run" / "data" / "crawl").glob("*.tar"))


def test_compose_file_names_settings_that_prefect_and_its_redis_know():
    from prefect.settings import Settings

    names = set(Settings().to_environment_variables(include_secrets=True))
    known = names | {
        "DO_NOT_TRACK",
        "PREFECT_REDIS_MESSAGING_URL",
        "PREFECT_MESSAGING_BROKER",
        "PREFECT_MESSAGING_CACHE",
    }
    for name in ("server", "worker", "deploy"):
        for setting in compose()["services"][name]["environment"]:
            assert setting in known or hasattr(__import__("prefect.settings").settings, setting), setting


def test_no_template_holds_a_secret():
    for path in DEPLOY.iterdir():
        for line in path.read_text().splitlines():
            if "PASSWORD" in line.upper() and not line.lstrip().startswith("#"):
                assert "${" in line or '"description"' in line, f"{path.name}: {line}"


def template() -> dict:
    return json.loads((DEPLOY / "kubernetes.json").read_text())


def test_the_pools_variables_are_all_used_and_have_valid_defaults():
    from jsonschema import Draft202012Validator
    from prefect.utilities.templating import find_placeholders

    variables = template()["variables"]
    Draft202012Validator.check_schema(variables)
    used = {p.name for p in find_placeholders(template()["job_configuration"])}
    assert used == set(variables["properties"])
    defaults = {n: p["default"] for n, p in variables["properties"].items() if "default" in p}
    Draft202012Validator(variables).validate(defaults)


def rendered() -> dict:
    """The job that a worker would create, by prefect-kubernetes' own code if that is installed,
    else by Prefect's templating."""
    from prefect.utilities.templating import apply_values

    variables = {n: p["default"] for n, p in template()["variables"]["properties"].items() if "default" in p}
    variables |= {"command": "prefect flow-run execute", "name": "run", "env": {}, "labels": {}}
    manifest = apply_values(template()["job_configuration"], variables, remove_notset=True)["job_manifest"]
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": k, "value": v} for k, v in container["env"].items()]  # as the worker does
    container["args"] = container["args"].split()
    return manifest


def test_the_kubernetes_job_is_one():
    manifest = rendered()
    pod = manifest["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "glip-secrets", "optional": True}}]
    mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    assert set(mounts) == {v["name"] for v in pod["volumes"]} and mounts["runs"] == "/runs"
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    validate.validate(manifest, "1.32", strict=True)
    for document in yaml.safe_load_all((DEPLOY / "kubernetes-setup.yaml").read_text()):
        validate.validate(document, "1.32", strict=True)


AS_THE_WORKER = """
import asyncio, json, sys
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration as Configuration
template = json.load(open(sys.argv[1]))
made = asyncio.run(Configuration.from_template_and_values(template, {"gpus": 4, "cpu_limit": "16"}))
print(json.dumps(made.job_manifest))
"""


@pytest.mark.slow
def test_pools_and_a_slurm_nodes_worker_on_a_real_server(server, tmp_path):
    pool = ask("GET", f"{server.api}/work_pools/gpus")
    assert pool["type"] == "kubernetes" and pool["base_job_template"] == template()
    if find_spec("prefect_kubernetes"):  # the worker's own code makes the job
        command = [sys.executable, "-c", AS_THE_WORKER, str(DEPLOY / "kubernetes.json")]
        done = subprocess.run(command, env=server.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        pod = json.loads(done.stdout.splitlines()[-1])["spec"]["template"]["spec"]
        limits = pod["containers"][0]["resources"]["limits"]
        assert limits["nvidia.com/gpu"] == 4 and limits["cpu"] == "16" and "memory" not in limits
    server.prefect("work-pool", "create", "glip-self-train", "--type", "process")

    def workers(status: str) -> list[str]:
        wanted = {"workers": {"status": {"any_": [status]}}}
        found = ask("POST", f"{server.api}/work_pools/glip-self-train/workers/filter", wanted)
        return [w["name"] for w in found]

    env = server.env | {"VENV": str(Path(sys.executable).parents[1]), "CHECKOUT": str(ROOT), "SLURM_JOB_ID": "77"}
    script = ["bash", str(DEPLOY / "slurm-worker.sh")]
    with started(script, tmp_path / "worker.log", env=env, cwd=ROOT) as worker:
        wait_for(lambda: workers("ONLINE") == ["slurm-77"], 120, "the worker's heartbeat", worker)
        said = tmp_path / "worker.log"  # a signal before it listens would be lost; Slurm's comes hours later
        wait_for(lambda: "started!" in said.read_text(), 60, "the worker's word", worker)
        os.kill(worker.pid, signal.SIGTERM)  # as Slurm does before the time is over
        worker.wait(180)  # and it ends, of itself


def training(folder: Path) -> list[str]:
    """Arguments of pipeline.cli.train: four steps of a tiny network on six records."""
    from pipeline.io.tars import write_tar

    def record(i: int) -> GroundingRecord:
        region = Region(box=(10, 10, 60, 50), phrase="red car", tokens_positive=((2, 9),))
        return GroundingRecord(
            key=f"p{i}", dataset="grounding", kind="grounding", image_size=(64, 80),
            caption="a red car near a tree", regions=(region,),
        )  # fmt: skip

    samples = ((f"p{i}", {"jpg": jpeg(i), "json": record(i).to_json()}) for i in range(6))
    write_tar(folder / "grounding-000000.tar", samples)
    config = TrainConfig(
        steps=4, batch_size=2, learning_rate=1e-3, warmup_steps=2, image_sizes=(64,), max_image_size=128,
        mixture={"grounding": 1}, save_every=2, log_every=1,
    )  # fmt: skip
    (folder / "config.json").write_text(config.model_dump_json())
    (folder / "model.json").write_text(tiny_model(ModelConfig).model_dump_json())
    return [
        "--config", str(folder / "config.json"), "--model", str(folder / "model.json"), "--device", "cpu",
        "--threads", "1",
        "--out", str(folder / "out"), "--source", f"grounding={folder}/grounding-*.tar",
    ]  # fmt: skip


SRUN = """#!/bin/bash
# Slurm's srun as far as the template needs it: the command once a node
while [[ $1 == --* ]]; do echo "$1" >> srun-options; shift; done
pids=()
for node in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do SLURM_NODEID=$node "$@" > "node-$node.log" 2>&1 & pids+=($!); done
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit $code
"""


@pytest.mark.slow
def test_two_nodes_train_one_model(tmp_path):
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/bash\necho 127.0.0.1\necho 127.0.0.2\n")):
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    env = environment(
        tmp_path, PATH=f"{bin_folder}:{os.environ['PATH']}", SLURM_JOB_NUM_NODES="2", SLURM_JOB_NODELIST="n[1-2]",
        SLURM_JOB_ID="5", SLURM_CPUS_PER_TASK="64", PORT=str(free_port()), PROCESSES="1", CHECKOUT=str(ROOT),
        OMP_NUM_THREADS="1",
        VENV=str(Path(sys.executable).parents[1]), GLOO_SOCKET_IFNAME="lo",
    )  # fmt: skip
    script = (DEPLOY / "slurm-train.sh").read_text().replace('cd "$CHECKOUT"\n', f"cd '{tmp_path}'\n")
    script = script.replace("bash flows/deploy", f"bash {DEPLOY}")  # the nodes' logs lie in the test's folder
    (tmp_path / "train.sh").write_text(script)
    done = subprocess.run(
        ["bash", str(tmp_path / "train.sh"), *training(tmp_path)], env=env, capture_output=True, text=True, timeout=400
    )
    said = "\n".join(p.read_text()[-3000:] for p in sorted(tmp_path.glob("node-*.log")))
    assert done.returncode == 0, done.stderr + said
    assert "--cpus-per-task=64" in (tmp_path / "srun-options").read_text().splitlines()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["steps"] == 4 and len(report["curve"]) == 4
    assert (tmp_path / "out" / "final" / "model.safetensors").stat().st_size > 1000
