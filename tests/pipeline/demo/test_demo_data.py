"""The demo's data: the same bytes every time, and true to its word."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image
from pycocotools.coco import COCO

from pipeline.demo.config import DemoDataConfig, DemoDataSummary
from pipeline.demo.formats import GOLD
from pipeline.demo.generate import SETS, folder_digest, generate_demo
from pipeline.demo.manifest import load_manifest
from pipeline.errors import InputError
from pipeline.execution.progress import Silent
from pipeline.io.tables import read_table

CONFIG = DemoDataConfig(
    seed=3,
    detection_scenes=40,
    grounding_scenes=60,
    attributes_scenes=30,
    crawled_scenes=100,
    validation_scenes=6,
    evaluation_scenes=10,
    absent_scenes=10,
    shard_size=40,
    useless_share=0.1,
    broken_share=0.06,
    max_aspect=1.2,
)
HELD_OUT = ("val_base", "val_novel", "eval_base", "eval_novel")
Demo = tuple[Path, DemoDataSummary]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    out = tmp_path_factory.mktemp("demo")
    return out, generate_demo(out, CONFIG)


def labels(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / name / "annotations.json").read_text())


def crawl(out: Path) -> dict[str, dict[str, bytes]]:
    """key -> extension -> bytes, of all the crawled shards."""
    samples: dict[str, dict[str, bytes]] = {}
    for shard in sorted((out / "crawl").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                samples.setdefault(key, {})[extension] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return samples


def gold(out: Path) -> list[dict[str, Any]]:
    tables = [read_table(p, GOLD) for p in sorted((out / "crawl_gold").glob("*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


def decodes(jpeg: bytes) -> bool:
    try:
        Image.open(io.BytesIO(jpeg)).load()
    except OSError:
        return False
    return True


def test_same_seed_same_bytes_and_another_seed_others(demo: Demo, tmp_path: Path) -> None:
    out, summary = demo
    again = generate_demo(tmp_path / "again", CONFIG)
    assert again == summary
    assert folder_digest(tmp_path / "again") == folder_digest(out)
    other = generate_demo(tmp_path / "other", CONFIG.model_copy(update={"seed": 4}))
    drawn = [name for name in SETS if name != "photos"]
    assert all(other.sets[name].sha256 != summary.sets[name].sha256 for name in drawn)


def test_changing_one_count_leaves_the_other_sets(demo: Demo, tmp_path: Path) -> None:
    changed = generate_demo(tmp_path, CONFIG.model_copy(update={"detection_scenes": 5}))
    assert {n for n in SETS if changed.sets[n].sha256 != demo[1].sets[n].sha256} == {"detection"}


def test_a_finished_folder_is_left_alone_and_a_strangers_refused(demo: Demo, tmp_path: Path) -> None:
    out, summary = demo
    before = (out / "summary.json").stat().st_mtime_ns
    assert generate_demo(out, CONFIG) == summary
    assert (out / "summary.json").stat().st_mtime_ns == before
    (tmp_path / "thesis.tex").write_text("three years of work")
    with pytest.raises(InputError, match="did not write"):
        generate_demo(tmp_path, CONFIG)
    assert (tmp_path / "thesis.tex").exists()


def test_an_interrupted_folder_is_made_anew(demo: Demo, tmp_path: Path) -> None:
    class Stop(Silent):
        def begin(self, stage: str, total: int, unit: str = "shards", before: int = 0) -> None:
            if stage == "crawl":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_demo(tmp_path, CONFIG, progress=Stop())
    assert not (tmp_path / "summary.json").exists()
    generate_demo(tmp_path, CONFIG)
    assert folder_digest(tmp_path) == folder_digest(demo[0])


@pytest.mark.parametrize("name", ["detection", "grounding", "attributes", *HELD_OUT])
def test_coco_opens_it_and_boxes_lie_inside_whole_images(demo: Demo, name: str) -> None:
    out, summary = demo
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(out / name / "annotations.json"))
    assert len(coco.getImgIds()) == summary.sets[name].images
    assert len(coco.getAnnIds()) == summary.sets[name].objects
    shapes = set()
    for image in coco.loadImgs(coco.getImgIds()):
        with Image.open(out / name / "images" / image["file_name"]) as picture:
            picture.load()
        assert picture.size == (image["width"], image["height"])
        assert min(picture.size) == CONFIG.image_size
        shapes.add(picture.size)
        for row in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            x, y, w, h = row["bbox"]
            assert x >= 0 and y >= 0 and x + w <= image["width"] and y + h <= image["height"]
            assert 8 <= max(w, h) <= 1 + CONFIG.large[1] and row["area"] == w * h
    assert len(shapes) > 1, "max_aspect=1.2 should give scenes of several shapes"


def test_spans_are_phrases_of_the_caption(demo: Demo) -> None:
    out, summary = demo
    attributes = {"small", "large", *load_manifest().colours}
    data = labels(out, "grounding")
    captions = {image["id"]: image["caption"] for image in data["images"]}
    for row in data["annotations"]:
        caption, ((start, end),) = captions[row["image_id"]], row["tokens_positive"]
        *before, noun = caption[start:end].split()
        assert noun in summary.base_nouns and set(before) <= attributes
        assert caption[:start].split()[-1] in ("a", "an"), "the article is outside the span"


def test_attributes_name_colours_and_no_noun(demo: Demo) -> None:
    out, _ = demo
    data = labels(out, "attributes")
    phrases: dict[int, list[str]] = {}
    for row in data["annotations"]:
        ((start, end),) = row["tokens_positive"]
        phrases.setdefault(row["image_id"], []).append(data["images"][row["image_id"] - 1]["caption"][start:end])
    assert len(phrases) == 30
    for said in phrases.values():
        colours = [text.split()[-2] for text in said]
        assert all(text.split()[-1] == "thing" for text in said) and set(colours) <= set(load_manifest().colours)
        assert len(set(colours)) == len(colours), "a colour alone must be enough"


def test_twins_are_told_apart(demo: Demo) -> None:
    data = labels(demo[0], "grounding")
    phrases: dict[int, list[str]] = {}
    for row in data["annotations"]:
        ((start, end),) = row["tokens_positive"]
        caption = data["images"][row["image_id"] - 1]["caption"]
        phrases.setdefault(row["image_id"], []).append(caption[start:end])
    twins = [p for p in phrases.values() if len({text.split()[-1] for text in p}) < len(p)]
    assert 0.6 * len(phrases) < len(twins) < 0.95 * len(phrases)
    assert all(len(set(p)) == len(p) for p in twins)


def test_novel_nouns_have_no_human_labels(demo: Demo) -> None:
    out, summary = demo
    novel = set(summary.novel_nouns)
    assert len(set(summary.base_nouns) - novel) == 20 and len(novel) == 10
    for name in ("detection", "eval_base", "val_base"):
        assert not novel & {c["name"] for c in labels(out, name)["categories"]}
    for image in labels(out, "grounding")["images"]:
        assert not novel & set(image["caption"].replace(",", " ").replace(".", " ").split())
    crawled = b" ".join(files["txt"] for files in crawl(out).values()).decode().lower()
    assert all(noun in crawled for noun in novel), "the crawl is where novel nouns are learnt"


@pytest.mark.parametrize("name", HELD_OUT)
def test_held_out_scenes_ask_for_four_different_nouns(demo: Demo, name: str) -> None:
    out, summary = demo
    nouns = summary.novel_nouns if name.endswith("novel") else summary.base_nouns
    data, asked = labels(out, name), json.loads((out / name / "prompts.json").read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    assert asked["classes"] == list(nouns) and len(asked["prompts"]) == summary.sets[name].images
    for prompt in asked["prompts"]:
        rows = [a for a in data["annotations"] if a["image_id"] == prompt["image_id"]]
        there = sorted(names[a["category_id"]] for a in rows)
        assert prompt["names"] == there and len(set(there)) == 4 and set(there) <= set(nouns)


def test_the_crawl_is_img2datasets_own_layout(demo: Demo) -> None:
    shards = sorted((demo[0] / "crawl").glob("*.tar"))
    assert [s.name for s in shards] == ["00000.tar", "00001.tar", "00002.tar"]
    samples = list(wds.WebDataset([str(s) for s in shards], shardshuffle=False, empty_check=False))
    assert len(samples) == CONFIG.crawled_scenes
    rows = [row for s in shards for row in pq.read_table(s.with_suffix(".parquet")).to_pylist()]
    for sample, row in zip(samples, rows, strict=True):
        meta = json.loads(sample["json"])
        assert meta == row and meta["key"] == sample["__key__"] and len(meta["key"]) == 9
        assert meta["caption"] == sample["txt"].decode()
    stats = json.loads((demo[0] / "crawl" / "00002_stats.json").read_text())
    assert stats["count"] == stats["successes"] == 20
    with tarfile.open(shards[0]) as tar:
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in tar} == {(0, 0, 0, 0o644)}


def test_broken_and_useless_are_there_in_the_stated_numbers(demo: Demo) -> None:
    out, summary = demo
    samples = crawl(out)
    broken = {key for key, files in samples.items() if not decodes(files["jpg"])}
    assert len(broken) == summary.sets["crawl"].broken == 6
    assert {samples[key]["jpg"][:2] for key in broken} == {b"", b"<!", b"\xff\xd8"}
    described = {row["key"] for row in gold(out)}
    assert not broken & described
    assert len(samples) - len(broken) - len(described) == summary.sets["crawl"].useless == 10


def test_gold_joins_on_key_and_span(demo: Demo) -> None:
    out, summary = demo
    samples, rows = crawl(out), gold(out)
    for row in rows:
        assert samples[row["key"]]["txt"].decode()[row["start"] : row["end"]] == row["phrase"]
        assert row["phrase"].lower().split()[-1] == row["noun"]
        assert row["novel"] == (row["noun"] in summary.novel_nouns)
        image = Image.open(io.BytesIO(samples[row["key"]]["jpg"]))
        assert 0 <= row["x1"] < row["x2"] <= image.width and 0 <= row["y1"] < row["y2"] <= image.height
    assert len(rows) == summary.sets["crawl_gold"].objects


def test_photographs_are_one_shard_with_captions(demo: Demo) -> None:
    out, summary = demo
    samples = list(wds.WebDataset(str(out / "photos" / "00000.tar"), shardshuffle=False))
    assert len(samples) == summary.sets["photos"].images >= 12
    modes = set()
    for sample in samples:
        image = Image.open(io.BytesIO(sample["jpg"]))
        assert max(image.size) <= CONFIG.max_photo_side and np.asarray(image).std() > 5
        assert sample["txt"]
        modes.add(image.mode)
    assert modes == {"L", "RGB"}, "greyscale photographs stay greyscale"
