"""verify on stores: fit and apply as commands, the column and how filter-boxes goes by it, runners-up."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline.cli.app import main
from pipeline.config import BuildShardsConfig, FilterConfig
from pipeline.data.caption_phrases import CaptionPhrases
from pipeline.data.records import LABELS, REGIONS, VERIFIED
from pipeline.errors import InputError, RunError
from pipeline.io.tables import footer, read_table
from pipeline.labelling.label_records import make_record
from pipeline.stages import ApplyVerifier, FilterBoxes, FitVerifier
from tests.fixtures.regions import region, table_of, write, write_store

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """regions/ of three shards, gold/ of two, and verifier/ fitted on them."""
    folder = tmp_path_factory.mktemp("verify")
    write_store(folder)
    FitVerifier(regions=str(folder / "regions"), gold=folder / "gold", out=folder / "verifier").run()
    return folder


def test_it_adds_a_column_shard_by_shard_and_again_does_nothing(store, tmp_path):
    job = ApplyVerifier(regions=str(store / "regions"), verifier=store / "verifier", out=tmp_path / "out")
    report = job.run()
    before = pa.concat_tables([read_table(p, REGIONS) for p in sorted((store / "regions").glob("*.parquet"))])
    after = pa.concat_tables(
        [read_table(p, REGIONS, optional=None) for p in sorted((tmp_path / "out").glob("*.parquet"))]
    )
    assert str(after.drop_columns(["verified"]).to_pydict()) == str(before.to_pydict())  # some scores are nan
    assert after.column_names == [*REGIONS.names, "verified"] and report.tallies["regions"].kept == len(after)
    values = after["verified"].to_numpy()
    assert values.min() >= 0 and values.max() <= 1 and len(np.unique(values)) > 5
    about = footer(pq.read_schema(tmp_path / "out/00000.parquet"))
    assert about["stage"] == "verify" and len(about["verifier"]) == 64 and about["teacher"] == "glip@0123456789ab"
    files = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert (again := job.finished()) is not None and (again.done, again.skipped) == (0, 3)
    (tmp_path / "out/00001.report.json").unlink()
    assert job.run().done == 1
    # the column of an earlier verifier is replaced, and is no input
    twice = ApplyVerifier(regions=str(tmp_path / "out"), verifier=store / "verifier", out=tmp_path / "twice")
    twice.run()
    table = read_table(tmp_path / "twice/00000.parquet", REGIONS, optional=None)
    once = read_table(tmp_path / "out/00000.parquet", REGIONS, optional=None)
    assert str(table.to_pydict()) == str(once.to_pydict())
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    FitVerifier(regions=str(store / "regions"), gold=store / "gold", out=tmp_path / "other", seed=1).run()
    other = job.model_copy(update={"verifier": str(tmp_path / "other")})
    assert other.finished() is None and other.run().done == 3


def test_what_does_not_fit_is_refused_by_name(store, tmp_path):
    job = ApplyVerifier(regions=str(store / "regions"), verifier=tmp_path, out=tmp_path / "out")
    with pytest.raises(InputError, match=r"verifier\.npz: no such file"):
        job.run()
    for values in ({}, {"gold": store / "gold", "verdicts": tmp_path}):
        with pytest.raises(InputError, match="found neither or both of --verdicts and --gold; want one"):
            FitVerifier(regions=str(store / "regions"), out=tmp_path, **values).run()
    settings = FilterConfig(score_by="verified")
    with pytest.raises(RunError, match="has no column verified, which score_by=verified needs; run verify apply"):
        FilterBoxes(regions=str(store / "regions"), out=tmp_path / "labels", settings=settings).run()


def test_the_commands_of_the_page(store, tmp_path, monkeypatch):
    monkeypatch.chdir(store)

    def run(*words):
        done = CliRunner().invoke(main, [*words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    assert "verified, unseen phrases" in run(
        "verify",
        "fit",
        "--regions",
        "regions",
        "--gold",
        "gold",
        "--out",
        "v",
        "--report-json",
        str(tmp_path / "r.json"),
    )
    assert json.loads((tmp_path / "r.json").read_text())["by"] == "gold"
    printed = run("verify", "apply", "--regions", "regions", "--verifier", "v", "--out", "verified")
    assert "verify: 3 shards done" in printed and "expected precision 0.8: " in printed
    rules = ["--set", "score_by=verified", "--set", "threshold=0.3"]
    run("filter-boxes", "--regions", "verified", "--out", "labels", *rules)
    labels, regions = (read_table(store / n / "00000.parquet", REGIONS, optional=None) for n in ("labels", "verified"))
    assert len(labels) == (regions["verified"].to_numpy() > np.float32(0.3)).sum() - sum(
        v > np.float32(0.3) and (a >= b or c >= d)
        for v, a, b, c, d in zip(*(regions[n].to_pylist() for n in ("verified", "x1", "x2", "y1", "y2")), strict=True)
    )


def test_probable_runners_up_are_ignored_and_a_phrase_with_nothing_else_is_uncertain(tmp_path):
    rows = [
        region(box=(0, 0, 10, 10)), region(box=(20, 0, 30, 10), rank=1), region(box=(40, 0, 50, 10), rank=2),
        region(phrase_row=1, phrase="cat", start=4, end=7, box=(60, 0, 70, 10)),
    ]  # fmt: skip
    table = table_of(rows).append_column(VERIFIED, pa.array([0.9, 0.4, 0.1, 0.4], pa.float32()))
    write(tmp_path / "regions/00000.parquet", table)
    settings = FilterConfig(score_by="verified", threshold=0.6, ignore_above=0.3)
    report = FilterBoxes(regions=str(tmp_path / "regions"), out=tmp_path / "labels", settings=settings).run()
    assert report.tallies["regions"].dropped == {"below_threshold": 1, "kept_as_ignore": 2}
    labels = read_table(tmp_path / "labels/00000.parquet", LABELS).to_pylist()
    phrases = CaptionPhrases("dog cat", (0, 1), ((0, 3), (4, 7)), ("dog", "cat"))
    record = make_record("a", "pseudo", (100, 100), phrases, labels, None, BuildShardsConfig())
    assert [(r.phrase, r.ignore) for r in record.regions] == [("dog", False), ("dog", True), ("cat", True)]
    assert record.uncertain == ((4, 7),)
