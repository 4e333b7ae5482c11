"""The stage around the formats: what it reads, what it refuses, and that a killed export looks like none."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner
from PIL import ExifTags, Image

from pipeline.cli import app as cli
from pipeline.errors import InputError
from pipeline.io.tars import write_tar
from pipeline.stages import export
from pipeline.stages.jobs import ExportLabels
from pipeline.writers.registry import WRITTEN
from pipeline.writers.unique_keys import UniqueNames
from tests.fixtures import exports
from tests.fixtures.crawl import jpeg, write_crawl
from tests.fixtures.store import Store

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def mixed(tmp_path):
    return exports.write_mixed(tmp_path / "train")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("labels")
    exports.write_label_store(root)
    return root


def call(*arguments: object):
    return CliRunner().invoke(cli.export_labels, [str(a) for a in arguments])


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- what it reads


@pytest.mark.parametrize("to", ["coco", "odvg", "glip", "fiftyone", "yolo", "voc"])
def test_labels_linked_shards_and_copied_shards_give_the_same(store, tmp_path, to):
    """A label store with its crawl, and what build-shards makes of it, with the images or with links to them."""
    copied, linked = exports.build(store, tmp_path / "copied"), exports.build(store, tmp_path / "linked", link=True)
    crawl = str(store / "crawl" / "{00000..00001}.tar")
    ExportLabels(dirs=[str(copied)], out=tmp_path / "a", to=to).run()
    ExportLabels(dirs=[str(linked)], out=tmp_path / "b", to=to).run()
    done = ExportLabels(dirs=[str(store / "labels")], out=tmp_path / "c", to=to, crawl=[crawl]).run()
    assert done.report.tallies["samples"].dropped == {"broken_image": 1}  # as build-shards counts it
    a, b, c = (files(tmp_path / name) for name in "abc")
    for each in (a, b, c):
        each.pop("export.report.json")  # it has the fingerprint of its inputs
    assert a == b and len(a) >= 5
    assert c == {k.replace("/pseudo-0", "/0"): v.replace(b"/pseudo-0", b"/0") for k, v in a.items()}


def test_labels_alone_need_no_crawl(store, tmp_path):
    with_crawl = ExportLabels(
        dirs=[str(store / "labels")], out=tmp_path / "a", to="coco", crawl=[str(store / "crawl")]
    ).run()
    done = ExportLabels(dirs=[str(store / "labels")], out=tmp_path / "b", to="coco").run()
    assert not list(tmp_path.rglob("b/images")) and "images_copied" not in done.report.numbers
    rows = json.loads((tmp_path / "b" / "pseudo.json").read_text())
    assert rows["images"][0]["file_name"] == f"images/00000/{rows['images'][0]['key']}.jpg"
    assert len(rows["images"]) == done.report.tallies["samples"].kept >= with_crawl.report.tallies["samples"].kept
    assert {"extra_uncertain", "extra_score", "extra_root", "extra_annotator"} <= done.report.numbers.keys()
    assert any(row["iscrowd"] for row in rows["annotations"])


def test_images_none_writes_labels_that_unpacked_shards_fit(mixed, tmp_path):
    ExportLabels(dirs=[str(mixed)], out=tmp_path / "out", to="coco", images="none").run()
    ExportLabels(dirs=[str(mixed)], out=tmp_path / "full", to="coco").run()
    assert not (tmp_path / "out" / "images").exists()
    for name in ("det.json", "gr.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "full" / name).read_bytes()


def test_images_without_a_label_can_be_left_out(mixed, tmp_path):
    done = ExportLabels(dirs=[str(mixed)], out=tmp_path / "out", to="odvg", drop_empty=True).run()
    assert done.report.tallies["samples"].dropped == {"no_region": 2} and done.report.tallies["samples"].kept == 3
    assert len((tmp_path / "out" / "gr.jsonl").read_text().splitlines()) == 2


def test_sets_without_a_card_have_the_classes_that_occur(mixed, tmp_path):
    for card in mixed.glob("*.dataset.json"):
        card.unlink()
    ExportLabels(dirs=[str(mixed / "det-000000.tar")], out=tmp_path / "out", to="coco").run()
    rows = json.loads((tmp_path / "out" / "det.json").read_text())
    assert [c["name"] for c in rows["categories"]] == ["car", "tree"] and rows["licenses"] == []


def test_two_kinds_of_one_name_and_odd_names_get_files_of_their_own(tmp_path):
    one = exports.detection("a", exports.CAR).model_copy(update={"dataset": "../s"})
    two = exports.grounding("a", exports.BLUE).model_copy(update={"dataset": "../s"})
    exports.write_shard(tmp_path / "train" / "s-0.tar", [one])
    exports.write_shard(tmp_path / "train" / "s-1.tar", [two])
    ExportLabels(dirs=[str(tmp_path / "train")], out=tmp_path / "out", to="coco").run()
    assert {p.name for p in (tmp_path / "out").glob("*.json")} == {
        "___s.json",
        "___s-grounding.json",
        "export.report.json",
    }


def test_broken_records_are_counted_and_their_neighbours_stay(mixed, tmp_path):
    good = exports.grounding("good", exports.BLUE)
    samples = [
        ("a", {"jpg": jpeg(0), "json": b'{"key": "a"}'}),
        ("b", {"jpg": jpeg(0)}),
        ("c", {"json": good.to_json()}),
        ("d", {"json": good.to_json(), "link": b"{}"}),
        ("e", {"jpg": jpeg(0, (90, 64)), "json": good.model_copy(update={"key": "e"}).to_json()}),
        ("good", {"jpg": jpeg(0), "json": good.to_json()}),
        ("good", {"jpg": jpeg(0), "json": good.to_json()}),
    ]
    write_tar(mixed / "gr-000002.tar", samples)
    done = ExportLabels(dirs=[str(mixed)], out=tmp_path / "out", to="coco").run()
    assert done.report.tallies["samples"].dropped == {"bad_record": 2, "no_image": 1, "no_record": 1}
    assert done.report.tallies["samples"].kept == 7
    assert done.report.numbers["shard_duplicate_member"] >= 1 and done.report.numbers["images_of_another_size"] == 1
    notes = json.loads((tmp_path / "out" / "export.report.json").read_text())["notes"]
    assert any(note.startswith("gr-000002: a: ") for note in notes)


def test_images_that_lie_on_their_side_are_told(tmp_path):
    image, buffer = Image.new("RGB", (80, 64)), io.BytesIO()
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = 3
    image.save(buffer, "JPEG", exif=exif)
    write_tar(tmp_path / "t" / "a.tar", [("a", {"jpg": buffer.getvalue(), "json": exports.grounding("a").to_json()})])
    done = ExportLabels(dirs=[str(tmp_path / "t")], out=tmp_path / "out", to="coco").run()
    assert done.report.numbers["images_with_exif_orientation"] == 1
    assert (tmp_path / "out" / "images" / "a" / "a.jpg").read_bytes() == buffer.getvalue()


def test_names_are_unique_and_numbered_as_their_keys():
    with UniqueNames() as names:
        assert [tuple(names.take("s", k)) for k in ("000000042", "000000042", "1234567890", "a")] == [
            ("000000042", 42, False), ("000000042~2", 10**12 + 2, True), ("1234567890", 1234567890, False),
            ("a", 10**12 + 4, False),
        ]  # fmt: skip
        assert [tuple(names.take("t", k)) for k in ("a", "a", "a~2", "000000042")] == [
            ("a", 1, False), ("a~2", 2, True), ("a~2~2", 3, True), ("000000042", 4, False),
        ]  # fmt: skip


# --- again, killed, somewhere else


def test_what_is_there_is_not_made_again_and_another_export_is_refused(mixed, tmp_path):
    ExportLabels(dirs=[str(mixed)], out=tmp_path / "out", to="coco").run()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    again = ExportLabels(dirs=[str(mixed)], out=tmp_path / "out", to="coco").run()
    assert again.report.skipped == 3 and {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before
    for options in ({"to": "odvg"}, {"to": "coco", "drop_empty": True}):
        with pytest.raises(InputError, match="another export is there"):
            ExportLabels(dirs=[str(mixed)], out=tmp_path / "out", **options).run()
    (tmp_path / "out" / "gr.json").unlink()
    assert ExportLabels(dirs=[str(mixed)], out=tmp_path / "out", to="coco").run().report.done == 3
    assert (tmp_path / "out" / "gr.json").is_file()


KILLED = """
import os, signal, sys, time
from pathlib import Path
from pipeline.execution.progress import Silent
from pipeline.stages.jobs import ExportLabels

class Killer(Silent):
    def shard(self, report, skipped):
        if report.shard == sys.argv[4]:
            while not list(Path(sys.argv[2]).rglob(sys.argv[5])):  # its threads may be slower than this one
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

ExportLabels(dirs=[sys.argv[1]], out=sys.argv[2], to=sys.argv[3], progress=Killer()).run()
"""


@pytest.mark.parametrize("to", ["coco", "yolo"])
def test_a_killed_export_looks_like_none_and_goes_on(mixed, tmp_path, to):
    command = [sys.executable, "-c", KILLED, str(mixed), str(tmp_path / "out"), to, "gr-000001", "000000007.jpg"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    there = {name.rsplit("/", 1)[-1] for name in files(tmp_path / "out") if not name.endswith(".tmp")}
    assert not [name for name in there if name.endswith((".json", ".yaml"))] and "000000007.jpg" in there
    with pytest.raises(InputError, match="another export is begun"):
        ExportLabels(dirs=[str(mixed)], out=tmp_path / "out", to="odvg").run()
    ExportLabels(dirs=[str(mixed)], out=tmp_path / "out", to=to).run()
    ExportLabels(dirs=[str(mixed)], out=tmp_path / "quiet", to=to).run()
    assert files(tmp_path / "out") == files(tmp_path / "quiet")


def test_a_failed_export_leaves_no_temporary_files(mixed, tmp_path):
    exports.write_shard(mixed / "gr-000002.tar", [exports.grounding(f"k{i}", exports.BLUE) for i in range(40)])
    whole = (mixed / "gr-000002.tar").read_bytes()
    (mixed / "gr-000002.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"gr-000002\.tar: truncated_tar: .* cut off after"):
        ExportLabels(dirs=[str(mixed)], out=tmp_path / "out", to="coco").run()
    names = set(files(tmp_path / "out"))
    assert not [n for n in names if n.endswith((".tmp", ".json", ".yaml"))] and export.BEGUN in names


@pytest.mark.slow
def test_shards_and_exports_may_lie_in_a_store(mixed, store, tmp_path, monkeypatch):
    server = Store(tmp_path / "s3")
    server.start()
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3").clear_instance_cache()
        server.make_bucket("bkt")
        s3 = fsspec.filesystem("s3")
        for path in mixed.iterdir():
            s3.put_file(str(path), f"s3://bkt/train/{path.name}")
        for to in WRITTEN:
            place = {"image_root": "/"} if to == "label-studio" else {}
            ExportLabels(dirs=["s3://bkt/train"], out=f"s3://bkt/{to}", to=to, **place).run()
            ExportLabels(dirs=[str(mixed)], out=tmp_path / to, to=to, **place).run()
            s3.get(f"s3://bkt/{to}/", str(tmp_path / f"{to}-again"), recursive=True)
            found, wanted = files(tmp_path / f"{to}-again"), files(tmp_path / to)
            for each in (found, wanted):
                each.pop("export.report.json")  # its fingerprint is of the store's tags
            assert found == wanted
        assert ExportLabels(dirs=["s3://bkt/train"], out="s3://bkt/coco", to="coco").run().report.skipped == 3
    finally:
        server.stop()


# --- as a user types it


def test_the_command_tells_what_it_did_and_how_to_read_it(mixed, tmp_path):
    done = call(mixed, "--to", "coco", "--out", tmp_path / "out", "--report-json", tmp_path / "report.json")
    assert done.exit_code == 0, done.output
    assert "export: 3 shards done" in done.output and "samples: 5 seen, 5 kept" in done.output
    assert "pycocotools" in done.output and "renamed_duplicate_keys: 1" in done.output
    assert json.loads((tmp_path / "report.json").read_text())["numbers"]["extra_score"] == 2
    done = CliRunner().invoke(cli.main, ["export", "--help"])
    assert done.exit_code == 0 and "Example: export-labels" in done.output


def test_a_mistake_is_one_line_that_says_what_would_be_right(mixed, store, tmp_path):
    crawl = tmp_path / "crawl"
    write_crawl(crawl)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.tar").write_text("no tar at all")
    (tmp_path / "empty").mkdir()
    other = tmp_path / "other"
    exports.write_label_store(other)
    (other / "phrases" / "00000.parquet").write_bytes((store / "phrases" / "00001.parquet").read_bytes())
    (tmp_path / "cut").mkdir()
    exports.write_shard(tmp_path / "only" / "det-0.tar", [exports.detection("a", exports.CAR)])
    wrong = [
        ([tmp_path / "nowhere"], "no such folder; want training shards"),
        ([tmp_path / "empty"], "found neither in it"),
        ([tmp_path / "text"], "a.tar: not a tar archive"),
        ([crawl], "00000.tar: no record in it (000000000: "),
        ([mixed, store / "labels"], "export them one after the other"),
        ([mixed, "--shards", crawl], "are for a label store"),
        ([mixed, "--dataset", "mine"], "--dataset is for a label store"),
        ([mixed, "--classes", "root"], "--classes is of yolo, coco and voc"),
        ([mixed, "--val-share", "0.2"], "--val-share is of yolo"),
        ([mixed / "det.dataset.json"], "found a file with another suffix"),
        ([mixed / "*-9.tar"], "matches no file"),
        ([store / "phrases", "--phrases", store / "phrases"], "want the folder that filter-boxes wrote"),
        ([store / "labels", "--images", "copy"], "wants --shards"),
        ([store / "labels", "--phrases", tmp_path / "empty"], "00000.parquet: no such file"),
        ([store / "labels", "--shards", mixed], "no shard named 00000"),
        ([other / "labels"], "are both of one run?"),
    ]
    for arguments, words in wrong:
        done = call(*arguments, "--to", "odvg", "--out", tmp_path / "out")
        assert done.exit_code == 2 and words in done.output and "Traceback" not in done.output, (arguments, done.output)
        assert not list(tmp_path.glob("out/*.json*")), arguments
        (tmp_path / "out" / export.BEGUN).unlink(missing_ok=True)
    done = call(tmp_path / "only", "--to", "glip", "--out", tmp_path / "out")
    assert done.exit_code == 2 and "--to coco" in done.output
    done = call(mixed, "--to", "pascal", "--out", tmp_path / "out")
    assert done.exit_code == 2 and "--to pascal: want one of coco, odvg" in done.output
    with pytest.raises(InputError, match="--to pascal: want one of coco, odvg"):
        ExportLabels(dirs=[str(mixed)], out=tmp_path / "out", to="pascal").run()


def test_an_export_that_wrote_nothing_keeps_no_other_out(tmp_path):
    """ "--to coco", says the one that refuses; and then it works."""
    shard = exports.write_shard(tmp_path / "train" / "det-0.tar", [exports.detection("a")])
    with pytest.raises(InputError, match="--to coco"):
        ExportLabels(dirs=[str(shard.parent)], out=tmp_path / "out", to="glip").run()
    assert not any((tmp_path / "out").iterdir())
    ExportLabels(dirs=[str(shard.parent)], out=tmp_path / "out", to="coco").run()
    assert (tmp_path / "out" / "det.json").is_file()


def test_glips_labels_alone_have_no_manifest(mixed, tmp_path):
    alone = ExportLabels(dirs=[str(mixed)], out=tmp_path / "out", to="glip", images="none").run()
    assert not (tmp_path / "out" / "manifest.yaml").exists() and "--images copy" in alone.hints[0]
    ExportLabels(dirs=[str(mixed)], out=tmp_path / "full", to="glip").run()
    assert (tmp_path / "full" / "manifest.yaml").is_file()


def test_files_of_somebodys_own_are_not_written_over(mixed, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "det.json").write_text("mine")
    with pytest.raises(
        InputError, match=r"own: has files that are of no export, first det\.json; want a new or empty folder"
    ):
        ExportLabels(dirs=[str(mixed)], out=own, to="coco").run()
    assert [p.name for p in own.iterdir()] == ["det.json"] and (own / "det.json").read_text() == "mine"
    with pytest.raises(InputError, match="files that are of no export"):
        ExportLabels(dirs=[str(mixed)], out=mixed, to="coco").run()
