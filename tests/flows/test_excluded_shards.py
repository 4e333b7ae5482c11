"""Shards that are set aside, in a folder that is used again: what they gave before feeds nothing,
and comes back when it is right again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from prefect.flows import Flow
from prefect.testing.utilities import prefect_test_harness

from flows import stages
from flows.jobs import run_job
from flows.rounds import run_stage
from pipeline.config import IngestConfig, SelfTrainConfig
from pipeline.config.recipes import load_recipe
from pipeline.errors import RunError
from pipeline.io.tars import write_tar
from pipeline.runs.excluded_shards import files_of, shards_of_set
from pipeline.runs.layout import RunLayout
from pipeline.stages.jobs import Ingest, TrainModel, read_job
from tests.fixtures.crawl import jpeg
from tests.fixtures.faults import dying_at

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CHAIN = (stages.parse_phrases, stages.pseudo_label, stages.filter_boxes, stages.build_shards)


@pytest.fixture(scope="module")
def server():
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Failed tasks are tried again at once."""
    monkeypatch.setattr(run_job, "retry_delay_seconds", [0.0, 0.0])


def write_shard(folder: Path, name: str) -> None:
    samples = [
        (f"{name}{i}", {"jpg": jpeg(int(name) * 10 + i), "txt": f"a red car and a dog near tree {i}".encode()})
        for i in range(3)
    ]
    write_tar(folder / f"{name}.tar", iter(samples))


def recipe(crawl: Path, *changes: str) -> SelfTrainConfig:
    fixed = [
        "demo=null", f"data.crawl={json.dumps([str(crawl)])}", "data.sources=[]", "data.base=null", "data.novel=null",
        "pseudo_label.floor=0.0001", "pseudo_label.batch_size=2", "filter_boxes.threshold=0.001", "control=false",
        "student.mixture={pseudo: 1}", "student.steps=1", "student.batch_size=2", "student.first_steps=0",
        "resources.threads=1", "resources.parallel=2", "resources.chunk_shards=2", "resources.max_failed=1",
    ]  # fmt: skip
    return load_recipe("demo", [*fixed, *changes])


def go_through(out: Path, config: SelfTrainConfig, chain: Sequence[Flow[..., Any]] = CHAIN) -> None:
    for stage in chain:
        run_stage(stage, str(out), config, *([1] if stage is not stages.parse_phrases else []))


def sources(layout: RunLayout) -> list[str]:
    """Pseudo-labelled files that the last training was given."""
    job = read_job(layout.logs / "train-student-1.job.json")
    assert isinstance(job, TrainModel)
    return [shard.rsplit("/", 1)[-1] for shard in job.sources["pseudo"]]


def test_what_a_shard_gave_under_other_settings_feeds_nothing(server, teacher, tmp_path):
    crawl, out = tmp_path / "crawl", tmp_path / "run"
    layout = RunLayout(out)
    shutil.copytree(teacher, layout.teacher / "final")
    for name in ("0", "1", "2", "3"):
        write_shard(crawl, name)
    first = recipe(crawl)
    go_through(out, first)
    assert [p.name for p in map(Path, files_of(first, layout, "build-shards", 1))] == [
        f"pseudo-{i}.tar" for i in "0123"
    ]
    assert not layout.excluded("parse-phrases").exists()
    assert {p.name for p in layout.logs.glob("filter-boxes-round-1-0*.report.json")} == {
        f"filter-boxes-round-1-00{i}.report.json" for i in (0, 1)  # in chunks, like the other stages
    }  # fmt: skip

    whole = (crawl / "1.tar").read_bytes()
    (crawl / "1.tar").write_bytes(b"no archive")
    (crawl / "3.tar").unlink()
    second = recipe(crawl, "parse_phrases.drop_determiners=false")
    labels = {p.name: p.read_bytes() for p in layout.labels(1).glob("1.*")}
    go_through(out, second, CHAIN[:2])
    aside = json.loads(layout.excluded("parse-phrases").read_text())
    assert list(aside) == ["1"] and "not a tar archive" in aside["1"]["error"]
    stages.train_student(str(out), second, 1)
    assert sources(layout) == ["pseudo-0.tar", "pseudo-2.tar"]
    assert labels and labels == {p.name: p.read_bytes() for p in layout.labels(1).glob("1.*")}  # and nothing is lost

    damaged = layout.regions(1) / "2.parquet"
    kept = damaged.read_bytes()
    damaged.write_bytes(b"\0" * len(kept))
    third = recipe(crawl, "parse_phrases.drop_determiners=false", "filter_boxes.threshold=0.002")
    run_stage(stages.filter_boxes, str(out), third, 1)  # and its table of thresholds does without it, too
    assert list(json.loads(layout.excluded("filter-boxes-round-1").read_text())) == ["2"]
    assert [Path(f).name for f in files_of(third, layout, "filter-boxes", 1)] == ["0.parquet"]
    with pytest.raises(RunError, match=r"1 shards failed \(resources\.max_failed: 0\); first: 2: "):
        run_stage(
            stages.filter_boxes, str(out), recipe(crawl, "filter_boxes.threshold=0.003", "resources.max_failed=0"), 1
        )

    damaged.write_bytes(kept)
    (crawl / "1.tar").write_bytes(whole)
    go_through(out, first, [stages.parse_phrases, stages.filter_boxes])
    assert not layout.excluded("parse-phrases").exists() and not layout.excluded("filter-boxes-round-1").exists()
    assert [Path(f).name for f in files_of(first, layout, "build-shards", 1)] == [f"pseudo-{i}.tar" for i in "012"]


def test_a_shard_at_which_processes_die_is_set_aside_alone(server, tmp_path, monkeypatch):
    crawl, out = tmp_path / "crawl", tmp_path / "run"
    for name in ("0", "1", "2", "3"):
        write_shard(crawl, name)
    monkeypatch.setenv("PYTHONPATH", dying_at("/1.tar", tmp_path / "faults"))  # of all that is started from here on
    config = recipe(crawl)
    report = run_stage(stages.parse_phrases, str(out), config)
    assert [(f.shard, f.error.split(";")[0]) for f in report.failed] == [("1", "parse-phrases-000-1 ended with -9")]
    phrases = files_of(config, RunLayout(out), "parse-phrases", 1)
    assert [Path(f).name for f in phrases] == ["0.parquet", "2.parquet", "3.parquet"]
    assert report.tallies["samples"].seen == 9
    with pytest.raises(RunError, match=r"1 shards failed \(resources\.max_failed: 0\); first: 1: .* ended with -9"):
        run_stage(stages.parse_phrases, str(out), recipe(crawl, "resources.max_failed=0"))


def test_a_shard_that_ingest_cannot_write_is_within_the_limit(server, tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 64, "width": 80} for i in range(1, 7)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
        for i in range(1, 7)
    ]
    (tmp_path / "labels.json").write_text(
        json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "car"}]})
    )
    for image in images:
        (tmp_path / str(image["file_name"])).write_bytes(jpeg(int(image["id"])))
    (tmp_path / "sets.yaml").write_text(
        "sets:\n  cars: {format: coco, kind: detection, annotations: labels.json, images_folder: ., licence: CC0-1.0}\n"
    )
    out = tmp_path / "run"
    (out / "train" / "cars-000001.tar").mkdir(parents=True)  # in the way

    def config(max_failed: int) -> SelfTrainConfig:
        return load_recipe("demo", [
            "demo=null", f"data.manifest={tmp_path / 'sets.yaml'}", "data.crawl=[x.tar]", "ingest.samples_per_shard=2",
            "resources.parallel=2", f"resources.max_failed={max_failed}",
        ])  # fmt: skip

    with pytest.raises(RunError, match=r"1 of 3 shards failed \(allowed: 0\); first: cars-000001"):
        stages.ingest(str(out), config(0))
    report = stages.ingest(str(out), config(1))
    assert [f.shard for f in report.failed] == ["cars-000001"] and report.skipped + report.done == 2
    job = read_job(out / "logs" / "ingest.job.json")
    assert isinstance(job, Ingest) and (job.workers, job.max_failed) == (2, 1)
    layout = RunLayout(out)
    (out / "train" / "cars-000001.tar").rmdir()
    stages.ingest(str(out), config(0))
    assert len(shards_of_set(layout, "cars")) == 3 and not layout.excluded("ingest").exists()
    # in other shards than before, one of which cannot be written over: what it held before is not trained on
    (out / "train" / "cars-000001.tar").unlink()
    (out / "train" / "cars-000001.tar").mkdir()
    stages.ingest(str(out), config(1).model_copy(update={"ingest": IngestConfig(samples_per_shard=3)}))
    names = [Path(s).name for s in shards_of_set(layout, "cars")]
    assert "cars-000000.tar" in names and "cars-000001.tar" not in names
    assert list(json.loads(layout.excluded("ingest").read_text())) == ["cars-000001"]
