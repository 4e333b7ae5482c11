"""Which shards later stages of a run may take: committed, of the crawl as it is now, and not set aside on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config import SelfTrainConfig
from pipeline.config.recipes import load_recipe
from pipeline.errors import InputError
from pipeline.execution.commit import commit_report
from pipeline.execution.reports import FailedShard, ShardReport
from pipeline.io.atomic import write_atomic
from pipeline.runs.excluded_shards import STAGES, files_of, note_excluded, shards_of_set, stage_folder, surviving_shards
from pipeline.runs.layout import RunLayout

SUFFIX = dict.fromkeys(STAGES[:3], "{}.parquet") | {"build-shards": "pseudo-{}.tar"}


def commit(layout: RunLayout, stage: str, shard: str, settings: str) -> None:
    folder, name = stage_folder(layout, stage, 1), SUFFIX[stage].format(shard)
    output = write_atomic(folder / name, settings)
    commit_report(folder, ShardReport(stage=stage, shard=shard, fingerprint=settings, outputs={name: output}))


def fail(layout: RunLayout, stage: str, *shards: str) -> None:
    note_excluded(layout, stage, 1, [FailedShard(shard=s, error=f"{s} is broken") for s in shards])


def through(config: SelfTrainConfig, layout: RunLayout, stage: str) -> str:
    return "".join(Path(shard).stem for shard in surviving_shards(config, layout, stage, 1))


@pytest.fixture
def config(tmp_path: Path) -> SelfTrainConfig:
    (tmp_path / "crawl").mkdir()
    for name in "abc":
        (tmp_path / "crawl" / f"{name}.tar").touch()
    return load_recipe("demo", ["demo=null", f"data.crawl=['{tmp_path / 'crawl'}']"])


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """A run that is finished, whose crawl had a fourth shard then."""
    layout = RunLayout(tmp_path / "run")
    for stage in STAGES:
        for shard in "abcd":
            commit(layout, stage, shard, "old")
        fail(layout, stage)
    return layout


def test_what_is_committed_for_the_crawl_of_now_comes_through(config, layout):
    assert [through(config, layout, stage) for stage in STAGES] == ["abc"] * 4
    assert files_of(config, layout, "build-shards", 1) == [
        str(layout.pseudo(1) / f"pseudo-{shard}.tar") for shard in "abc"
    ]
    (layout.labels(1) / "b.parquet").write_text("cut off")
    assert through(config, layout, "filter-boxes") == "ac"


def test_a_shard_that_is_set_aside_stays_out_of_all_later_stages(config, layout):
    fail(layout, "pseudo-label", "b")
    assert [through(config, layout, stage) for stage in STAGES] == ["abc", "ac", "ac", "ac"]
    assert json.loads(layout.excluded("pseudo-label-round-1").read_text()) == {
        "b": {"before": "old", "error": "b is broken"}
    }
    commit(layout, "pseudo-label", "b", "old")  # the same once more: still what the failed run could not confirm
    assert through(config, layout, "pseudo-label") == "ac"
    commit(layout, "pseudo-label", "b", "new")  # made by hand since
    assert through(config, layout, "build-shards") == "abc"
    fail(layout, "pseudo-label", "b")
    fail(layout, "pseudo-label")  # or found good by the stage itself
    assert through(config, layout, "build-shards") == "abc" and not layout.excluded("pseudo-label-round-1").exists()


def test_with_names_nothing_that_parse_phrases_left_counts(config, layout):
    fail(layout, "parse-phrases", "a")
    named = config.model_copy(update={"data": config.data.model_copy(update={"names": "dog"})})
    assert [through(c, layout, "pseudo-label") for c in (config, named)] == ["bc", "abc"]


def test_a_shard_that_never_gave_anything_comes_through_when_it_does(config, layout):
    (layout.phrases / "c.report.json").unlink()
    fail(layout, "parse-phrases", "c")
    assert through(config, layout, "build-shards") == "ab"
    commit(layout, "parse-phrases", "c", "new")
    assert through(config, layout, "build-shards") == "abc"


def test_nothing_left_is_an_error_that_names_the_stage(config, layout):
    fail(layout, "parse-phrases", *"abc")
    with pytest.raises(
        InputError, match=r"labels/round-1: filter-boxes has finished none of the crawl's 3 shards here"
    ):
        surviving_shards(config, layout, "filter-boxes", 1)


def test_sets_do_not_take_each_others_shards(layout):
    for name in ("cars-000000", "cars-000001", "cars-old-000000"):
        write_atomic(layout.train / f"{name}.tar", name)
    assert [Path(s).stem for s in shards_of_set(layout, "cars")] == ["cars-000000", "cars-000001"]
    note_excluded(layout, "ingest", 1, [FailedShard(shard="cars-000001", error="broken")])
    assert [Path(s).stem for s in shards_of_set(layout, "cars")] == ["cars-000000"]
    note_excluded(layout, "ingest", 1, [FailedShard(shard=f"cars-00000{i}", error="broken") for i in (0, 1)])
    with pytest.raises(InputError, match=r"every shard of cars is excluded; see .*set-aside/ingest\.json"):
        shards_of_set(layout, "cars")
