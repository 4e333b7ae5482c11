"""A run on images: class names, to a student that learns from detection records; captions from a file of their own."""

from __future__ import annotations

import json

import pytest
from prefect.testing.utilities import prefect_test_harness

from flows import stages
from flows.rounds import run_stage
from pipeline.execution.commit import commit_report
from pipeline.execution.reports import ShardReport
from pipeline.io.atomic import OutputFile
from pipeline.io.hashing import digest_file
from pipeline.io.tables import read_table
from pipeline.runs.layout import RunLayout
from pipeline.stages.jobs import read_job
from tests.fixtures.names import NAMES, named, write_images, write_named
from tests.flows.test_excluded_shards import recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_student_learns_from_the_labels_of_names(tmp_path):
    out, images = tmp_path / "run", tmp_path / "images"
    layout = RunLayout(out)
    for number in range(2):
        key = f"k{number}"
        write_images(images / f"{number}.tar", (key,))
        file = layout.regions(1) / f"{number}.parquet"
        write_named(file, [named("hound", 0.9, key=key), named("cat", 0.0005, (50, 50, 90, 90), key=key)])
        made = OutputFile(bytes=file.stat().st_size, sha256=digest_file(file))
        report = ShardReport(stage="pseudo-label", shard=str(number), fingerprint="x", outputs={file.name: made})
        commit_report(layout.regions(1), report)
    (tmp_path / "names.json").write_text(json.dumps(NAMES.model_dump(mode="json")))
    config = recipe(images, "data.crawl=[]", f"data.images={images}", f"data.names={tmp_path / 'names.json'}")
    config = config.model_copy(update={"student_init": "scratch"})
    with prefect_test_harness(server_startup_timeout=180):
        for stage in (stages.filter_boxes, stages.build_shards, stages.train_student):
            run_stage(stage, str(out), config, 1)
    card = json.loads((layout.pseudo(1) / "pseudo.dataset.json").read_text())
    assert (card["kind"], tuple(card["label_space"])) == ("detection", NAMES.names)
    assert json.loads((layout.student(1) / "report.json").read_text())["steps"] == 1
    (job,) = layout.logs.glob("train-student-1*.job.json")
    assert [path.rsplit("/", 1)[-1] for path in read_job(job).sources["pseudo"]] == ["pseudo-0.tar", "pseudo-1.tar"]


def test_captions_of_a_file_are_parsed(tmp_path):
    out, images, captions = tmp_path / "run", tmp_path / "images", tmp_path / "c.csv"
    for number in range(2):
        write_images(images / f"{number}.tar", (f"k{number}",))
    captions.write_text("key,long\nk0,two red cars by a lake\nk1,a black dog\n")
    given = ("data.crawl=[]", f"data.images={images}", f"data.captions={captions}", "data.caption_column=long")
    with prefect_test_harness(server_startup_timeout=180):
        run_stage(stages.parse_phrases, str(out), recipe(images, *given))
    rows = [
        row
        for path in RunLayout(out).phrases.glob("*.parquet")
        for row in read_table(path, ["key", "caption"]).to_pylist()
    ]
    assert {row["key"]: row["caption"] for row in rows} == {"k0": "two red cars by a lake", "k1": "a black dog"}
