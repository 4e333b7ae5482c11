"""Every stage that reads a crawl reads images without shards, with the results of the same images in tars."""

from __future__ import annotations

import json

import pytest

from pipeline.config import BuildShardsConfig, ParsePhrasesConfig
from pipeline.data.records import REGIONS, RESCORED, GroundingRecord
from pipeline.errors import RunError
from pipeline.inspection.label_store import CrawlImages
from pipeline.inspection.summary import inspect_shards
from pipeline.io.samples import read_samples
from pipeline.io.shard_patterns import expand_crawl
from pipeline.io.tables import read_table
from pipeline.io.tars import read_tar, write_tar
from pipeline.stages.jobs import BuildShards, Dedup, ExportLabels, ParsePhrases, PseudoLabel, Rescore
from tests.fixtures import teachers
from tests.fixtures.crawl import jpeg
from tests.fixtures.loose_images import COUNTED, ODD, put, write_folder, write_image_table
from tests.pipeline.stages.test_labelling import digests, whole

NAME = "my-photos-1-ü-00000"
CAPTION = b"a red car next to a small green tree"


@pytest.fixture(scope="module")
def run(tmp_path_factory, teacher):
    """The stages from the folder to training shards."""
    root = tmp_path_factory.mktemp("loose")
    folder = str(write_folder(root / "my photos [1] ü"))
    return root, folder, whole(folder, root / "out", teacher)


def test_all_images_are_labelled_but_those_counted(run):
    root, _, (parsed, labelled, _, built) = run
    found = {f"shard_{reason}": n for reason, n in COUNTED.items()}
    for report in (parsed, labelled, built):
        assert found.items() <= report.numbers.items()
    assert parsed.tallies["samples"].kept == len(ODD) + 1
    assert labelled.tallies["samples"].dropped == {"empty_image": 1} and labelled.tallies["samples"].kept == len(ODD)
    assert set(read_table(root / f"out/regions/{NAME}.parquet", REGIONS)["key"].to_pylist()) == set(ODD.values())
    images = {(root / "my photos [1] ü" / path).read_bytes(): key for path, key in ODD.items()}
    samples = list(read_tar(root / f"out/train/pseudo-{NAME}.tar"))
    assert len(samples) == len({s.key for s in samples}) == built.tallies["samples"].kept > 4
    for sample in samples:
        record = GroundingRecord.model_validate_json(sample.files.pop("json"))
        ((_, image),) = sample.files.items()
        assert image in images and record.key == sample.key


def test_labels_are_those_of_the_same_images_in_a_tar(run, teacher, tmp_path):
    root, folder, _ = run
    (shard,) = expand_crawl(folder)
    write_tar(tmp_path / f"{NAME}.tar", [(s.key, s.files) for s in read_samples(shard)])
    whole([str(tmp_path / f"{NAME}.tar")], tmp_path / "out", teacher)
    for stage in ("regions", "labels"):
        ours, theirs = (read_table(f"{r}/out/{stage}/{NAME}.parquet", REGIONS) for r in (root, tmp_path))
        assert len(ours) and ours.equals(theirs)
    assert (root / f"out/train/pseudo-{NAME}.tar").read_bytes() == (
        tmp_path / f"out/train/pseudo-{NAME}.tar"
    ).read_bytes()


def test_a_second_run_does_nothing_and_one_elsewhere_writes_the_same_bytes(run, teacher, tmp_path):
    root, folder, _ = run
    assert [(r.done, r.skipped) for r in whole(folder, root / "out", teacher)] == [(0, 1)] * 4
    parsed = ParsePhrases(shards=folder, out=root / "out/phrases")
    assert parsed.finished() is not None
    whole(folder, tmp_path / "out", teacher)
    assert digests(tmp_path / "out") == digests(root / "out")


def test_labels_are_exported_and_inspected_with_their_images(run, tmp_path):
    root, folder, _ = run
    exported = ExportLabels(
        dirs=str(root / "out/labels"), to="coco", out=tmp_path / "coco", crawl=folder, phrases=root / "out/phrases"
    ).run()
    written = {p.read_bytes() for p in (tmp_path / "coco").rglob("*") if p.suffix in (".jpg", ".jpeg", ".png")}
    assert len(written) == exported.report.tallies["samples"].kept > 4
    crawl = expand_crawl(folder)
    assert CrawlImages(crawl).read(NAME, "ä ö/[b] (1)") == (root / "my photos [1] ü/ä ö/[b] (1).JPG").read_bytes()
    labels, phrases = [str(root / f"out/labels/{NAME}.parquet")], str(root / "out/phrases")
    summary, pictures = inspect_shards(labels, phrases=phrases, crawl=crawl)
    assert pictures and all(picture.image for picture in pictures)
    summary, pictures = inspect_shards(crawl)
    assert summary.kind == "crawl" and summary.numbers["samples"] == len(ODD) + 1
    assert COUNTED.items() <= summary.problems.items() and summary.problems["empty_image"] == 1


def test_regions_are_scored_again(run, tmp_path):
    root, folder, _ = run
    scorer = teachers.clip(tmp_path / "clip")
    report = Rescore(shards=folder, regions=root / "out/regions", scorer=scorer, out=tmp_path / "rescored").run()
    table = read_table(tmp_path / f"rescored/{NAME}.parquet", RESCORED)
    assert report.tallies["samples"].kept == len(ODD) and not table["region_text"].null_count


def test_near_duplicates_are_found_and_dropped(run, tmp_path):
    _, folder, _ = run
    put(tmp_path, "eval/e.jpg", jpeg(0, (96, 64)))  # the image of a.b/c
    report, dropped = Dedup(shards=folder, against=f"mine={tmp_path}/eval", out=tmp_path / "dedup", drop=True).run()
    assert report.matched == 1
    (kept,) = (tmp_path / "dedup/shards").glob("*.tar")
    assert {s.key for s in read_tar(kept)} == {*ODD.values(), "zero"} - {"a%2Eb/c"}
    assert dropped.tallies["samples"].dropped == {"near_duplicate": 1}


def test_links_into_images_of_no_tar_are_refused(run, tmp_path):
    root, folder, _ = run
    with pytest.raises(RunError, match="images that are in no tar, which cannot be linked to; want link=false"):
        BuildShards(
            shards=folder, phrases=root / "out/phrases", labels=root / "out/labels", out=tmp_path,
            settings=BuildShardsConfig(link=True),
        ).run()  # fmt: skip


def test_lists_tables_and_the_files_layout_are_labelled(teacher, tmp_path):
    rows = [{"image": {"bytes": jpeg(n, (96, 64)), "path": None}, "text": CAPTION.decode()} for n in range(3)]
    write_image_table(tmp_path / "table.parquet", rows)
    for n in range(3):
        put(tmp_path, f"files/00000/{n:09d}.jpg", jpeg(n, (96, 64)))
        put(tmp_path, f"files/00000/{n:09d}.json", json.dumps({"caption": CAPTION.decode()}).encode())
    put(tmp_path, "list.txt", b"files/00000/000000000.jpg\nfiles/00000/000000002.jpg\n")
    crawl = [str(tmp_path / name) for name in ("table.parquet", "files", "list.txt")]
    PseudoLabel(shards=crawl, teacher=teacher, out=tmp_path / "out/regions").run()  # parses them too
    tables = {p.stem: read_table(p, REGIONS) for p in (tmp_path / "out/regions").glob("*.parquet")}
    assert {name: len(set(t["key"].to_pylist())) for name, t in tables.items()} == {
        "table-00000": 3, "files-00000": 3, "list-00000": 2
    }  # fmt: skip
    assert tables["table-00000"]["score"].equals(tables["files-00000"]["score"])


def test_a_changed_picture_is_labelled_again(teacher, tmp_path):
    for n in range(2):
        put(tmp_path, f"photos/{n}.jpg", jpeg(n, (96, 64)))
        put(tmp_path, f"photos/{n}.txt", CAPTION)
    job = PseudoLabel(shards=str(tmp_path / "photos"), teacher=teacher, out=tmp_path / "out/regions")
    assert job.run().done == 1 and job.run().skipped == 1
    put(tmp_path, "photos/1.jpg", jpeg(7, (64, 96)))
    assert job.run().done == 1
    put(tmp_path, "photos/2.jpg", jpeg(8, (64, 96)))
    put(tmp_path, "photos/2.txt", CAPTION)
    report = job.run()
    assert report.done == 1 and report.tallies["samples"].kept == 3


def test_images_without_captions_are_refused_with_what_would_help(tmp_path):
    put(tmp_path, "photos/a.jpg", jpeg(0))
    with pytest.raises(
        RunError, match=r"1 of 1 samples cannot be read .*'no_caption': 1.*a file of captions: .*--captions"
    ):
        ParsePhrases(shards=str(tmp_path / "photos"), out=tmp_path / "out", settings=ParsePhrasesConfig()).run()
