"""pseudo-label with names of each image, and what later stages make of names that were not prompted."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools.coco import COCO

from pipeline.config import BuildShardsConfig, FilterConfig, NoisyLabelConfig, PromptConfig, PseudoLabelConfig
from pipeline.data.dataset_cards import card_of
from pipeline.data.image_names import FOOTER, ImageNames, names_for
from pipeline.data.name_list import footer_names
from pipeline.data.records import NAMED_REGIONS
from pipeline.data.training_shards import ShardSet
from pipeline.errors import InputError, RunError
from pipeline.inspection.summary import inspect_shards
from pipeline.io.tables import footer, read_table
from pipeline.io.tars import write_tar
from pipeline.stages.jobs import BuildShards, ExportLabels, FilterBoxes, MergeRegions, PseudoLabel
from pipeline.training.prompts import detection_prompt
from tests.fixtures.crawl import jpeg
from tests.fixtures.loose_images import put

OF_IMAGES = {
    "a": ["traffic_light", "Dog", "car"],
    "b": ["umbrella", "dog"],
    "c": [],
    "d": ["car", "Car"],
}
UNION = ("traffic_light", "Dog", "car", "umbrella")
ASKED = {"a": {"traffic_light", "Dog", "car"}, "b": {"umbrella", "Dog"}, "d": {"car"}}
SETTINGS = PseudoLabelConfig(floor=0.0, max_regions_per_phrase=20, batch_size=4)


def write_names(path, of_images):
    """Write names of images in the format of the path."""
    if path.suffix == ".parquet":
        kind = pa.list_(pa.string())
        columns = {"key": pa.array(list(of_images), pa.string()), "names": pa.array(list(of_images.values()), kind)}
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": k, "tags": v, "n": 1}) + "\n" for k, v in of_images.items()))
    else:
        path.write_text("key,names\n" + "".join(f"{k},{'. '.join(v)}\n" for k, v in of_images.items()))
    return str(path)


def label(crawl, teacher, names, out):
    return PseudoLabel(shards=crawl, names=names, teacher=teacher, out=out, settings=SETTINGS).run()


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    path = tmp_path_factory.mktemp("crawl") / "00000.tar"
    write_tar(path, [(key, {"jpg": jpeg(n, (80, 64))}) for n, key in enumerate("abcde")])
    return str(path)


@pytest.fixture(scope="module")
def store(crawl, teacher, tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    report = label(crawl, teacher, write_names(root / "names.parquet", OF_IMAGES), root / "regions")
    return root, report


def test_each_image_has_regions_of_its_own_names(store):
    root, report = store
    samples = report.tallies["samples"]
    assert samples.kept == 3 and samples.dropped == {"no_name": 1, "unlisted": 1}
    assert report.tallies["phrases"].seen == 6
    table = read_table(root / "regions/00000.parquet", NAMED_REGIONS)
    notes = footer(table.schema)
    assert footer_names(notes, "").names == UNION
    assert json.loads(notes[FOOTER]) == {"a": [0, 1, 2], "b": [3, 1], "d": [2]}
    rows = table.to_pylist()
    found = {key: {r["name"] for r in rows if r["key"] == key} for key in ASKED}
    assert found == ASKED and {r["key"] for r in rows} == set(ASKED)
    prompt = ". ".join(("traffic light", *UNION[1:]))
    assert all(prompt[r["start"] : r["end"]] == r["phrase"] and UNION[r["phrase_row"]] == r["name"] for r in rows)
    assert {r["phrase"] for r in rows if r["name"] == "traffic_light"} == {"traffic light"}


def test_regions_are_those_of_a_list_if_all_images_have_it(crawl, teacher, tmp_path):
    names = ["car", "tree", "dog"]
    label(crawl, teacher, write_names(tmp_path / "n.csv", dict.fromkeys("abcde", names)), tmp_path / "own")
    label(crawl, teacher, ". ".join(names), tmp_path / "all")
    own, of_all = (read_table(tmp_path / f"{d}/00000.parquet", NAMED_REGIONS) for d in ("own", "all"))
    assert own.num_rows and own.replace_schema_metadata().equals(of_all.replace_schema_metadata())


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_other_formats_give_the_same_names(suffix, tmp_path):
    path = write_names(tmp_path / f"n{suffix}", OF_IMAGES)
    names = names_for(path)
    assert isinstance(names, ImageNames) and names.names.names == UNION
    found = names.find(["a", "b", "c", "d", "e"])
    assert found == {"a": (0, 1, 2), "b": (3, 1), "c": (), "d": (2,)}


def test_loose_images_are_found_by_their_paths(teacher, tmp_path):
    for n in range(2):
        put(tmp_path, f"photos/x.y/{n}.jpg", jpeg(n, (80, 64)))
    names = write_names(tmp_path / "n.csv", {"x.y/0.jpg": ["dog"], "1.jpg": ["car"]})
    label(str(tmp_path / "photos"), teacher, names, tmp_path / "regions")
    rows = read_table(tmp_path / "regions/photos-00000.parquet", NAMED_REGIONS).to_pylist()
    assert {(r["key"], r["name"]) for r in rows} == {("x%2Ey/0", "dog"), ("x%2Ey/1", "car")}


def test_a_second_run_does_nothing_and_another_file_labels_anew(crawl, store, teacher, tmp_path):
    root, _ = store
    assert label(crawl, teacher, str(root / "names.parquet"), root / "regions").skipped == 1
    other = write_names(tmp_path / "names.parquet", OF_IMAGES | {"a": ["car"]})
    label(crawl, teacher, other, tmp_path / "regions")
    assert label(crawl, teacher, other, tmp_path / "regions").skipped == 1
    write_names(tmp_path / "names.parquet", OF_IMAGES)
    assert label(crawl, teacher, other, tmp_path / "regions").done == 1


def prompts(record, seeds=40):
    """Class texts of many training prompts of a record."""
    config, texts = PromptConfig(max_negatives=85), set()
    for seed in range(seeds):
        made = detection_prompt(
            record, UNION, config, np.random.default_rng(seed), token_count=lambda t: len(t.split()), max_tokens=256,
            noisy=NoisyLabelConfig(ignore_uncertain=seed % 2 == 0),
        )  # fmt: skip
        texts |= set(made.caption.split(". ")) - {""}
    return texts


@pytest.mark.parametrize("merged", [False, True])
def test_a_name_that_was_not_prompted_is_neither_present_nor_absent(store, crawl, teacher, merged, tmp_path):
    root, _ = store
    regions = root / "regions"
    if merged:
        settings = SETTINGS.model_copy(update={"max_regions_per_phrase": 5})
        PseudoLabel(
            shards=crawl, names=str(root / "names.parquet"), teacher=teacher, out=tmp_path / "two", settings=settings
        ).run()
        MergeRegions(regions=[str(regions), str(tmp_path / "two")], out=tmp_path / "merged").run()
        regions = tmp_path / "merged"
    table = read_table(regions / "00000.parquet", NAMED_REGIONS)
    best = {(r["key"], r["name"]): r["score"] for r in sorted(table.to_pylist(), key=lambda r: r["score"])}
    threshold = (best["a", "Dog"] + best["a", "car"]) / 2  # a has one of them
    present, other = ("Dog", "car") if best["a", "Dog"] > threshold else ("car", "Dog")
    config = FilterConfig(threshold=threshold, uncertain_above=1.0)
    FilterBoxes(regions=regions, out=tmp_path / "labels", settings=config).run()
    BuildShards(shards=crawl, labels=tmp_path / "labels", out=tmp_path / "train", settings=BuildShardsConfig()).run()
    (shard,) = (str(p) for p in (tmp_path / "train").glob("*.tar"))
    assert card_of(shard, "pseudo").label_space == UNION
    shards = ShardSet([shard])
    records = {r.key: r for r in (shards.record(0, row) for row in range(shards.counts[0]))}
    for key, record in records.items():
        found = {r.phrase for r in record.regions}
        assert found and found <= ASKED[key] and record.not_exhaustive is None
        assert set(record.verified_absent) == ASKED[key] - found
        assert prompts(record) == {name.replace("_", " ") for name in ASKED[key]}
    a = records["a"]
    assert present in {r.phrase for r in a.regions} and other in a.verified_absent

    ExportLabels(dirs=tmp_path / "labels", to="coco", out=tmp_path / "coco", crawl=crawl).run()
    coco = COCO(str(tmp_path / "coco/pseudo.json"))
    assert tuple(c["name"] for c in coco.dataset["categories"]) == UNION
    negatives = {i["key"]: {UNION[n - 1] for n in i["neg_category_ids"]} for i in coco.dataset["images"]}
    assert negatives == {key: set(record.verified_absent) for key, record in records.items()}
    summary, _ = inspect_shards([str(tmp_path / "labels/00000.parquet")], crawl=[crawl])
    assert set(summary.tables["names"]) == set(UNION) and not summary.problems


def test_an_uncertain_name_is_not_absent(store, crawl, tmp_path):
    root, _ = store
    table = read_table(root / "regions/00000.parquet", NAMED_REGIONS)
    threshold = max(table["score"].to_pylist()) - 1e-6
    config = FilterConfig(threshold=threshold, uncertain_above=0.0)
    FilterBoxes(regions=root / "regions", out=tmp_path / "labels", settings=config).run()
    BuildShards(shards=crawl, labels=tmp_path / "labels", out=tmp_path / "train").run()
    shards = ShardSet([str(p) for p in (tmp_path / "train").glob("*.tar")])
    record = shards.record(0, 0)
    found = {r.phrase for r in record.regions}
    assert set(record.not_exhaustive or ()) == ASKED[record.key] - found and record.verified_absent == ()


def test_stores_of_other_image_names_are_not_merged(store, crawl, teacher, tmp_path):
    root, _ = store
    names = write_names(tmp_path / "n.parquet", OF_IMAGES | {"b": ["Dog", "umbrella", "car"]})
    label(crawl, teacher, names, tmp_path / "two")
    with pytest.raises(RunError, match="found other class names"):
        MergeRegions(regions=[str(root / "regions"), str(tmp_path / "two")], out=tmp_path / "merged").run()


def test_files_without_names_are_refused(crawl, teacher, tmp_path):
    for content, error in [
        ("key,words\na,dog\n", r"found columns key, words; want a column names, name, classes, labels, tags"),
        ("key,names\n", "found no name"),
        ("key,names\na,dog. 12\n", "found the name '12'; want one with a letter"),
        ('key,names\na,"dog, cat"\n', "found ',' in the name 'dog, cat'"),
    ]:
        (tmp_path / "n.csv").write_text(content)
        with pytest.raises(InputError, match=error):
            label(crawl, teacher, str(tmp_path / "n.csv"), tmp_path / "out")
    with pytest.raises(RunError, match=r"class names of none of its samples .* has 'x/y'; want keys such as 'a'"):
        label(crawl, teacher, write_names(tmp_path / "n.csv", {"x/y": ["dog"]}), tmp_path / "out")
    with pytest.raises(InputError, match=r"gone\.csv: no such file"):
        names_for(str(tmp_path / "gone.csv"))
