"""Labels of class names: training records of a detection set, exports in the list's order, counts by name."""

from __future__ import annotations

import json

import pytest
import yaml
from pycocotools.coco import COCO

from pipeline.config import BuildShardsConfig, FilterConfig
from pipeline.data.class_names import LabelSpaces
from pipeline.data.dataset_cards import card_of
from pipeline.data.name_list import NameList
from pipeline.data.training_shards import ShardSet
from pipeline.errors import InputError, RunError
from pipeline.inspection.summary import inspect_shards
from pipeline.inspection.terminal import lines
from pipeline.stages.jobs import BuildShards, ExportLabels, FilterBoxes
from tests.fixtures.names import NAMES, named, write_images, write_named

FAR = (60, 60, 80, 80.004)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("names")
    rows = [
        named("hound", 0.9, FAR), named("dog", 0.8, (-0.5, 0, 10, 10)), named("cat", 0.4), named("fork lift", 0.05),
        named("cat", 0.7, key="b"), named("cat", 0.3, FAR, key="b"), named("dog", 0.2, key="c"),
    ]  # fmt: skip
    write_named(root / "regions" / "00000.parquet", rows)
    write_named(root / "regions" / "00001.parquet", [named("zebra", 0.8, key="e")])
    write_images(root / "crawl" / "00000.tar", ("a", "b", "c", "d"))
    write_images(root / "crawl" / "00001.tar", ("e",))
    config = FilterConfig(uncertain_above=0.1)
    FilterBoxes(regions=root / "regions", out=root / "labels", settings=config).run()
    return root


def build(store, out, **settings):
    job = BuildShards(shards=store / "crawl", labels=store / "labels", out=out, settings=BuildShardsConfig(**settings))
    report = job.run()
    shards = [str(p) for p in sorted(out.glob("*.tar"))]
    found = ShardSet(shards)
    records = [found.record(shard, row) for shard, n in enumerate(found.counts) for row in range(n)]
    return report, {r.key: r for r in records}, shards


def test_records_are_of_a_detection_set_of_the_names(store, tmp_path):
    report, records, shards = build(store, tmp_path / "out")
    card = card_of(shards[0], "pseudo")
    assert (card.kind, card.label_space) == ("detection", NAMES.names)
    assert LabelSpaces(shards).of(shards[1], "pseudo") == NAMES.names
    a = records["a"]
    assert (a.kind, a.caption, a.not_exhaustive, a.verified_absent) == ("detection", None, ("cat",), None)
    assert [(r.phrase, r.box, r.score, r.annotator, r.tokens_positive) for r in a.regions] == [
        ("dog", (60, 60, 80, 80), 0.9, "glip@0123456789ab", ()), ("dog", (0, 0, 10, 10), 0.8, "glip@0123456789ab", ()),
    ]  # fmt: skip
    assert records.keys() == {"a", "b", "e"} and records["b"].not_exhaustive is None
    assert report.tallies["samples"].dropped == {"no_label": 2}
    regions = report.tallies["regions"]
    assert (regions.kept, regions.dropped) == (4, {"uncertain_name": 1})
    assert build(store, tmp_path / "sure", keep_uncertain=False)[1]["a"].not_exhaustive is None


def test_links_and_a_second_run(store, tmp_path):
    _, linked, _ = build(store, store / "linked", link=True)
    assert linked == build(store, tmp_path / "copied")[1]
    assert build(store, tmp_path / "copied")[0].skipped == 2


def test_labels_of_two_lists_of_names_are_refused(store, tmp_path):
    other = NameList(names=("zebra", "dog", "cat", "fork_lift"))
    write_named(tmp_path / "regions" / "00001.parquet", [named("zebra", 0.8, key="e")], other)
    write_named(tmp_path / "regions" / "00000.parquet", [named("dog", 0.8)])
    FilterBoxes(regions=tmp_path / "regions", out=tmp_path / "labels").run()
    with pytest.raises(RunError, match=r"00001\.parquet: found other class names than the first shard's"):
        BuildShards(shards=store / "crawl", labels=tmp_path / "labels", out=tmp_path / "out").run()
    with pytest.raises(InputError, match=r"00001\.parquet: found other class names than .*00000\.parquet's"):
        ExportLabels(dirs=tmp_path / "labels", to="coco", out=tmp_path / "coco").run()


def test_coco_has_all_names_in_the_lists_order(store, tmp_path):
    ExportLabels(dirs=store / "labels", to="coco", out=tmp_path / "coco", crawl=store / "crawl").run()
    coco = COCO(str(tmp_path / "coco" / "pseudo.json"))
    assert [(c["id"], c["name"]) for c in coco.dataset["categories"]] == list(enumerate(NAMES.names, 1))
    by_key = {i["key"]: i for i in coco.dataset["images"]}
    assert by_key["a"]["not_exhaustive_category_ids"] == [4]
    assert [a["category_id"] for a in coco.loadAnns(coco.getAnnIds(by_key["a"]["id"]))] == [2, 2]
    assert (tmp_path / "coco" / by_key["a"]["file_name"]).is_file()


def test_other_formats_have_the_lists_order_too(store, tmp_path):
    ExportLabels(dirs=store / "labels", to="yolo", out=tmp_path / "yolo", crawl=store / "crawl").run()
    data = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
    assert data["names"] == dict(enumerate(NAMES.names))
    (file,) = (tmp_path / "yolo").rglob("b.txt")
    assert [line.split()[0] for line in file.read_text().splitlines()] == ["3"]
    ExportLabels(dirs=store / "labels", to="odvg", out=tmp_path / "odvg").run()
    labels = json.loads((tmp_path / "odvg" / "pseudo.label_map.json").read_text())
    assert labels == {str(i): name for i, name in enumerate(NAMES.names)}


def test_inspect_counts_by_name(store):
    files = [str(p) for p in sorted((store / "labels").glob("*.parquet"))]
    summary, pictures = inspect_shards(files, crawl=[str(p) for p in sorted((store / "crawl").glob("*.tar"))])
    assert summary.tables["names"] == {"dog": 2, "cat": 1, "zebra": 1, "fork_lift": 0}
    assert (summary.numbers["boxes"], summary.numbers["uncertain_names"]) == (4, 1)
    assert summary.numbers.get("ignore_regions", 0) == 0 and not summary.problems
    boxes = {p.key: [(b.phrase, b.status) for b in p.sample.boxes] for p in pictures}
    assert boxes == {
        "a": [("dog", "kept"), ("dog", "kept"), ("cat", "ignored")], "b": [("cat", "kept")], "e": [("zebra", "kept")],
    }  # fmt: skip
    assert all(p.image is not None for p in pictures)
    shown = lines(summary, top=2)
    at = shown.index("names (boxes)")
    assert [line.split() for line in shown[at + 1 : at + 4]] == [
        ["dog", "2"], ["cat", "1"], ["and", "2", "more,", "on", "the", "page"]
    ]  # fmt: skip
    whole, _ = inspect_shards([str(p) for p in sorted((store / "regions").glob("*.parquet"))])
    assert whole.tables["names"] == {"dog": 3, "cat": 3, "fork_lift": 1, "zebra": 1}


def test_captions_still_need_their_phrases(tmp_path):
    from tests.fixtures.exports import write_label_store

    write_label_store(tmp_path)
    with pytest.raises(InputError, match="found labels of captions; want the folder that parse-phrases wrote"):
        BuildShards(shards=tmp_path / "crawl", labels=tmp_path / "labels", out=tmp_path / "out").run()
