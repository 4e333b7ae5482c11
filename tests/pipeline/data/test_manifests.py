"""The manifests that ship: whole, readable by name from anywhere, and true to what the readers know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from pipeline.cli import app as cli
from pipeline.data.manifests import (
    BUILTIN_FOLDER,
    FOLDER_VARIABLE,
    SetManifest,
    load_manifest,
    manifest_names,
    read_manifest,
)
from pipeline.errors import InputError
from pipeline.readers.registry import READ, load_format
from tests.fixtures.crawl import jpeg
from tests.pipeline.readers.layouts import COCO, put

WANTED = {
    "objects365-v1", "objects365-v2", "openimages-v6", "visual-genome", "imagenet-boxes", "flickr30k-entities",
    "mdetr-goldg",
    "gqa", "coco", "lvis-v1", "refcoco", "odinw-13", "odinw-35", "pascal-voc", "odvg", "grit", "glip-captions", "cc3m",
    "cc12m",
    "sbu", "fourods", "goldg", "glip-t", "glip-l", "v3det", "demo",
}  # fmt: skip


def test_all_the_sets_are_there():
    assert {path.stem for path in BUILTIN_FOLDER.glob("*.yaml")} >= WANTED


@pytest.mark.parametrize("name", sorted(WANTED - {"demo"}))
def test_a_manifest_is_whole(name):
    manifest = load_manifest(name)
    assert manifest.title and manifest.source and (manifest.sets or manifest.mixture)
    for label, entry in manifest.sets.items():
        if entry.kind == "crawl":
            assert entry.shards_pattern
            continue
        format_ = load_format(entry.format)
        assert entry.annotations and entry.format in READ
        assert set(format_.needed) <= set(entry.companions) <= set(format_.companions), label
        assert set(entry.options) <= set(format_.options), label
        assert entry.kind in (format_.kind, "evaluation")
        assert not entry.counts or entry.counts_source, f"{label}: counts without a source"
        assert all(f.checksum_source for f in entry.files if f.md5 or f.sha256), f"{label}: a checksum without a source"
    assert set(read_manifest(name)) == {*manifest.sets, *(s.set for s in manifest.mixture)}


@pytest.mark.parametrize("name", sorted(WANTED - {"demo"}))
def test_a_manifest_says_what_of_it_was_checked(name):
    """Whatever it states is named as compared, and with what, or as not compared; never as both."""
    manifest = load_manifest(name)
    for label, entry in (manifest.sets or {"": manifest}).items():
        stated = {"page"} | ({"copies"} if manifest.mixture else set())
        if isinstance(entry, SetManifest):
            stated |= {"licence"} if entry.licence or manifest.licence else set()
            stated |= {"files", "checksums"} if entry.files else set()
            stated |= {"counts"} if entry.counts else set()
            stated |= {"layout"} if entry.annotations else set()
            stated |= {"prompts"} if entry.class_prompts else set()
        assert stated <= {*manifest.checked, *manifest.unchecked, *entry.checked, *entry.unchecked}, label
        assert not set(entry.checked) & set(entry.unchecked) and not set(manifest.checked) & set(manifest.unchecked)
        assert all(
            len(text) > 10 for of in (manifest, entry) for text in (*of.checked.values(), *of.unchecked.values())
        )


def test_one_file_has_one_size_and_sum_wherever_it_is_named():
    stated: dict[str, tuple] = {}
    for name in WANTED - {"demo"}:
        for entry in load_manifest(name).sets.values():
            for file in entry.files:
                if file.url:
                    assert file.url.rsplit("/", 1)[-1].split("?")[0].endswith(file.name), file.url
                    assert stated.setdefault(file.url, (file.bytes, file.md5, file.sha256)) == (
                        file.bytes,
                        file.md5,
                        file.sha256,
                    )
                assert file.bytes is None or file.checksum_source, f"{file.name}: a size without a source"


def test_set_names_are_unique_over_all_manifests():
    """So that a mixture's shards lie side by side."""
    names = [n for m in WANTED - {"odinw-13"} for n in load_manifest(m).sets]
    assert len(names) == len(set(names))


def test_the_papers_multiplicities():
    copies = {s.set: s.copies for s in load_manifest("glip-l").mixture}
    assert copies == {
        "goldg_flickr30k_train": 8, "goldg_mixed_no_coco": 4, "objects365v1_train": 2, "visual_genome_objects": 3,
        "imagenet_boxes": 2, "openimages_train": 1,
    }  # fmt: skip
    assert {s.copies for s in load_manifest("glip-t").mixture} == {1}
    assert len(load_manifest("odinw-13").sets) == 13 and len(load_manifest("odinw-35").sets) == 35


def test_odinws_prompts_are_the_published_ones_in_both_lists():
    small, large = (load_manifest(f"odinw-{n}").sets for n in (13, 35))
    assert all(large[name].class_prompts == entry.class_prompts for name, entry in small.items())
    assert {name for name, entry in large.items() if entry.class_prompts} == {
        "odinw_Aquarium", "odinw_ChessPieces", "odinw_NorthAmericaMushrooms", "odinw_Packages", "odinw_pothole",
    }  # fmt: skip
    (hole,) = small["odinw_pothole"].class_prompts.values()
    assert f"{hole.prefix}{hole.prompt_name}{hole.suffix}" == "there are some holes on the road"
    mushrooms = small["odinw_NorthAmericaMushrooms"].class_prompts
    assert [p.prompt_name for p in mushrooms.values()] == ["flat mushroom", "yellow mushroom"]


def call(*arguments: str):
    return CliRunner().invoke(cli.main, list(arguments))


def test_list_and_show():
    done = call("datasets", "list")
    assert done.exit_code == 0 and all(name in done.output for name in WANTED)
    assert {row["name"] for row in json.loads(call("datasets", "list", "--json").output)} >= WANTED
    shown = call("datasets", "show", "pascal-voc").output
    assert "md5 c52e279531787c972589f7e41ab4ae64" in shown and "VOCdevkit/VOC2007/Annotations" in shown
    shown = call("datasets", "show", "lvis-v1").output
    assert "checked, counts: 19,809 less the 15,000" in shown and "not checked, licence: from memory" in shown
    assert "8 x goldg_flickr30k_train" in call("datasets", "show", "glip-l").output
    for name in WANTED:
        assert call("datasets", "show", name).exit_code == 0
        assert json.loads(call("datasets", "show", name, "--json").output)["name"]
    done = call("datasets", "show", "objects366")
    assert done.exit_code == 2 and "no manifest of that name; there are cc12m" in done.output


def test_ingest_by_name_of_one_of_ours_and_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = {**COCO, "images": [{**i, "file_name": f"{i['id']}.jpg"} for i in COCO["images"]]}
    put(tmp_path / "coco" / "annotations" / "instances_val2017.json", rows)
    (tmp_path / "coco" / "val2017").mkdir()
    for i in (7, 8, 9):
        (tmp_path / "coco" / "val2017" / f"{i}.jpg").write_bytes(jpeg(i))
    done = call("ingest", "coco", "--only", "coco2017_val", "--out", "train", "--set", "max_failed_share=0.5")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "train" / "coco2017_val.dataset.json").read_text())["label_space"] == [
        "person",
        "dog",
    ]
    own = {
        "kind": "detection",
        "format": "coco",
        "annotations": "annotations/instances_val2017.json",
        "images_folder": "val2017",
    }
    put(tmp_path / "mine" / "pets.yaml", {"sets": {"pets": own}})
    put(tmp_path / "mine" / "both.yaml", {"mixture": [{"manifest": "pets", "set": "pets", "copies": 2}]})
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "mine"))
    assert "pets" in manifest_names()
    done = call("ingest", "both", "--root", "coco", "--out", "train", "--set", "max_failed_share=0.5")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "train" / "pets-000000.tar").read_bytes() != b""
    put(tmp_path / "mine" / "both.yaml", {"mixture": [{"manifest": "pets", "set": "cats"}]})
    assert "no set 'cats' in pets; it has pets" in call("ingest", "both", "--out", "train").output


def test_crawls_are_not_ingested():
    done = call("ingest", "cc3m", "--out", "x")
    assert done.exit_code == 2 and "crawls need no ingest" in done.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sets: {a.b: {kind: detection, format: coco}}", "want a name of letters"),
        ("sets: {a: {kind: detection, format: kitti}}", "sets.a.format"),
        ("mixture: [{manifest: coco, set: x, copies: 0}]", "mixture.0.copies"),
        ("sets: {a: {kind: detection, format: coco, files: [{name: x, md5: abc}]}}", "sets.a.files.0.md5"),
        ("{checked: {weather: fine}, mixture: [{manifest: coco, set: x}]}", "checked.weather"),
        ("a: [", "not YAML"),
    ],
)
def test_wrong_manifests_are_named(tmp_path, text, message):
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_manifest(tmp_path / "m.yaml")


def test_the_published_ones_use_no_unknown_key():
    known = {"title", "source", "licence", "note", "checked", "unchecked", "sets", "mixture"}
    for name in WANTED - {"demo"}:
        assert set(yaml.safe_load(Path(BUILTIN_FOLDER, f"{name}.yaml").read_text())) <= known
