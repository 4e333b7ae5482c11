"""GRIT as crawlers leave it: resized pictures, folders and names of any width and format."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import IngestConfig
from pipeline.errors import InputError, RunError
from pipeline.io.tars import read_tar, write_tar
from tests.fixtures.crawl import jpeg
from tests.fixtures.img2dataset import MODES, sample, scene
from tests.fixtures.unread_crawls import UNREAD, put_tar
from tests.pipeline.readers import layouts as L
from tests.pipeline.readers.layouts import put
from tests.pipeline.readers.sets import CAPTION, run

SHARES = (0.125, 0.25, 0.5, 0.75)


def grit_crawl(root: Path, mode: str, form: str, stated: bool) -> tuple[Path, list[tuple[int, int]]]:
    """A set of 12 images as a resize mode stores them, and their sizes before."""
    sizes = [(170, 110), (110, 170), (160, 120), (120, 200)] * 3
    chunks = {"noun_chunks": [[0, 5, *SHARES, 0.9]]}
    files = {
        f"{i:09d}": sample(scene(i, size), mode, CAPTION, key=f"{i:09d}", **chunks) for i, size in enumerate(sizes)
    }
    if not stated:
        for of_image in files.values():
            row = json.loads(of_image["json"])
            of_image["json"] = json.dumps({k: v for k, v in row.items() if not k.startswith("original")}).encode()
    if form == "tar":
        write_tar(root / "00000.tar", files.items())
        return root / "00000.tar", sizes
    rows = [json.loads(of_image["json"]) for of_image in files.values()]
    for key, of_image in files.items():
        put(root / "00000" / f"{key}.jpg", "").write_bytes(of_image["jpg"])
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), root / "00000.parquet")
        return root / "00000.parquet", sizes
    return put(root / "00000.jsonl", L.lines(rows)), sizes


@pytest.mark.parametrize("form", ["tar", "parquet", "jsonl"])
@pytest.mark.parametrize("mode", MODES)
def test_grits_boxes_are_shares_of_the_picture_before_the_crawler_resized_it(mode, form, tmp_path):
    labels, sizes = grit_crawl(tmp_path, mode, form, True)
    if mode == "center_crop":
        with pytest.raises(RunError, match=r"12 of 12 images lost \(\{'cropped_image': 12\}.*original_width 170"):
            run(tmp_path, "grit", (labels, {}, {}), IngestConfig(), images_folder=".")
        return
    run(tmp_path, "grit", (labels, {}, {}), images_folder=".")
    records = [r for s in read_tar(tmp_path / "out" / "s-000000.tar") for r in [json.loads(s.files["json"])]]
    for record, (width, height) in zip(records, sizes, strict=True):
        h, w = record["image_size"]
        scale = w / width if mode != "border" else 128 / max(width, height)
        x, y = (w - width * scale) / 2, (h - height * scale) / 2
        x1, y1, x2, y2 = SHARES
        want = (x + x1 * width * scale, y + y1 * height * scale, x + x2 * width * scale, y + y2 * height * scale)
        assert record["regions"][0]["box"] == pytest.approx(want, abs=1)


def test_grits_padded_pictures_without_their_original_size_are_refused(tmp_path):
    labels, _ = grit_crawl(tmp_path, "border", "tar", False)
    with pytest.raises(RunError, match=r"'padded_image': 12.*no original_width and original_height"):
        run(tmp_path, "grit", (labels, {}, {}), IngestConfig())


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "jpeg"])
@pytest.mark.parametrize(
    ("table", "folder", "key"),
    [
        ("00000", "00000", "00000{:02d}"),
        ("00003", "00003", "00003{:04d}"),
        ("003", "003", "003{:03d}"),
        ("0000012", "0000012", "0000012{:06d}"),
        ("all", "00003", "00003{:04d}"),
        ("all", "00003", "00003{:02d}"),
        ("all", ".", "{:09d}"),
        ("all", "images", "k{:02d}"),
    ],
)
def test_grits_files_are_found_whatever_the_widths_and_the_format(table, folder, key, extension, tmp_path):
    rows = [{"key": key.format(n), "caption": CAPTION, "noun_chunks": [[0, 5, *SHARES, 0.9]]} for n in range(6)]
    for row in rows[1:]:  # one image is missing, as its download failed
        put(tmp_path / "root" / folder / f"{row['key']}.{extension}", "").write_bytes(jpeg(1))
    labels = put(tmp_path / f"{table}.jsonl", L.lines(rows))
    images = "root/images" if folder == "images" else "root"
    report = run(tmp_path, "grit", (labels, {}, {}), images_folder=images)
    assert report.tallies["samples"].kept == 5 and report.tallies["samples"].dropped == {"image_missing": 1}


def test_grits_compressed_tars_are_refused_by_name(tmp_path):
    labels, _ = grit_crawl(tmp_path, "no", "tar", True)
    (tmp_path / "00000.tar.gz").write_bytes(gzip.compress(labels.read_bytes()))
    with pytest.raises(InputError, match=r"00000\.tar\.gz: found a compressed tar"):
        run(tmp_path, "grit", (tmp_path / "00000.tar.gz", {}, {}))


@pytest.mark.parametrize("name", UNREAD)
def test_grit_of_an_unread_crawl_is_refused(name, tmp_path):
    put_tar(tmp_path / "00000.tar", UNREAD[name][0])
    with pytest.raises((InputError, RunError), match=r"found|want|lost"):
        run(tmp_path, "grit", (tmp_path / "00000.tar", {}, {}), IngestConfig())
