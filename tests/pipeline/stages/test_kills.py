"""Labelling that is killed again and again, or started twice: the same bytes, and little done twice."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ParsePhrasesConfig
from pipeline.io.shard_patterns import expand_crawl
from pipeline.io.tars import write_tar
from pipeline.stages.jobs import ParsePhrases, PseudoLabel
from tests.fixtures.crawl import jpeg
from tests.fixtures.forkserver import ForkServer
from tests.pipeline.stages.test_labelling import LABEL, digests

SHARDS, IMAGES = 64, 12


class Runs(ForkServer):
    """Runs of labelling with the same settings."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__("tests.fixtures.killed_runs")
        self._settings = settings

    def label(self, log: Path) -> int:
        """The pid of a run that tells the log what it does."""
        return self.start("tests.fixtures.killed_runs:label", self._settings, str(log))


@pytest.fixture(scope="module", params=["tars", "loose images"])
def world(request, tmp_path_factory, teacher):
    """64 shards, their phrases, and the labels of a run that nothing disturbed; of one folder of images, virtual shards
    of as many images as the tars have."""
    root = tmp_path_factory.mktemp("kills")
    (root / "crawl").mkdir()
    loose = request.param == "loose images"
    for shard in range(SHARDS):
        names = [f"{shard:05d}{i:04d}" for i in range(IMAGES)]
        samples = [
            (name, {"jpg": jpeg(shard * IMAGES + i, (60 + 8 * (i % 5), 64)),
                    "txt": f"a red car and {i} green cups".encode()})
            for i, name in enumerate(names)
        ]  # fmt: skip
        if not loose:
            write_tar(root / "crawl" / f"{shard:05d}.tar", samples)
        for key, files in samples if loose else ():
            for extension, data in files.items():
                (root / "crawl" / f"{key}.{extension}").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.io.virtual_shards.IMAGES_PER_SHARD", IMAGES)
        crawl = expand_crawl(str(root / "crawl"))
        ParsePhrases(settings=ParsePhrasesConfig(), shards=crawl, out=root / "phrases").run()
        out, phrases = root / "undisturbed", root / "phrases"
        PseudoLabel(settings=LABEL, shards=crawl, out=out, phrases=phrases, teacher=teacher).run()
    assert len(crawl) == SHARDS
    return root, crawl, teacher


def runs_of(world, out: Path) -> Runs:
    root, crawl, teacher = world
    settings = {"config": LABEL.model_dump(), "shards": crawl, "out": str(out), "phrases": str(root / "phrases")}
    settings["images_per_shard"] = IMAGES
    return Runs(settings | {"teacher": str(teacher)})


def story(log: Path) -> tuple[int, list[str]]:
    """(images labelled, shards committed) by one run."""
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return sum(int(n) for what, n in lines if what == "images"), [name for what, name in lines if what == "shard"]


@pytest.mark.slow
def test_twenty_kills_lose_nothing(world, tmp_path):
    out = tmp_path / "regions"
    runs, rng, lost, killed = runs_of(world, out), random.Random(time.time_ns()), [], 0
    try:
        while killed < 20:
            log = tmp_path / f"log{killed}"
            pid = runs.label(log)
            # two or three shards are made before the kill; when it comes within one is left to chance
            deadline, goal = time.monotonic() + 60, rng.randint(1, 3)
            while len(story(log)[1]) < goal and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.08))
            os.kill(pid, signal.SIGKILL)
            assert runs.wait(pid) == -signal.SIGKILL, "the run ended before it was killed: too few shards for twenty"
            images, shards = story(log)
            lost.append(images - IMAGES * len(shards))
            killed += 1
        done_before = len(list(out.glob("*.report.json")))
        assert done_before < SHARDS and runs.wait(runs.label(tmp_path / "last")) == 0
    finally:
        runs.close()
    assert len(story(tmp_path / "last")[1]) == SHARDS - done_before  # what was done is not done again
    assert digests(out) == digests(world[0] / "undisturbed")
    # one shard with the teacher, and for a moment the one before it that is being written
    assert sum(lost) <= 20 * IMAGES and max(lost) < 2 * IMAGES, lost


@pytest.mark.slow
def test_two_runs_at_once_share_the_work(world, tmp_path):
    out = tmp_path / "regions"
    runs = runs_of(world, out)
    try:
        pids = [runs.label(tmp_path / f"log{i}") for i in (0, 1)]
        assert [runs.wait(pid) for pid in pids] == [0, 0]
    finally:
        runs.close()
    (_, first), (_, second) = story(tmp_path / "log0"), story(tmp_path / "log1")
    assert sorted(first + second) == sorted(Path(p).stem for p in world[1])  # each by one of them
    assert min(len(first), len(second)) >= 5
    assert digests(out) == digests(world[0] / "undisturbed")


@pytest.mark.slow
def test_a_shard_held_by_a_killed_run_is_taken_over_at_once(world, tmp_path):
    out = tmp_path / "regions"
    runs = runs_of(world, out)
    try:
        pid = runs.label(tmp_path / "log0")
        while not story(tmp_path / "log0")[1]:
            time.sleep(0.005)
        os.kill(pid, signal.SIGSTOP)  # it holds its claims, and does nothing
        held = {p.name for p in out.glob(".*.claim")}
        assert held
        second = runs.label(tmp_path / "log1")
        deadline = time.monotonic() + 60
        while len(list(out.glob("*.report.json"))) < SHARDS - len(held) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert held <= {p.name for p in out.glob(".*.claim")}  # left to their owner while it lives
        os.kill(pid, signal.SIGKILL)
        assert runs.wait(pid) == -signal.SIGKILL
        assert runs.wait(second) == 0
    finally:
        runs.close()
    assert digests(out) == digests(world[0] / "undisturbed")
