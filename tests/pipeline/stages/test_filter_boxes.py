"""The stage on a store: what it writes, what it is a function of, what it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.config import FilterConfig
from pipeline.data.records import LABELS, REGIONS
from pipeline.errors import InputError, RunError
from pipeline.filtering.counting import count_phrases
from pipeline.io.hashing import digest_file
from pipeline.io.tables import footer, read_table
from pipeline.stages.jobs import FilterBoxes
from tests.fixtures.regions import region, table_of, write, write_store

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store"))


def test_labels_are_the_kept_regions_untouched(store, tmp_path):
    config = FilterConfig(threshold=0.5, ignore_above=0.3)
    report = FilterBoxes(settings=config, regions=store, out=tmp_path).run()
    tally = report.tallies["regions"]
    seen = kept = images = labelled = 0
    for path in store:
        rows = read_table(path, REGIONS).to_pylist()
        labels = read_table(tmp_path / Path(path).name, LABELS).to_pylist()
        good = [r for r in rows if r["score"] > 0.5 and r["x2"] > r["x1"] and r["y2"] > r["y1"]]
        assert [{k: v for k, v in r.items() if k != "status"} for r in labels if r["status"] == "keep"] == good
        assert {r["status"] for r in labels} == {"keep", "ignore"}
        seen, kept = seen + len(rows), kept + len(good)
        images, labelled = images + len({r["key"] for r in rows}), labelled + len({r["key"] for r in good})
    assert (tally.seen, tally.kept) == (seen, kept)
    assert (report.tallies["images"].seen, report.tallies["images"].kept) == (images, labelled)


def test_the_footer_holds_the_rules_as_they_apply(store, tmp_path):
    FilterBoxes(
        settings=FilterConfig.model_validate({"preset": "grit", "min_box_side": 2}), regions=store, out=tmp_path / "a"
    ).run()
    FilterBoxes(settings=FilterConfig(preset="grit"), regions=store, out=tmp_path / "b").run()
    a, b = (footer(pq.read_schema(tmp_path / n / "00000.parquet")) for n in "ab")
    assert (a["preset"], b["preset"], a["teacher"]) == ("", "grit", "glip@0123456789ab")
    rules = json.loads(a["rules"])
    assert (rules["threshold"], rules["cross_phrase_iou"], rules["min_box_side"]) == (0.65, 0.6, 2)
    written_out = FilterConfig.model_validate(json.loads(b["rules"]))
    again = FilterBoxes(settings=written_out, regions=store, out=tmp_path / "b").run()
    assert (again.done, again.skipped) == (0, 3)  # the same rules by another way are the same rules


def test_what_the_tables_say_is_part_of_the_fingerprint(store, tmp_path):
    config = FilterConfig(threshold=0.2, balance_to=2)
    marks = set()
    for n in (1, 2):
        count_phrases(config, store, tmp_path / f"{n}.parquet", min_count=n)
        FilterBoxes(settings=config, regions=store, out=tmp_path / str(n), counts=tmp_path / f"{n}.parquet").run()
        marks.add(footer(pq.read_schema(tmp_path / str(n) / "00000.parquet"))["fingerprint"])
    assert len(marks) == 2


def test_wrong_inputs_are_named_before_any_work(store, tmp_path):
    with pytest.raises(InputError, match=r"nowhere.parquet: no such file"):
        FilterBoxes(
            settings=FilterConfig(), regions=[*store, str(tmp_path / "nowhere.parquet")], out=tmp_path / "out"
        ).run()
    with pytest.raises(InputError, match=r"balance_to needs phrase counts"):
        FilterBoxes(settings=FilterConfig(balance_to=3), regions=store, out=tmp_path / "out").run()
    with pytest.raises(InputError, match=r"t.json: no such file"):
        FilterBoxes(settings=FilterConfig(), regions=store, out=tmp_path / "out", thresholds=tmp_path / "t.json").run()
    (tmp_path / "t.json").write_text('{"version": 1}')
    with pytest.raises(InputError, match=r"t.json: not what calibrate writes \(precision: Field required"):
        FilterBoxes(settings=FilterConfig(), regions=store, out=tmp_path / "out", thresholds=tmp_path / "t.json").run()
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard_fails_alone(store, tmp_path):
    bad = tmp_path / "00009.parquet"
    bad.write_bytes(Path(store[0]).read_bytes()[:500])
    with pytest.raises(RunError, match=r"1 of 4 shards failed.*00009.*not a Parquet file"):
        FilterBoxes(settings=FilterConfig(), regions=[*store, str(bad)], out=tmp_path / "out").run()
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 3


def test_several_workers_write_the_same_bytes(store, tmp_path):
    FilterBoxes(settings=FilterConfig(preset="owl_st"), regions=store, out=tmp_path / "1").run()
    FilterBoxes(settings=FilterConfig(preset="owl_st"), regions=store, out=tmp_path / "2", workers=2).run()
    names = sorted(p.name for p in (tmp_path / "1").iterdir())
    assert len(names) == 6 and names == sorted(p.name for p in (tmp_path / "2").iterdir())
    assert all(digest_file(tmp_path / "1" / n) == digest_file(tmp_path / "2" / n) for n in names)


def test_the_store_and_the_labels_may_lie_behind_a_url(store, tmp_path):
    import fsspec

    fs = fsspec.filesystem("memory")
    for path in store:
        fs.pipe_file(f"/filter/regions/{Path(path).name}", Path(path).read_bytes())
    urls = [f"memory://filter/regions/{Path(p).name}" for p in store]
    report = FilterBoxes(settings=FilterConfig(), regions=urls, out="memory://filter/labels").run()
    here = FilterBoxes(settings=FilterConfig(), regions=store, out=tmp_path).run()
    assert report.tallies == here.tallies and report.done == 3
    remote = pq.read_table(fs.open("/filter/labels/00001.parquet"))
    assert remote.to_pylist() == pq.read_table(tmp_path / "00001.parquet").to_pylist()
    assert FilterBoxes(settings=FilterConfig(), regions=urls, out="memory://filter/labels").run().skipped == 3


def test_an_empty_shard_gives_an_empty_table(tmp_path):
    paths = [
        write(tmp_path / "00000.parquet", table_of([])),
        write(tmp_path / "00001.parquet", table_of([region(score=0.1)])),
    ]
    report = FilterBoxes(
        settings=FilterConfig(preset="grit", max_per_phrase_text=2), regions=paths, out=tmp_path / "out"
    ).run()
    assert report.tallies["regions"].model_dump() == {"seen": 1, "kept": 0, "dropped": {"below_threshold": 1}}
    assert len(read_table(tmp_path / "out" / "00000.parquet", LABELS)) == 0


def test_nothing_of_it_imports_torch(store, tmp_path):
    gold = Path(store[0]).parents[1] / "gold"
    code = f"""
import sys
from pipeline.cli.filter import calibrate, count_phrases, filter_boxes
regions, out = ["--regions", {str(Path(store[0]).parent)!r}], {str(tmp_path)!r}
for command, arguments in (
    (filter_boxes, ["--sweep", "--gold", {str(gold)!r}]),
    (count_phrases, ["--min-count", "1", "--out", out + "/counts.parquet", "--set", "cross_phrase_iou=0.5"]),
    (calibrate, ["--gold", {str(gold)!r}, "--precision", "0.2", "--min-labels", "5", "--out", out + "/t.json"]),
    (filter_boxes, ["--thresholds", out + "/t.json", "--counts", out + "/counts.parquet", "--out", out + "/labels",
                    "--set", "cross_phrase_iou=0.5", "--set", "near_identical_iou=0.9"]),
):
    command(regions + arguments, standalone_mode=False)
print(sorted({{"torch", "torchvision", "spacy", "transformers", "PIL"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"
    assert len(list((tmp_path / "labels").glob("*.parquet"))) == 3
