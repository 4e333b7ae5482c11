"""A given teacher and a user's own crawl, on a server: from the crawl alone, and with an evaluation set."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import tarfile
import termios
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from pipeline.config.recipes import load_recipe
from pipeline.io.tars import read_tar
from pipeline.runs.layout import RunLayout
from pipeline.stages.jobs import MakeDemoData
from tests.flows.api import ask
from tests.flows.tiny import BIN, ROOT, SCENES, wait_until
from tests.flows.up import Up

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CHANGES = [
    "student.steps=2", "student.batch_size=2", "student.accumulate=1", "student.warmup_steps=1",
    "student.image_sizes=[96]", "student.max_image_size=192", "pseudo_label.floor=0.0001",
    "filter_boxes.threshold=0.001", "resources.threads=1", "resources.device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    """A user's folder: a model ``glip``, a ``crawl``, as loose images ``my photos``, and labelled sets of the demo's
    manifest in ``data``."""
    from pipeline.training.model_factory import build_model

    folder = tmp_path_factory.mktemp("mine")
    network, processor = build_model(load_recipe("demo").model, None)
    network.save_pretrained(folder / "glip")
    processor.save_pretrained(folder / "glip")
    MakeDemoData(out=folder / "data", settings={**SCENES, "crawled_scenes": 20, "photos": False}).run()
    (folder / "data" / "crawl").rename(folder / "crawl")
    for shard in sorted((folder / "crawl").glob("*.tar")):
        with tarfile.open(shard) as tar:
            tar.extractall(folder / "my photos" / shard.stem, filter="data")
    return folder


def command(up: Up, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``self-train`` in the user's folder, which is neither the checkout nor the worker's."""
    return subprocess.run(
        [str(BIN / "self-train"), *arguments], env=up.env | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip


def on_a_terminal(up: Up, folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code of ``self-train`` and what it writes to stderr, which is a terminal of 150 columns."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 150, 0, 0))
    env = up.env | {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "COLUMNS": "150"}
    process = subprocess.Popen(
        [str(BIN / "self-train"), *arguments], env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=its
    )
    os.close(its)
    said = b""
    with suppress(OSError):  # the terminal is gone with the process
        while part := os.read(ours, 1 << 16):
            said += part
    os.close(ours)
    return process.wait(), said.decode(errors="replace")


def sets(*changes: str) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


def test_a_students_labels_are_a_crawls_alone(up, mine):
    out = up.runs / "alone"
    given = sets("teacher.init=glip", "data.crawl=[crawl, my photos]", *CHANGES)
    done = command(up, mine, "submit", "--recipe", "own", *given, "--out", str(out), "--watch")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"started: {up.url}/runs/flow-run/" in done.stdout and "Completed." in done.stderr
    run = done.stdout.split("/flow-run/")[1].split()[0]
    assert ask("GET", f"{up.api}/flow_runs/{run}")["name"] == "alone"
    of_parent = ask("POST", f"{up.api}/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
    progress = {a["key"]: a for a in of_parent}["progress-run"]
    assert float(progress["data"]) == 100.0
    assert progress["description"].startswith("completed; last: ") and "labelled images" in progress["description"]
    layout = RunLayout(out)
    (loose,) = layout.pseudo(1).glob("pseudo-my-photos-*.tar")
    assert len(list(read_tar(loose))) == sum(len(list(read_tar(p))) for p in layout.pseudo(1).glob("pseudo-0*.tar"))
    assert not layout.train.exists() and not layout.control(1).exists() and not layout.teacher.exists()
    summary = json.loads(layout.summary.read_text())
    assert summary["best"] == "student-1" and summary["teacher_init"] == str(mine / "glip")
    assert not {"teacher", "student", "control", "chance", "pseudo_labels"} & summary.keys()
    trained = json.loads((layout.student(1) / "report.json").read_text())
    assert trained["run"]["init"] and set(trained["records"]) == {"pseudo"}
    for name in ("index.html", "round-1.html"):
        page = (layout.report / name).read_text()
        assert not any(word in page for word in ("BASE", "NOVEL", "<th>control", "The control")), name
    assert "so the models are not compared" in (layout.report / "index.html").read_text()
    said = command(up, mine, "status", "--out", str(out)).stdout
    assert said.startswith("run                      completed\n") and f"as given: {mine / 'glip'}" in said
    said = command(up, mine, "ls", str(up.runs)).stdout
    assert "alone" in said and "student-1: not evaluated" in said


def test_a_recipes_file_gives_tables_of_its_own_sets(up, mine):
    out, recipe = up.runs / "evaluated", mine / "mine.yaml"
    config = load_recipe(
        "own",
        [f"teacher.init={mine / 'glip'}", f"data.crawl={mine / 'crawl'}", *CHANGES, "data.manifest=demo",
         f"data.root={mine / 'data'}", "data.evaluation=eval_base", "evaluate.batch_size=4",
         "data.validation=eval_novel", "student.validate_every=1", "student.validate_images=4"],
    )  # fmt: skip
    recipe.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run = up.ask_for({"out": str(out), "recipe": str(recipe)}, "self-train")
    wait_until(lambda: up.ended(run), 600, "the run's end", up.process)
    assert up.state(run)[0] == "COMPLETED", ask("GET", f"{up.api}/flow_runs/{run}")["state"]["message"]
    layout = RunLayout(out)
    summary = json.loads(layout.summary.read_text())
    assert {"eval_base.ap", "eval_base.recall_at_1"} <= summary["student"].keys()
    trained = json.loads((layout.student(1) / "report.json").read_text())
    assert [row["step"] for row in trained["validation"]] == [1, 2] and "eval_novel" not in trained["records"]
    assert trained["best"] in trained["validation"] and (layout.student(1) / "best" / "config.json").is_file()
    assert not any("eval_novel" in name for name in summary["student"])
    page = (layout.report / "index.html").read_text()
    assert "<th>eval_base AP</th>" in page and not any(word in page for word in ("BASE", "NOVEL", "control"))
    assert f"{mine / 'glip'} as it is" in page
    (row,) = [a["data"] for key, a in up.artifacts(run).items() if key == "comparison"]
    assert "eval_base.ap" in row and "novel" not in row


def test_a_run_that_fails_says_so_with_its_reason(up, mine):
    """The labels' folder is in the way of a stage; checks before the run do not see it."""
    out = up.runs / "in-the-way"
    out.mkdir()
    (out / "labels").write_text("in the way")
    given = sets("teacher.init=glip", "data.crawl=crawl", *CHANGES)
    code, said = on_a_terminal(up, mine, "run", "--recipe", "own", *given, "--out", str(out))
    assert code in (1, 2) and "self-train: error: " in said, said
    bar = r"\r\x1b\[2K█{4}░{16}  20 % stage 2 of 5: pseudo-label-round-1, \d of 2 shards"
    assert re.search(bar, said), said
    said = command(up, mine, "status", "--out", str(out)).stdout.splitlines()
    assert said[0].startswith("run                      failed in stage 3 of 5: filter-boxes-round-1: ")
    assert "labels" in said[0]
    wrong = sets("teacher.init=nowhere", "data.crawl=[no/0.tar, no/1.tar]")
    done = command(up, mine, "submit", "--recipe", "own", *wrong, "--out", str(out))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 3


def test_the_documented_schedule_is_deployed(up, tmp_path):
    (text,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "prefect.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "nightly.yaml").write_text(text)
    up.prefect("deploy", "--all", "--prefect-file", str(tmp_path / "nightly.yaml"))
    made = ask("GET", f"{up.api}/deployments/name/self-train/nightly")
    assert made["parameters"] == {"recipe": "/data/my.yaml", "out": "/data/runs/nightly"}
    assert made["schedules"][0]["schedule"]["cron"] == "0 2 * * *" and made["global_concurrency_limit"]["limit"] == 1
