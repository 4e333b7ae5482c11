"""The whole loop with real processes: deployed on a real server with a worker, and killed on the way, with its server or without.

Both ways must leave the same bytes, for what is written depends on data and settings alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from pipeline.io.hashing import digest_file
from tests.flows.api import answer, ask
from tests.flows.tiny import ROOT, assert_whole, environment, run_command, tiny_config, wait_until
from tests.flows.up import children_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def outputs(run: Path) -> dict[str, str]:
    """Digests of everything that a run made, but for what tells of times and hosts: logs and what quotes them."""
    skip = {"logs", "tensorboard"}
    quotes = {run / "summary.json", run / "report" / "index.html", run / "config.yaml"}
    files = (p for p in sorted(run.rglob("*")) if p.is_file() and p not in quotes)
    return {str(p.relative_to(run)): digest_file(p) for p in files if not skip & set(p.relative_to(run).parts)}


@pytest.fixture(scope="module")
def deployed(up) -> Path:
    """A run that was asked of the server and that the worker carried out."""
    out = up.runs / "whole"
    run = up.start(out, tiny_config())
    wait_until(lambda: up.ended(run), 600, "the run's end", up.process)
    assert up.state(run)[0] == "COMPLETED", (up.logs / "worker.log").read_text()[-3000:]
    return out


def test_the_deployed_run_is_whole(deployed):
    assert_whole(deployed)


def test_the_dashboard_has_progress_tables_and_the_comparison(deployed, up):
    api = up.api
    found = ask("POST", f"{api}/artifacts/filter", {"limit": 200})
    by_key = {a["key"]: a for a in found}
    assert by_key["progress-pseudo-label-round-1"]["data"] == 100.0
    assert {"kept-parse-phrases", "kept-filter-boxes-round-1", "kept-build-shards-round-1"} <= set(by_key)
    rows = json.loads(by_key["comparison"]["data"])
    summary = json.loads((deployed / "summary.json").read_text())
    student = next(r for r in rows if r["name"] == "student")
    assert student["novel_recall_at_1"] == summary["student"]["novel_recall_at_1"]
    assert (
        "peak MiB" in by_key["report"]["data"]
        and f"http://127.0.0.1:{up.port + 1}/whole/report/index.html" in by_key["report"]["data"]
    )
    thresholds = json.loads(by_key["thresholds-filter-boxes-round-1"]["data"])
    assert [row["threshold"] for row in thresholds] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    runs = ask("POST", f"{api}/flow_runs/filter", {"limit": 100})
    assert {"train-teacher", "pseudo-label-round-1", "build-shards-round-1"} <= {r["name"] for r in runs}


def test_every_stage_can_be_run_by_itself(up, deployed):
    said = up.prefect("deployment", "ls")
    for flow in (
        "ingest",
        "parse-phrases",
        "train-teacher",
        "pseudo-label",
        "filter-boxes",
        "build-shards",
        "evaluate",
    ):
        assert f"{flow}/local" in said
    config = tiny_config().model_dump(mode="json")
    parameters = json.dumps({"out": str(deployed), "config": config})
    said = up.prefect("deployment", "run", "filter-boxes/local", "--params", parameters, "--watch", check=False)
    assert "Flow run finished successfully" in said or "Completed" in said, said


def test_a_misspelt_setting_is_refused_before_anything_runs(up):
    parameters = json.dumps({"config": tiny_config().model_dump(mode="json") | {"sede": 1}})
    said = up.prefect("deployment", "run", "self-train/local", "--params", parameters, check=False)
    assert "'sede' was unexpected" in said and "UUID" not in said, said


@pytest.mark.parametrize("flow", ["self-train", "parse-phrases", "round"])
def test_an_address_with_a_secret_is_refused_before_it_is_stored(up, flow):
    config = tiny_config().model_dump(mode="json")
    for place in (
        {"crawl": ["https://S3CRET@host/0.tar"]},
        {"manifest": "https://host/sets.yaml?X-Amz-Signature=S3CRET"},
    ):
        parameters = json.dumps({"config": config | {"data": config["data"] | place}})
        said = up.prefect("deployment", "run", f"{flow}/local", "--params", parameters, check=False)
        assert "Error creating flow run" in said and "UUID" not in said, said
    runs = answer("POST", f"{up.api}/flow_runs/filter", {"limit": 200}).text
    assert "S3CRET" not in runs + (up.logs / "server.log").read_text() + (up.logs / "worker.log").read_text()


def test_a_run_that_fails_is_told_to_those_on_call(up, tmp_path):
    said: list[dict[str, str]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    make = (
        "from prefect.blocks.notifications import CustomWebhookNotificationBlock as Hook\n"
        f"Hook(name='on-call', url='http://127.0.0.1:{server.server_address[1]}/a-secret', "
        "json_data={'subject': '{{subject}}', 'body': '{{body}}'}).save('on-call', overwrite=True)"
    )
    subprocess.run([sys.executable, "-c", make], env=up.env, cwd=ROOT, check=True)
    config = tiny_config()
    entries = {
        name: {"kind": kind, "format": "coco", "annotations": f"/nowhere/{name}.json", "images_folder": "."}
        for kind, names in (("detection", config.data.sources), ("evaluation", config.data.evaluated()))
        for name in names
    }
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump({"sets": entries}, sort_keys=False))
    (tmp_path / "0.tar").write_bytes(b"")
    data = config.data.model_copy(update={"manifest": str(tmp_path / "sets.yaml"), "crawl": (str(tmp_path / "0.tar"),)})
    config = config.model_copy(update={"data": data, "demo": None})
    missing = config.model_copy(update={"data": data.model_copy(update={"crawl": ("/nowhere/0.tar",)})})
    words = {
        "self-train": "/nowhere/detection.json",  # a label file is first opened by ingest
        "parse-phrases": "/nowhere/0.tar",
        "round": "eval_base",
    }  # measured first
    for number, flow in enumerate(words):
        run = up.start(up.runs / "fails", missing if flow == "parse-phrases" else config, flow)
        wait_until(lambda run=run: up.ended(run), 120, "the run's end", up.process)
        assert up.state(run)[0] == "FAILED"
        wait_until(lambda number=number: len(said) > number, 60, "the word of it")
        assert said[number]["subject"] == f"{flow}: Failed" and words[flow] in said[number]["body"]
    time.sleep(1)
    assert len(said) == 3  # self-train failed in ingest, and the round in evaluate: each was told of once
    runs = ask("POST", f"{up.api}/flow_runs/filter", {"limit": 200})
    assert {"ingest", "evaluate"} <= {r["name"] for r in runs if r["state"]["type"] == "FAILED"}
    server.shutdown()


def test_server_worker_and_labelling_killed_in_mid_run_leave_the_same_bytes(up, deployed):
    out = up.runs / "killed"
    run = up.start(out, tiny_config())
    shards = out / "regions" / "round-1"
    wait_until(lambda: list(shards.glob("*.report.json")), 420, f"shards in {shards}", up.process)
    for pid in children_of(out, "pipeline pseudo-label"):
        os.kill(pid, signal.SIGKILL)
    up.kill("server start")
    up.kill("worker start")
    wait_until(lambda: up.ended(run), 600, "the run's end", up.process)
    if up.state(run)[0] != "COMPLETED":  # it may have lost its server for too long: ask for it again
        up.prefect("flow-run", "retry", run)
        wait_until(lambda: up.state(run)[0] == "COMPLETED", 600, "the second try's end", up.process)
    assert outputs(out) == outputs(deployed)


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
    assert 2 <= len(built) <= total  # it takes no time: all may be there before the signal is
    began = time.time_ns()
    with open(log, "ab") as output:
        done = subprocess.run(run_command(run), env=env, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    said = log.read_text()
    assert done.returncode == 0, said[-3000:]
    for path, time_ns in {**labelled, **built}.items():
        assert path.stat().st_mtime_ns == time_ns < began, f"{path.name} was made again"
    assert outputs(run) == outputs(deployed)
    assert "NOVEL R@1" in said and "chance" in said
