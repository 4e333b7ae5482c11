"""dedup: contaminated shards are named, listed and cleaned; hashes are made once; a killed run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.cli.inspect import dedup
from pipeline.cli.label import build_shards
from pipeline.config import BuildShardsConfig, ParsePhrasesConfig
from pipeline.data.class_names import LabelSpaces
from pipeline.data.records import DatasetCard, GroundingRecord, Region
from pipeline.data.training_shards import ShardSet
from pipeline.dedup.image_sets import read_image_set
from pipeline.errors import InputError, RunError
from pipeline.io.tars import TarProblems, read_tar, write_tar
from pipeline.stages.jobs import BuildShards, Dedup, FilterBoxes, ParsePhrases
from tests.fixtures.crawl import GOOD, jpeg
from tests.fixtures.img2dataset import MODES, sample, scene
from tests.fixtures.photos import CHANGES, encoded, photos
from tests.pipeline.stages.test_labelling import KEEP, digests, label

ROOT = Path(__file__).resolve().parents[3]
EVALUATED = ("astronaut", "chelsea", "coffee", "rocket")


def record(key: str, image: Image.Image) -> bytes:
    region = Region(box=(0, 0, image.width / 2, image.height), phrase="thing")
    size = (image.height, image.width)
    return GroundingRecord(key=key, dataset="gold", kind="detection", image_size=size, regions=(region,)).to_json()


@pytest.fixture
def world(tmp_path):
    """A crawl of three shards with copies of two evaluation images; an evaluation set as a folder,
    and as a training shard."""
    (tmp_path / "crawl").mkdir()
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for i, name in enumerate(EVALUATED):
        place = tmp_path / "images" / ("deep" if i == 0 else "") / f"{name}.png"
        photos()[name].save(place)
    blank = encoded(Image.new("RGB", (64, 48), "white"))
    Image.new("RGB", (80, 80), "white").save(tmp_path / "images" / "blank.png")
    (tmp_path / "images" / "broken.jpg").write_bytes(jpeg(3)[:120])
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    mirrored = photos()["coffee"].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    shards = [
        {"000000000": encoded(photos()["china"]), "000000001": CHANGES["quality_50"](photos()["chelsea"]),
         "000000002": blank},
        {"000010000": CHANGES["half_size"](photos()["astronaut"]), "000010001": CHANGES["grey"](photos()["chelsea"])},
        {"000020000": encoded(mirrored), "000020001": encoded(photos()["camera"]), "000020002": jpeg(1)[:150]},
    ]  # fmt: skip
    for i, images in enumerate(shards):
        samples = ((key, {"jpg": data, "txt": b"a thing"}) for key, data in images.items())
        write_tar(tmp_path / "crawl" / f"{i:05d}.tar", samples)
    (tmp_path / "train").mkdir()
    gold = ((f"g{i}", photos()[name]) for i, name in enumerate(EVALUATED))
    write_tar(tmp_path / "train" / "gold-000000.tar", ((k, {"jpg": encoded(i), "json": record(k, i)}) for k, i in gold))
    card = DatasetCard(name="gold", kind="detection", label_space=("thing",))
    (tmp_path / "train" / "gold.dataset.json").write_text(card.model_dump_json())
    return tmp_path


def crawl_of(world: Path) -> list[str]:
    return [str(p) for p in sorted((world / "crawl").glob("*.tar"))]


def run(world: Path, *sets: str, **options):
    return Dedup(shards=crawl_of(world), against=sets, out=world / "out", **options).run()


def found(world: Path) -> list[tuple[str, str, str, str]]:
    rows = pq.read_table(world / "out" / "matches.parquet").to_pylist()
    assert all(row["distance"] <= 11 and row["details"] <= 72 for row in rows)
    return [(r["shard"], r["key"], r["set"], r["set_key"]) for r in rows]


CHELSEA, ASTRONAUT, GREY = ("00000", "000000001"), ("00001", "000010000"), ("00001", "000010001")


def test_copies_are_named_with_the_image_that_they_are_of(world):
    report, dropped = run(world, str(world / "images"), f"gold={world / 'train' / 'gold-*.tar'}")
    assert dropped is None
    assert found(world) == [
        (*CHELSEA, "images", "chelsea.png"), (*CHELSEA, "gold", "g1"),
        (*ASTRONAUT, "images", "deep/astronaut.png"), (*ASTRONAUT, "gold", "g0"),
        (*GREY, "images", "chelsea.png"), (*GREY, "gold", "g1"),
    ]  # fmt: skip
    assert (report.matched, report.pairs.kept) == (3, 6)
    assert report.records.dropped == {"broken_image": 1, "flat_image": 1} and report.records.kept == 6
    images, gold = report.sets["images"], report.sets["gold"]
    assert (images.matched, images.training_images, gold.matched) == (2, 3, 2)
    assert images.images == images.records.kept == 4 and images.records.dropped == {"broken_image": 1, "flat_image": 1}
    text = (world / "out" / "report.md").read_text()
    assert "| 00001/000010000 | images: deep/astronaut.png |" in text
    page = (world / "out" / "pairs.html").read_text()
    assert page.count("data:image/jpeg") == 12 and "image not available" not in page


def test_an_image_with_several_captions_is_one_image(world):
    """Flickr30k holds an image five times: one that leaked is one of a thousand, not five of five thousand."""
    images = [(name, encoded(photos()[name])) for name in ("chelsea", "camera")]
    captions = ((f"{name}_{n}", {"jpg": data, "txt": b"a thing"}) for name, data in images for n in range(3))
    write_tar(world / "flickr" / "00000.tar", captions)
    write_tar(world / "mine" / "00000.tar", ((f"m{n}", {"jpg": images[0][1], "txt": b"a thing"}) for n in range(2)))
    report, _ = Dedup(
        shards=[str(world / "mine" / "00000.tar")],
        against=str(world / "flickr"),
        out=world / "captions",
    ).run()
    flickr = report.sets["flickr"]
    assert (flickr.records.kept, flickr.images, flickr.matched, flickr.training_images) == (6, 2, 1, 1)
    assert (report.records.kept, report.matched, report.matched_images) == (2, 2, 1)
    assert report.lines()[:2] == [
        "2 records searched; 2 are near-duplicates of evaluation images, 1 different images",
        "  flickr  1 of 2 images (in 6 records) have a near-duplicate in the shards, where 1 images are one",
    ]


def test_mirrored_copies_are_found_if_asked_for(world):
    run(world, str(world / "images"), mirrored=True)
    rows = pq.read_table(world / "out" / "matches.parquet").to_pylist()
    assert [(r["key"], r["set_key"]) for r in rows if r["mirrored"]] == [("000020000", "coffee.png")]
    assert len(rows) == 4


def test_hashes_are_made_once_and_a_new_set_decodes_only_itself(world):
    run(world, str(world / "images"))
    hashes = world / "out" / "hashes"
    before = {p: p.stat().st_mtime_ns for p in hashes.rglob("*") if p.is_file()}
    run(world, str(world / "images"), f"gold={world / 'train' / 'gold-000000.tar'}", workers=2)
    after = {p: p.stat().st_mtime_ns for p in hashes.rglob("*") if p.is_file()}
    assert {p for p in after if before.get(p) != after[p]} == set((hashes / "against" / "gold").iterdir())
    write_tar(world / "crawl" / "00002.tar", [("x", {"jpg": encoded(photos()["rocket"]), "txt": b"a rocket"})])
    run(world, str(world / "images"))
    assert ("00002", "x", "images", "rocket.png") in found(world)


def test_drop_writes_shards_without_them_and_counts_them(world):
    _, dropped = run(world, str(world / "images"), drop=True)
    assert dropped.tallies["samples"].dropped == {"near_duplicate": 3} and dropped.tallies["samples"].kept == 5
    for shard in crawl_of(world):
        kept = {s.key: s.files for s in read_tar(world / "out" / "shards" / Path(shard).name)}
        before = {s.key: s.files for s in read_tar(shard)}
        gone = {key for _, key in (CHELSEA, ASTRONAUT, GREY)}
        assert kept == {key: files for key, files in before.items() if key not in gone}
    first = digests(world / "out" / "shards")
    _, again = run(world, str(world / "images"), f"gold={world / 'train' / 'gold-000000.tar'}", drop=True)
    assert again.skipped == 3 and digests(world / "out" / "shards") == first  # the second set has nothing more


def test_dropped_shards_are_those_of_the_last_run(world, caplog):
    shards, images, out = crawl_of(world), str(world / "images"), world / "out"
    Dedup(shards=shards, against=images, out=out, drop=True).run()
    write_tar(out / "shards" / "mine.tar", [("a", {"txt": b"not of dedup"})])
    before = digests(out / "shards")
    with caplog.at_level("WARNING", "glip_self_train"):
        _, dropped = Dedup(shards=shards[:1], against=images, out=out, drop=True).run()
    name = Path(shards[0]).stem
    left = {n: d for n, d in before.items() if Path(n).name.split(".")[0] in (name, "mine")}
    assert dropped.skipped == 1 and digests(out / "shards") == left and len(left) == 3
    assert [r.message.split(": ")[1] for r in caplog.records if "earlier run" in r.message] == [
        f"removed {Path(s).name} of an earlier run; that shard is not among these" for s in shards[1:]
    ]
    Path(shards[0]).write_bytes(b"no tar" * 200)  # what fails now leaves what it gave before
    Dedup(shards=shards, against=images, out=out, drop=True, max_failed=1).run()
    assert (out / "shards" / Path(shards[0]).name).exists()


def test_training_shards_are_cleaned_for_training(world):
    report, dropped = Dedup(
        shards=[str(world / "train" / "gold-000000.tar")],
        against=str(world / "crawl"),
        out=world / "clean",
        drop=True,
    ).run()
    assert report.matched == 2 and dropped.tallies["samples"].kept == 2
    clean = [str(world / "clean" / "shards" / "gold-000000.tar")]
    records = ShardSet(clean)
    assert [records.record(0, i).key for i in range(records.counts[0])] == ["g2", "g3"]
    assert LabelSpaces(clean).of(clean[0], "gold") == ("thing",)


@pytest.fixture(scope="module")
def store(tmp_path_factory, teacher):
    """A crawl with labels; its second image is in the evaluation set, encoded anew."""
    root = tmp_path_factory.mktemp("store")
    (root / "crawl").mkdir()
    for i, name in enumerate(("chelsea", "coffee")):
        samples = [
            (f"0000{i}{k:04d}", {"jpg": encoded(photos()[n].resize((160, 120))), "txt": text.encode()})
            for k, (n, text) in enumerate(zip((name, "china", "flower"), GOOD.values(), strict=False))
        ]
        write_tar(root / "crawl" / f"{i:05d}.tar", samples)
    crawl = [str(p) for p in sorted((root / "crawl").glob("*.tar"))]
    ParsePhrases(settings=ParsePhrasesConfig(), shards=crawl, out=root / "phrases").run()
    label(crawl, root, teacher)
    FilterBoxes(
        settings=KEEP, regions=[str(p) for p in sorted((root / "regions").glob("*.parquet"))], out=root / "labels"
    ).run()
    (root / "evaluated").mkdir()
    (root / "evaluated" / "cat.jpg").write_bytes(encoded(photos()["chelsea"], 60))
    Dedup(shards=crawl, against=str(root / "evaluated"), out=root / "dedup").run()
    return root, crawl


def build(store, out, without=None, link=False):
    root, crawl = store
    config = BuildShardsConfig(link=link)
    return BuildShards(
        settings=config, shards=crawl, out=out, phrases=root / "phrases", labels=root / "labels", without=without
    ).run()


def keys_of(folder: Path) -> list[str]:
    return [s.key for p in sorted(folder.glob("*.tar")) for s in read_tar(p)]


def test_a_crawls_training_shards_are_built_without_them(store, tmp_path):
    root, _ = store
    without = root / "dedup" / "matches.parquet"
    whole = build(store, tmp_path / "whole").tallies
    report = build(store, tmp_path / "clean", without)
    regions = report.tallies["regions"]
    assert report.tallies["samples"].dropped == {"near_duplicate": 1}
    assert regions.dropped["near_duplicate"] > 0 and regions.seen == whole["regions"].seen
    assert keys_of(tmp_path / "whole")[1:] == keys_of(tmp_path / "clean") and len(keys_of(tmp_path / "clean")) == 5
    # a list that comes later makes only the shards anew that have samples on it
    again = build(store, tmp_path / "whole", without)
    assert (again.done, again.skipped) == (1, 1) and digests(tmp_path / "whole") == digests(tmp_path / "clean")
    done = CliRunner().invoke(
        build_shards,
        ["--shards", str(root / "crawl"), "--phrases", str(root / "phrases"), "--labels", str(root / "labels"),
         "--out", str(tmp_path / "clean"), "--without", str(without)],
    )  # fmt: skip
    assert done.exit_code == 0 and "near_duplicate 1" in done.output and "2 already there" in done.output


def test_linked_images_are_hashed_and_their_links_lead_on_after_a_drop(store, tmp_path):
    root, crawl = store
    build(store, root / "linked", link=True)
    shards = [str(p) for p in sorted((root / "linked").glob("*.tar"))]
    report, dropped = Dedup(
        shards=shards, against=str(root / "evaluated"), out=tmp_path / "a" / "b" / "out", drop=True
    ).run()
    assert report.matched == 1 and report.records.kept == 6 and dropped.tallies["samples"].kept == 5
    assert "image not available" not in (tmp_path / "a" / "b" / "out" / "pairs.html").read_text()
    clean = ShardSet([str(tmp_path / "a" / "b" / "out" / "shards" / Path(s).name) for s in shards])
    images = {clean.record(0, i).key: clean.image(0, i) for i in range(clean.counts[0])}
    crawled = {s.key: s.files["jpg"] for s in read_tar(crawl[0])}
    assert images == {key: crawled[key] for key in list(crawled)[1:]}


def test_a_list_of_other_shards_is_told(store, tmp_path, caplog):
    table = pa.table({"shard": ["elsewhere"], "key": ["k"]})
    pq.write_table(table, tmp_path / "list.parquet")
    with caplog.at_level("WARNING", "glip_self_train"):
        build(store, tmp_path / "out", tmp_path / "list.parquet")
    assert "list.parquet lists samples of elsewhere, none of these shards" in caplog.text
    pq.write_table(table.rename_columns(["shard", "name"]), tmp_path / "wrong.parquet")
    with pytest.raises(InputError, match=r"wrong\.parquet: has no column key"):
        build(store, tmp_path / "out", tmp_path / "wrong.parquet")


def test_a_shard_that_cannot_be_read_is_set_aside(world):
    (world / "crawl" / "00001.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(RunError, match="00001"):
        run(world, str(world / "images"))
    report, _ = run(world, str(world / "images"), max_failed=1)
    assert [f.shard for f in report.failed] == ["00001"] and [row[:2] for row in found(world)] == [CHELSEA]


def call(*arguments: str):
    return CliRunner().invoke(dedup, list(arguments))


def test_the_command_tells_what_it_found(world):
    done = call(
        str(world / "crawl"), "--against", f"photos={world / 'images'}", "--out", str(world / "out"), "--drop",
        "--report-json", str(world / "report.json"),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "2 of 4 images (broken_image 1, flat_image 1 left out) have a near-duplicate" in done.output
    assert "near_duplicate 3" in done.output and (world / "out" / "shards" / "00002.tar").is_file()
    assert json.loads((world / "report.json").read_text()) == json.loads((world / "out" / "report.json").read_text())


def test_a_folder_in_a_bucket_is_looked_through_as_deep_as_one_on_a_disk(world):
    bucket = f"memory://{uuid.uuid4().hex}/images"
    fsspec.filesystem("memory").put(str(world / "images"), bucket, recursive=True)
    here, there = read_image_set(str(world / "images")), read_image_set(f"{bucket}/")
    assert there.files == here.files and "deep/" in "".join(here.files["files-00000"])
    images = [(i.key, i.data) for i in here.images("files-00000", TarProblems())]
    assert [(i.key, i.data) for i in there.images("files-00000", TarProblems())] == images


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--against", "images"], "nowhere: no such file"),
        (["crawl", "--against", "nowhere"], "nowhere: no such file"),
        (["crawl", "--against", "empty"], "empty: neither *.tar shards nor image files"),
        (["crawl", "--against", "images", "--against", "images=train"], "two evaluation sets are called images"),
        (["crawl", "--against", "images", "--distance", "17"], "17 is not in the range"),
        (["crawl"], "want --against EVALSET, or --within"),
    ],
)
def test_wrong_input_is_one_line(world, monkeypatch, arguments, words):
    monkeypatch.chdir(world)
    (world / "empty").mkdir()
    done = call(*arguments)
    assert done.exit_code == 2 and words in done.output and "Traceback" not in done.output
    assert not (world / "dedup").exists()


def test_help_says_how_it_goes_on():
    done = call("--help")
    assert done.exit_code == 0 and "Example: dedup" in done.output and "--without" in done.output


@pytest.mark.parametrize(
    ("option", "name", "parts"),
    [
        ("train/gold-000000.tar", "gold", ["gold-000000"]),
        ("mine=train/gold-*.tar", "mine", ["gold-000000"]),
        ("train", "train", ["gold-000000"]),
        ("images", "images", ["files-00000"]),
        ("crawl/{00000..00001}.tar", "00000", ["00000", "00001"]),
    ],
)
def test_sets_are_named_as_their_folder_or_shards(world, monkeypatch, option, name, parts):
    monkeypatch.chdir(world)
    images = read_image_set(option)
    assert (images.name, images.parts) == (name, parts)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_writes_the_same(tmp_path):
    (tmp_path / "crawl").mkdir()
    for shard in range(30):
        samples = ((f"{shard:05d}{i:04d}", {"jpg": jpeg(40 * shard + i, (640, 480)), "txt": b"x"}) for i in range(40))
        write_tar(tmp_path / "crawl" / f"{shard:05d}.tar", samples)
    write_tar(tmp_path / "gold-0.tar", ((f"g{i}", {"jpg": jpeg(7 * i, (320, 240))}) for i in range(60)))

    def start(out: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "pipeline", "dedup", str(tmp_path / "crawl"), "--against"]
        command += [str(tmp_path / "gold-0.tar"), "--out", str(out), "--drop"]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    assert start(tmp_path / "quiet").wait(120) == 0
    out, kills = tmp_path / "out", 0
    for stop_after in (("hashes/shards", 3), ("hashes/shards", 12), ("shards", 5)):
        process = start(out)
        while process.poll() is None:
            if len(list((out / stop_after[0]).glob("*.report.json"))) >= stop_after[1]:
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.002)
        kills += process.returncode == -signal.SIGKILL
    assert kills == 3
    done_before = {p: p.stat().st_mtime_ns for p in out.rglob("*.report.json")}
    assert len(done_before) > 30 and start(out).wait(120) == 0
    assert all(p.stat().st_mtime_ns == at for p, at in done_before.items())

    def whole(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    assert whole(out) == whole(tmp_path / "quiet")
    assert pq.read_table(out / "matches.parquet").num_rows == 60


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_copies_are_found_whatever_the_crawlers_resize_mode_or_it_says_that_they_are_not(mode, stated, tmp_path):
    (tmp_path / "images").mkdir()
    sizes = [(190, 120), (120, 190), (200, 130), (130, 210)]
    drawn = {f"{i:03d}": scene(i, sizes[i % 4]) for i in range(12)}
    for key, image in drawn.items():
        image.save(tmp_path / "images" / f"{key}.png")
    samples = [(key, sample(image, mode, "a thing")) for key, image in drawn.items()]
    write_tar(tmp_path / "00000.tar", ((k, f if stated else {"jpg": f["jpg"]}) for k, f in samples))
    job = Dedup(shards=(str(tmp_path / "00000.tar"),), against=(str(tmp_path / "images"),), out=str(tmp_path / "out"))
    report = job.run()[0]
    lines = "\n".join(report.lines())
    if mode == "center_crop":
        assert (report.cropped, report.squares) == ((12, 0) if stated else (0, 12))
        assert "12 images cannot be judged" in lines if stated else "12 images are squares and state no" in lines
    else:
        assert report.matched >= 11 + stated and (report.cropped, report.squares) == (0, 0)
        assert report.padded == 12 * (mode == "border") and ("without their padding" in lines) == (mode == "border")


def test_shards_without_images_to_compare_are_refused_by_name(world):
    write_tar(world / "none" / "00000.tar", ((f"{i}", {"tiff": jpeg(i), "txt": b"x"}) for i in range(4)))
    write_tar(world / "blank" / "00000.tar", ((f"{i}", {"png": encoded(Image.new("RGB", (9, 9)))}) for i in range(4)))
    for name, words in (("none", r"4 of 4 samples have no image .* found tiff, txt; want"), ("blank", "flat_image 4")):
        with pytest.raises(RunError, match=words):
            Dedup(shards=(str(world / name),), against=(str(world / "images"),), out=str(world / "out")).run()
        with pytest.raises(RunError, match=words):
            Dedup(shards=(str(world / "crawl"),), against=(str(world / name),), out=str(world / "out")).run()


def test_hidden_files_are_no_images_and_a_dangling_link_costs_itself(world):
    folder = world / "images"
    for name in ("._chelsea.png", ".ipynb_checkpoints/chelsea-checkpoint.png", "__MACOSX/chelsea.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(jpeg(1))
    (folder / "gone.jpg").symlink_to("/gone.jpg")
    (world / "train" / "._gold.dataset.json").write_bytes(b"\0\5\26\7")
    (world / "train" / "gone.dataset.json").symlink_to("/gone.json")
    (world / "other").mkdir()
    write_tar(world / "other" / "x.tar", [("x", {"jpg": jpeg(9)})])
    shards = (str(world / "train"), str(world / "other"))
    report, dropped = Dedup(shards=shards, against=(str(folder),), out=str(world / "out"), drop=True).run()
    dropped_images = report.sets["images"].records.dropped
    assert dropped_images == {"broken_image": 1, "flat_image": 1, "unreadable_file": 1} and dropped is not None
    assert [p.name for p in (world / "out" / "shards").glob("*.dataset.json")] == ["gold.dataset.json"]


def test_copies_among_the_shards_leave_the_first(world):
    """Against plain loops over the pairs that a search of the crawl in itself finds."""
    crawl, out = crawl_of(world), world / "within"
    report, dropped = Dedup(shards=crawl, within=True, out=out, drop=True, mirrored=True).run()
    rows = pq.read_table(out / "matches.parquet").to_pylist()
    assert [(r["shard"], r["key"], r["set"], r["set_part"], r["set_key"]) for r in rows] == [
        ("00001", "000010001", "within", "00000", "000000001")  # chelsea, grey, of the shard before
    ]
    assert report.within == 1 and report.matched == 0
    assert "1 records are near-duplicates of an earlier one of the shards" in "\n".join(report.lines())
    assert dropped.tallies["samples"].dropped["near_duplicate"] == 1
    left = [s.key for shard in sorted((out / "shards").glob("*.tar")) for s in read_tar(str(shard), TarProblems())]
    assert "000000001" in left and "000010001" not in left
    both, _ = Dedup(shards=crawl, against=(f"photos={world / 'images'}",), within=True, out=out, pictures=3).run()
    assert both.within == 1 and both.matched == 3
    assert (out / "pairs.html").stat().st_size > 1000
    with pytest.raises(InputError, match="want --against EVALSET, or --within"):
        Dedup(shards=crawl, out=out).run()


def test_a_chain_of_copies_keeps_what_is_no_copy_of_what_stays(tmp_path):
    """b is a copy of a, c of b but not of a: a and c stay."""
    images = {"a": photos()["coffee"]}
    pixels = np.asarray(images["a"].convert("RGB")).astype(int)
    rng = np.random.default_rng(0)
    for key, strength in (("a", 0), ("b", 1), ("c", 2)):
        noise = rng.integers(-40, 41, pixels.shape) * strength
        images[key] = Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))
    (tmp_path / "crawl").mkdir()
    write_tar(tmp_path / "crawl" / "00000.tar", ((k, {"jpg": encoded(i), "txt": b"x"}) for k, i in images.items()))
    for details in (8, 30, 72):
        report, _ = Dedup(
            shards=[str(tmp_path / "crawl" / "00000.tar")], within=True, out=tmp_path / str(details), details=details
        ).run()
        rows = pq.read_table(tmp_path / str(details) / "matches.parquet").to_pylist()
        gone = {r["key"] for r in rows}
        assert "a" not in gone and all(r["set_key"] not in gone for r in rows) and report.within == len(gone)
