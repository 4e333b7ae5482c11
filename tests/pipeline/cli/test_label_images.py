"""label-images on a folder as people have it, with a small real teacher."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

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


def test_the_pages_commands_work_as_printed(teacher, tmp_path, monkeypatch):
    """All but self-train run, which tests/flows/test_names.py runs; scores of an untrained teacher are low."""
    (tmp_path / "photos").mkdir()
    for i in range(2):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(jpeg(i, (80, 64)))
    (tmp_path / "names.txt").write_text("person\nfork lift: forklift, lift truck\n")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[3] / "docs/label-images.md").read_text()
    commands = [shlex.split(line) for line in re.findall(r"^    ((?:\S+-\S+) .*)$", text, re.MULTILINE)]
    ran = []
    for words in commands:
        if words[0] == "self-train":
            continue
        words = [str(teacher) if w == "glip-t" else "cpu" if w == "cuda" else w.replace("0.5", "0.01") for w in words]
        if words[0] == "label-images":
            words += ["--set", "floor=0", "--threshold", "0.01", "--out", "first"]
        if words[0] == "pseudo-label":
            words += ["--set", "floor=0"]
        result = CliRunner().invoke(cli.main, words)
        assert result.exit_code == 0, result.output
        ran.append(words[0])
    assert ran == ["label-images", "pseudo-label", "filter-boxes", "export-labels", "build-shards"]
    assert list((tmp_path / "labelled/train").glob("photos-*.tar")) and (tmp_path / "labelled/coco").is_dir()
