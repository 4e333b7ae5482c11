"""The stage on stores: what it writes, what it is a function of, what it refuses, and how filter-boxes uses it."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest

from pipeline.config import FilterConfig, MergeConfig
from pipeline.data.records import LABELS
from pipeline.errors import InputError, RunError
from pipeline.filtering.store import RegionShard
from pipeline.io.tables import footer, read_table
from pipeline.stages import FilterBoxes, MergeRegions
from tests.fixtures.regions import region, table_of, write

ROWS = [region(key=f"{i:03d}", phrase_row=i, score=(i + 1) / 20) for i in range(18)]


@pytest.fixture
def both(tmp_path):
    """Two stores of two shards; the second has every third region of the first, a little off."""
    for name, rows in (("a", ROWS), ("b", [r | {"x1": 1, "score": 0.8} for r in ROWS[::3]])):
        (tmp_path / name).mkdir()
        for shard in range(2):
            write(
                tmp_path / name / f"{shard:05d}.parquet", table_of(rows), {"teacher": f"{name}@1", "fingerprint": name}
            )
    return str(tmp_path / "a"), str(tmp_path / "b")


def test_it_merges_shard_by_shard_and_again_does_nothing(both, tmp_path):
    job = MergeRegions(regions=both, out=tmp_path / "c")
    report = job.run()
    assert (report.done, report.tallies["regions"].seen, report.tallies["regions"].kept) == (2, 48, 36)
    assert report.tallies["regions"].dropped == {"fused": 12} and report.numbers == {"agreed_1": 24, "agreed_2": 12}
    files = {p.name: p.read_bytes() for p in (tmp_path / "c").iterdir()}
    assert (again := job.finished()) is not None and (again.done, again.skipped) == (0, 2)
    (tmp_path / "c/00001.report.json").unlink()
    assert job.run().done == 1 and files == {p.name: p.read_bytes() for p in (tmp_path / "c").iterdir()}
    about = footer(pq.read_schema(tmp_path / "c/00000.parquet"))
    assert (about["stage"], about["teacher"]) == ("merge-regions", "a@1+b@1")
    assert [t["fingerprint"] for t in json.loads(about["teachers"])] == ["a", "b"]
    other = MergeRegions(regions=both, out=tmp_path / "c", settings=MergeConfig(weights=(1, 2))).run()
    assert (other.done, other.skipped) == (2, 0)
    parallel = MergeRegions(regions=both, out=tmp_path / "d", workers=2).run()
    assert parallel.done == 2 and files == {p.name: p.read_bytes() for p in (tmp_path / "d").iterdir()} | {
        n: b for n, b in files.items() if n.startswith(".")
    }


def test_filter_boxes_selects_by_agreement(both, tmp_path):
    MergeRegions(regions=both, out=tmp_path / "c").run()
    settings = FilterConfig(threshold=0.05, min_agreed=2)
    report = FilterBoxes(regions=str(tmp_path / "c"), out=tmp_path / "labels", settings=settings).run()
    assert report.tallies["regions"].kept == 12 and report.tallies["regions"].dropped["too_few_teachers"] > 0
    labels = read_table(tmp_path / "labels/00000.parquet", LABELS)
    assert labels["key"].to_pylist() == [r["key"] for r in ROWS[::3]]
    assert footer(labels.schema)["teacher"] == "a@1+b@1"
    assert RegionShard(tmp_path / "c/00000.parquet").complete_above == 0
    with pytest.raises(RunError, match="has no column agreed, which min_agreed needs"):
        FilterBoxes(regions=both[0], out=tmp_path / "none", settings=settings).run()
    assert "min_agreed" not in FilterConfig().effective()  # fingerprints without it are as they were


def test_what_does_not_fit_is_refused_by_name(both, tmp_path):
    def refused(words, regions=both, **settings):
        with pytest.raises(InputError, match=words):
            MergeRegions(regions=regions, out=tmp_path / "c", settings=MergeConfig(**settings)).run()

    refused("--regions: found .*/a; want two or more stores, each once", both[:1])
    refused("want two or more stores", (both[0], both[0]))
    refused("weights: found 3 for 2 stores", weights=(1, 2, 3))
    refused("agree: found 3; want at most the number of stores, 2", agree=3)
    shutil.copy(f"{both[1]}/00001.parquet", f"{both[1]}/00002.parquet")
    refused("/a: has no shard 00002, which .*/b has; want stores of the same shards")
    write(tmp_path / "b/00000.parquet", table_of([r | {"phrase": "cat"} for r in ROWS]))
    (tmp_path / "b/00002.parquet").unlink()
    with pytest.raises(RunError, match=r"found phrase 'dog' in .* and 'cat' in .*; want stores of the same crawl"):
        MergeRegions(regions=both, out=tmp_path / "c").run()
