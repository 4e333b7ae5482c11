"""Rounds, cancelling and retrying on a real server with a worker: what was done stays done, and the
verdict decides what follows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.config import PromotionConfig, SelfTrainConfig
from tests.flows.api import answer, ask
from tests.flows.tiny import tiny_config, wait_until
from tests.flows.up import Up, children_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def two_rounds(**promotion: object) -> SelfTrainConfig:
    config = tiny_config()
    assert config.demo is not None
    demo = config.demo | {"photos": False}
    return config.model_copy(update={"rounds": 2, "demo": demo, "promotion": PromotionConfig.model_validate(promotion)})


ANY_CONTROL = "control:*.ap>=-100"
IMPOSSIBLE = two_rounds(gates=["*.recall_at_1>100", ANY_CONTROL], samples=50)
WELCOME = two_rounds(gates=["*.recall_at_1>=-100", ANY_CONTROL], least_gain=-100, samples=50)


@pytest.fixture(scope="module")
def out(up) -> Path:
    """The folder that all runs here share."""
    return up.runs / "rounds"


def shards(out: Path) -> dict[Path, int]:
    """Finished shards of the first round's labelling, by mtime."""
    return {p: p.stat().st_mtime_ns for p in (out / "regions" / "round-1").glob("*.report.json")}


def ended(up: Up, run: str) -> tuple[str, str]:
    wait_until(lambda: up.ended(run), 600, "the run's end", up.process)
    return up.state(run)


def test_cancelling_ends_the_children(up, out):
    run = up.start(out, IMPOSSIBLE)
    wait_until(lambda: shards(out) and children_of(out, "logs/pseudo-label"), 420, "labelling", up.process)
    up.prefect("flow-run", "cancel", run)
    assert ended(up, run)[0] == "CANCELLED"
    wait_until(lambda: not children_of(out), 60, "the children's end", up.process)
    assert not (out / "summary.json").exists()


def test_a_failed_run_is_retried_from_where_it_was_and_its_gates_stop_it(up, out):
    labelled = shards(out)
    assert labelled
    shutil.rmtree(out / "labels", ignore_errors=True)  # the worker may have taken a while to hear of the cancelling
    (out / "labels").write_text("in the way")
    run = up.start(out, IMPOSSIBLE)
    assert ended(up, run)[0] == "FAILED"
    assert labelled.items() <= shards(out).items()
    labelled = shards(out)
    (out / "labels").unlink()
    up.prefect("flow-run", "retry", run)
    assert ended(up, run) == ("COMPLETED", "Stopped after round 1")
    assert shards(out) == labelled
    assert not (out / "regions" / "round-2").exists()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["best"] == "teacher" and summary["stopped"].startswith("not promoted: eval_")
    assert "wanted *.recall_at_1 > 100" in (out / "report" / "round-1.html").read_text().replace("&gt;", ">")


def test_with_other_gates_the_same_folder_goes_on_to_the_next_round(up, out):
    labelled = shards(out)
    run = up.start(out, WELCOME)
    assert ended(up, run) == ("COMPLETED", "Completed")
    assert shards(out) == labelled
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rounds"], summary["best"], summary["stopped"]) == (2, "student-2", None)
    assert [row["result"]["teacher"] for row in summary["by_round"]] == ["teacher", "student-1"]
    found = ask("POST", f"{up.api}/artifacts/latest/filter", {"limit": 200})
    pages = {a["key"]: a["data"] for a in found}
    assert "Teacher teacher, student student-1. **promoted: eval_novel.recall_at_1" in pages["round-1"]
    assert f"http://127.0.0.1:{up.port + 1}/rounds/report/round-2.html" in pages["round-2"]
    assert pages["round-2"].count("data:image/jpeg") == 1 and "## Gates" in pages["round-2"]
    runs = ask("POST", f"{up.api}/flow_runs/filter", {"limit": 200})
    assert {"round-1", "round-2", "pseudo-label-round-2"} <= {r["name"] for r in runs}
    said = up.prefect("deployment", "ls")
    assert "round/local" in said
    page = answer("GET", f"http://127.0.0.1:{up.port + 1}/rounds/report/index.html").text
    assert "round-2.html" in page and "The model to use: <b>student-2</b>" in page


def test_a_round_of_its_own_measures_its_teacher_before_it_labels(up, out):
    labelled = shards(out)
    (out / "evaluation" / "teacher" / "metrics.json").unlink()
    run = up.start(out, two_rounds(gates=["eval_base.lvis_ap>1"], samples=50), "round")
    assert ended(up, run)[0] == "FAILED"
    assert (out / "evaluation" / "teacher" / "metrics.json").is_file() and shards(out) == labelled
    message = ask("GET", f"{up.api}/flow_runs/{run}")["state"]["message"]
    assert "eval_base.lvis_ap" in message
