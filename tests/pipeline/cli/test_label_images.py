"""label-images on a folder as people have it, with a small real teacher."""

from __future__ import annotations

import json

from click.testing import CliRunner

from pipeline.cli import app as cli
from tests.fixtures.crawl import jpeg


def test_a_folder_becomes_coco_labels_and_a_page(teacher, tmp_path):
    (photos := tmp_path / "my photos").mkdir()
    (photos / "a b").mkdir()
    (photos / "a b" / "ä[1].jpg").write_bytes(jpeg(0, (80, 64)))
    (photos / "plain.jpg").write_bytes(jpeg(1, (64, 80)))
    (photos / "empty.jpg").touch()
    (photos / "film.mp4").write_bytes(b"no image")
    (photos / ".hidden.jpg").write_bytes(jpeg(2, (64, 64)))
    out = tmp_path / "labelled"
    command = [
        "label-images", str(photos), "--names", "person. fork lift", "--teacher", str(teacher), "--out", str(out),
        "--set", "floor=0", "--threshold", "0.01",
    ]  # fmt: skip
    result = CliRunner().invoke(cli.main, command)
    assert result.exit_code == 0, result.output
    assert "empty_image 1" in result.output and "not_an_image: 1" in result.output
    data = json.loads((out / "coco" / "pseudo.json").read_text())
    assert [c["name"] for c in data["categories"]] == ["person", "fork lift"]
    assert len(data["images"]) == 2 and data["annotations"]
    assert all((out / "coco" / image["file_name"]).is_file() for image in data["images"])
    assert "<html" in (out / "labels.html").read_text()
    before = {p: p.read_bytes() for p in (out / "coco").rglob("*") if p.is_file()}
    again = CliRunner().invoke(cli.main, command)
    assert again.exit_code == 0 and "1 already there" in again.output
    assert before == {p: p.read_bytes() for p in (out / "coco").rglob("*") if p.is_file()}
    other = CliRunner().invoke(cli.main, [*command[:-1], "0.02"])
    assert other.exit_code == 2 and "another export is there" in other.output
