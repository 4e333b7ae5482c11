"""Exit code 0 means that something usable was made, or that the input was empty, whatever the input."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.cli.export import export_labels
from pipeline.cli.filter import filter_boxes
from pipeline.cli.inspect import dedup, inspect
from pipeline.cli.label import build_shards, parse_phrases
from pipeline.errors import RunError
from pipeline.execution.reports import StageReport, Tally
from tests.fixtures.crawl import jpeg
from tests.fixtures.unread_crawls import CAPTION, UNREAD, pairs, put_tar
from tests.pipeline.stages.test_labelling import whole

IMAGE = jpeg(1)


def call(command, *arguments: object):
    return CliRunner().invoke(command, [str(a) for a in arguments])


def parsed(folder, members) -> tuple[int, int]:
    """(exit code, number of phrases) of parse-phrases."""
    shard, out = put_tar(folder / "crawl/00000.tar", members), folder / "out"
    done = call(parse_phrases, "--shards", shard, "--out", out, "--set", "method=ngrams")
    table = out / "00000.parquet"
    return done.exit_code, pq.read_metadata(table).num_rows if table.exists() else 0


OF_JSON = [{"caption": CAPTION}, {"text": CAPTION}, {"caption": None}, {"caption": ["a"]}, []]
PARTS = st.tuples(
    st.sampled_from(["0", "1", "2", "a.0", "a.1", "d/0", "._0", "../0", "/0", ""]),
    st.sampled_from(["", ".jpg", ".png", ".txt", ".json", ".caption", ".jpg.txt", ".seg.png", ".TXT", ".tiff", "."]),
    st.sampled_from(
        [IMAGE, b"", CAPTION.encode(), b"IMG_1.jpg", b"caf\xe9", b"{", *(json.dumps(v).encode() for v in OF_JSON)]
    ),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=st.lists(PARTS, max_size=8))
@example(members=[])
def test_parse_phrases_makes_phrases_or_fails(members, tmp_path_factory):
    named = [(key + extension or "x", data) for key, extension, data in members]
    code, rows = parsed(tmp_path_factory.mktemp("any"), named)
    assert code in (0, 1) and (rows > 0 or not named if code == 0 else rows == 0)


@pytest.mark.parametrize("name", UNREAD)
def test_no_command_that_reads_an_unread_crawl_exits_with_0_and_nothing(name, tmp_path):
    code, rows = parsed(tmp_path, UNREAD[name][0])
    assert code == 1 and rows == 0
    put_tar(tmp_path / "plain/00000.tar", pairs("{:05d}"))
    done = call(dedup, tmp_path / "crawl", "--against", f"x={tmp_path / 'plain'}", "--out", tmp_path / "dedup")
    hashed = tmp_path / "dedup/hashes/shards/00000.parquet"
    assert done.exit_code == 1 or pq.read_metadata(hashed).num_rows >= 4, done.output


def test_a_stage_of_which_nothing_is_kept_says_why():
    report = StageReport(stage="filter-boxes", tallies={"regions": Tally(seen=3, dropped={"below_threshold": 3})})
    with pytest.raises(RunError, match=r"filter-boxes: none of 3 regions is usable \(dropped: below_threshold 3\)"):
        report.require_usable()
    for tally in (Tally(), Tally(seen=3, kept=1, dropped={"x": 2})):
        report = StageReport(stage="filter-boxes", tallies={"regions": tally})
        assert report.require_usable() is report


def test_later_stages_that_keep_nothing_fail(crawl, teacher, tmp_path):
    phrases, regions, labels = (tmp_path / n for n in ("phrases", "regions", "labels"))
    whole(crawl, tmp_path, teacher)
    done = call(filter_boxes, "--regions", regions, "--out", labels, "--set", "threshold=1")
    assert done.exit_code == 1 and "none of" in done.output
    done = call(filter_boxes, "--regions", regions, "--out", labels, "--set", "threshold=0")
    assert done.exit_code == 0, done.output
    for i, path in enumerate(crawl):  # the crawl has been replaced since
        put_tar(tmp_path / "crawl" / f"{i:05d}.tar", pairs("other{}"))
        assert path.endswith(f"{i:05d}.tar")
    done = call(
        build_shards, "--shards", tmp_path / "crawl", "--phrases", phrases, "--labels", labels, "--out", tmp_path / "t"
    )
    assert done.exit_code == 1 and "labelled images lost ({'not_in_shard'" in done.output


@pytest.mark.parametrize("folder", ["a[1] {b,c}", "*?"])
def test_odd_folders_and_shards_with_dots_pass_every_stage(folder, crawl, teacher, tmp_path):
    out = tmp_path / folder
    put_tar(out / "crawl/laion.part.00000.tar", pairs("0{}"))
    put_tar(out / "crawl/laion.part.00001.tar", pairs("1{}"))
    (out / "crawl/laion.part.00002.tar").symlink_to("/gone")
    put_tar(out / "crawl/._laion.part.00000.tar", [])
    put_tar(out / "evaluation/evaluation.v1.tar", [("e.jpg", jpeg(0)), ("f.jpg", jpeg(90))])
    shards = [str(out / f"crawl/laion.part.0000{n}.tar") for n in range(2)]
    whole(shards, out, teacher)
    names = ["laion.part.00000", "laion.part.00001"]
    for stage in ("phrases", "regions", "labels"):
        assert sorted(p.name for p in (out / stage).glob("*.parquet")) == [f"{n}.parquet" for n in names]
    store = ("--phrases", out / "phrases", "--shards", out / "crawl")
    for command, *arguments in (
        (build_shards, *store, "--labels", out / "labels", "--out", out / "train"),
        (filter_boxes, "--regions", out / "regions", "--out", out / "again", "--set", "threshold=0"),
        (dedup, out / "crawl", "--against", out / "evaluation", "--out", out / "dedup", "--drop"),
        (inspect, out / "train", "--no-html"),
        (inspect, out / "labels", *store, "--no-html"),
        (export_labels, out / "train", "--to", "odvg", "--out", out / "odvg"),
        (export_labels, out / "labels", *store, "--to", "odvg", "--out", out / "odvg2", "--images", "copy"),
    ):
        done = call(command, *arguments)
        assert done.exit_code == 0, done.output
    assert sorted(p.name for p in (out / "train").glob("*.tar")) == [f"pseudo-{n}.tar" for n in names]
    assert sorted(p.name for p in (out / "dedup/shards").glob("*.tar")) == [f"{n}.tar" for n in names]
    done = call(dedup, out / "crawl", "--against", out / "train", "--out", out / "none", "--drop")
    assert done.exit_code == 1 and "none of 16 samples is usable (dropped: near_duplicate 16)" in done.output
