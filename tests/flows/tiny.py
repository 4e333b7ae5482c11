"""The whole loop at its smallest: the demo's recipe on a handful of scenes, a few steps each."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.config import SelfTrainConfig
from pipeline.config.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
BUSY = 3
"""What takes a minute on a quiet machine may take three."""
SCENES = {
    "detection_scenes": 30, "grounding_scenes": 20, "attributes_scenes": 10, "crawled_scenes": 60, "shard_size": 10,
    "validation_scenes": 2,
    "evaluation_scenes": 4, "max_photo_side": 128,
}  # fmt: skip
CHANGES = [
    "teacher.steps=4", "teacher.first_steps=1", "teacher.save_every=2", "teacher.log_every=1", "student.steps=3",
    "student.log_every=1", "teacher.warmup_steps=1", "student.warmup_steps=1",
    "pseudo_label.floor=0.0001", "pseudo_label.batch_size=2", "filter_boxes.threshold=0.001",
    "resources.parallel=1", "resources.threads=1", f"demo={json.dumps(SCENES)}",
]  # fmt: skip


TWINS = ("pipeline.py", "model/__init__.py", "flows.py", "datasets.py")
"""Files in a user's folder that have the names of our packages, or of a library that we import."""


def misleading(folder: Path) -> Path:
    """Write TWINS into a folder, each of which ends whoever imports it."""
    for name in TWINS:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('the user\\'s own file')\n")
    return folder


def tiny_config(*more: str) -> SelfTrainConfig:
    """The recipe with all changes: a job for each stage, as what takes time is the start of a process."""
    return load_recipe("demo", [*CHANGES, *more])


def environment(home: Path, **more: str) -> dict[str, str]:
    """An environment whose Prefect knows nothing of the user's."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return clean | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "NO_COLOR": "1",
        **more,
    }


def run_command(out: Path) -> list[str]:
    """``self-train run`` of the tiny loop."""
    changes = [part for change in CHANGES for part in ("--set", change)]
    return [str(BIN / "self-train"), "run", "--recipe", "demo", "--out", str(out), *changes]


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(what: Callable[[], object], seconds: float, why: str, process: subprocess.Popen | None = None) -> None:
    """Poll until ``what`` is true; fails with ``why`` after ``seconds`` (on a machine that does
    nothing else), or when the process has ended."""
    end = time.monotonic() + BUSY * seconds
    while not what():
        assert time.monotonic() < end, f"after {BUSY * seconds} s still waiting: {why}"
        assert process is None or process.poll() is None, f"the process ended while waiting: {why}"
        time.sleep(0.05)


def assert_whole(run: Path) -> None:
    """Assert that a run has its models' figures, its labels, its pages, and what each stage took."""
    summary = json.loads((run / "summary.json").read_text())
    for model in ("teacher", "control", "student"):
        assert set(summary[model]) == {"base_recall_at_1", "base_ap50", "novel_recall_at_1", "novel_ap50"}
    assert summary["chance"] == 25.0 and summary["pseudo_labels"]["all"]["labels"] > 0
    stages = summary["stages"]
    for stage in ("ingest", "parse-phrases", "pseudo-label", "filter-boxes", "build-shards"):
        assert stages[stage]["report"]["tallies"], stage
    for stage in ("train-teacher", "train-student", "train-control", "pseudo-label", "evaluate"):
        assert stages[stage]["seconds"] > 0 and stages[stage]["peak_mib"] > 100, stage
    for page in ("index.html", "round-1.html", "labels-round-1.html", "photos.html", "labels-round-1.png"):
        assert (run / "report" / page).stat().st_size > 1000
    labelled = stages["pseudo-label"]["report"]["tallies"]["samples"]
    assert labelled["seen"] == labelled["kept"] + sum(labelled["dropped"].values())
