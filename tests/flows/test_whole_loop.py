"""The whole loop with real processes: deployed on a real server with a worker; interrupted and
killed on the way, with its server or without.

All ways must leave the same bytes, for what is written depends on data and settings alone.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from prefect.exceptions import PrefectHTTPStatusError

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


def test_the_deployed_run_is_whole(deployed):
    assert_whole(deployed)


def test_the_dashboard_has_progress_tables_and_the_comparison(deployed, deployed_run, up):
    by_key = up.artifacts(deployed_run)
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
    runs = ask("POST", f"{up.api}/flow_runs/filter", {"flow_runs": {"id": {"any_": up.family(deployed_run)}}})
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
        parameters = {"config": config | {"data": config["data"] | place}}
        with pytest.raises(PrefectHTTPStatusError) as refused:
            up.ask_for(parameters, flow)
        assert refused.value.response.status_code in (409, 422), refused.value
        if flow == "self-train":  # and by the command, which does not quote it
            said = up.prefect("deployment", "run", f"{flow}/local", "--params", json.dumps(parameters), check=False)
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
        "self-train": "/nowhere/detection.json",  # before its first stage
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
    assert len(said) == 3  # the round failed in evaluate, a flow of its own: each was reported once
    runs = ask("POST", f"{up.api}/flow_runs/filter", {"limit": 200})
    assert {"evaluate", "round-1"} <= {r["name"] for r in runs if r["state"]["type"] == "FAILED"}
    server.shutdown()


def test_server_worker_and_labelling_killed_in_mid_run_leave_the_same_bytes(up, deployed):
    out = up.runs / "killed"
    run = up.start(out, tiny_config())
    shards = out / "regions" / "round-1"
    wait_until(lambda: list(shards.glob("*.report.json")), 420, f"shards in {shards}", up.process)
    labelling = children_of(out, "logs/pseudo-label")
    assert labelling
    for pid in labelling:
        os.kill(pid, signal.SIGKILL)
    up.kill("server start")
    up.kill("worker start")
    wait_until(lambda: up.ended(run), 600, "the run's end", up.process)
    if up.state(run)[0] != "COMPLETED":  # it may have lost its server for too long: ask for it again
        up.prefect("flow-run", "retry", run)
        wait_until(lambda: up.state(run)[0] == "COMPLETED", 600, "the second try's end", up.process)
    assert outputs(out) == outputs(deployed)


@contextmanager
def started(out: Path, home: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``self-train run`` of the tiny loop in a group of its own; SIGKILL to what is left of it on the way out."""
    with open(log, "wb") as output:
        run = subprocess.Popen(
            run_command(out), env=environment(home), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield run
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()


def interrupt(out: Path, home: Path, sign: signal.Signals, child: str) -> None:
    """Run the loop until a ``child`` works, send a signal to all that a terminal would send it to,
    and see it end in order."""
    log = home / "run.log"
    with started(out, home / "prefect", log) as run:
        wait_until(lambda: children_of(out, child), 420, child, run)
        began = time.monotonic()
        os.killpg(run.pid, sign)
        code = run.wait(180)
        seconds = time.monotonic() - began
    said = log.read_text()
    assert code == 128 + sign, said[-3000:]
    assert seconds < 60, f"{sign.name}: {seconds:.0f} s to end"
    assert not children_of(out)
    assert not listens(port_of_server(said))
    words = f"self-train: interrupted; the same command resumes it; its outputs so far are in {out}"
    assert said.splitlines().count(words) == 1 and "Traceback" not in said, said[-3000:]
    assert "Finished in state Crashed" in said, said[-3000:]  # the server lived to be told
    assert not (out / "summary.json").exists()


def kill_in_the_middle(out: Path, home: Path, folder: Path) -> dict[Path, int]:
    """Run the loop and SIGKILL it as soon as ``folder`` has two finished shards; returns what was
    finished, by mtime."""
    log = home / "run.log"
    with started(out, home / "prefect", log) as run:
        wait_until(lambda: len(list(folder.glob("*.report.json"))) >= 2, 420, f"shards in {folder}", run)
        os.killpg(run.pid, signal.SIGKILL)  # the stages are sessions of their own
        assert run.wait() == -signal.SIGKILL
    wait_until(lambda: not listens(port_of_server(log.read_text())), 30, "the server's end")
    wait_until(lambda: not children_of(out), 20, "the children's end")
    return {p: p.stat().st_mtime_ns for p in folder.glob("*.report.json")}


def port_of_server(said: str) -> int:
    found = re.search(r"temporary server on http://127\.0\.0\.1:(\d+)", said)
    assert found, said
    return int(found[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_interrupted_twice_and_killed_twice_it_leaves_the_same_bytes(deployed, tmp_path):
    """One run without a server of its own, started five times: each time it goes on where it was."""
    out = tmp_path / "run"
    for sign, child in ((signal.SIGTERM, "parse-phrases"), (signal.SIGINT, "logs/train-")):
        interrupt(out, tmp_path, sign, child)
    total = len(list((deployed / "data" / "crawl").glob("*.tar")))
    labelled = kill_in_the_middle(out, tmp_path, out / "regions" / "round-1")
    assert 2 <= len(labelled) < total
    built = kill_in_the_middle(out, tmp_path, out / "pseudo" / "round-1")
    assert 2 <= len(built) <= total  # it takes no time: all may be there before the signal is
    began = time.time_ns()
    env = environment(tmp_path / "prefect")
    done = subprocess.run(run_command(out), env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    for path, time_ns in {**labelled, **built}.items():
        assert path.stat().st_mtime_ns == time_ns < began, f"{path.name} was made again"
    assert outputs(out) == outputs(deployed)
    assert "NOVEL R@1" in done.stdout and "chance" in done.stdout


def test_a_board_that_dies_again_and_again_ends_nothing(up):
    """Last of all that use this server: it has no board from then on."""

    def given_up() -> bool:
        """Kill the board that lives now; whether ``up`` has left it dead."""
        pid = up.child("tensorboard")
        if pid:
            os.kill(pid, signal.SIGKILL)
        return "the tensorboard died three times within a minute of its start" in up.said()

    wait_until(given_up, 60, "the words", up.process)
    assert not up.child("tensorboard")
    assert up.child("worker start") and up.process.poll() is None
