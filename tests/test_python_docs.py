"""The Python of docs/python.md: every block is a file of a folder, and every script among them runs."""

from __future__ import annotations

import io
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from pipeline.data.records import REGIONS, GroundingRecord
from pipeline.io.tables import read_table
from pipeline.io.tars import read_tar, write_tar
from pipeline.system import plugins

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = dict(
    re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", (ROOT / "docs/python.md").read_text(), re.MULTILINE | re.DOTALL)
)
BOXES = {"00000": (20, 10, 60, 40), "00001": (5, 30, 15, 50)}
"""The white box of each shard's image."""


def drawn(box: tuple[int, int, int, int]) -> bytes:
    """A PNG of 80 x 64 dark pixels with a white box."""
    image, buffer = Image.new("RGB", (80, 64), (20, 30, 40)), io.BytesIO()
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), "white")
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """The page's files, and two crawl shards of one image each."""
    for name, code in BLOCKS.items():
        (tmp_path / name).write_text(code)
    (tmp_path / "crawl").mkdir()
    for shard, box in BOXES.items():
        sample = {"png": drawn(box), "txt": b"a red car next to a very small green tree"}
        write_tar(tmp_path / "crawl" / f"{shard}.tar", iter([(f"{shard}0000", sample)]))
    return tmp_path


@pytest.fixture
def script(folder, monkeypatch, capsys):
    """Run a script of the folder in this process and return its output; what it registers is forgotten."""
    before = {group: dict(names) for group, names in plugins._REGISTERED.items()}
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv(plugins.MODULES, "brightest,word_limit")
    plugins._import_modules.cache_clear()

    def run_script(name: str) -> str:
        runpy.run_path(name, run_name="__main__")
        return capsys.readouterr().out

    yield run_script
    plugins._import_modules.cache_clear()
    for group, names in plugins._REGISTERED.items():
        names.clear()
        names.update(before.get(group, {}))
    for name in BLOCKS:
        sys.modules.pop(name.removesuffix(".py"), None)


def run(folder: Path, *arguments: str, modules: str = "brightest,box_lines,word_limit") -> str:
    """Run Python in the folder, which is on PYTHONPATH, as the page says."""
    environment = os.environ | {"PYTHONPATH": f"{folder}:{ROOT}", "PYTHONSAFEPATH": "1", plugins.MODULES: modules}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_labelled(out: Path) -> None:
    """Both phrases of each image have the white box, in the store and in the training shards."""
    for shard, box in BOXES.items():
        rows = read_table(out / "regions" / f"{shard}.parquet", REGIONS).to_pylist()
        assert [(row["phrase"], row["x1"], row["y1"], row["x2"], row["y2"], row["score"]) for row in rows] == [
            ("red car", *box, 1.0), ("very small green tree", *box, 1.0),
        ]  # fmt: skip
        (sample,) = read_tar(out / "train" / f"pseudo-{shard}.tar")
        record = GroundingRecord.model_validate_json(sample.files["json"])
        assert [(region.phrase, region.box) for region in record.regions] == [
            ("red car", box), ("very small green tree", box),
        ]  # fmt: skip
        assert all((region.annotator or "").startswith("brightest@") for region in record.regions)


def test_every_block_of_the_page_is_a_file_and_runs_in_a_test():
    assert (ROOT / "docs/python.md").read_text().count("```python") == len(BLOCKS)
    scripts = {name for name, code in BLOCKS.items() if "__main__" in code}
    assert scripts == {"label.py", "own_teacher.py", "own_format.py", "own_rule.py"}


def test_a_teacher_and_a_rule_of_ones_own_label_a_crawl(folder, script):
    code = BLOCKS["own_teacher.py"].replace("processes=2", "processes=1")  # two: the slow test
    (folder / "own_teacher.py").write_text(code)
    assert script("own_teacher.py") == "2 images labelled\n"
    assert_labelled(folder / "own")
    (folder / "bright").rename(folder / "teacher")
    said = script("label.py")
    assert "pseudo-label: 2 shards done" in said and "filter-boxes: 2 shards done" in said
    assert script("reports.py") == "0 shards made, 2 already there, []\n{}\n"
    assert script("own_rule.py") == "{'too_many_words': 2}\n"


def test_a_reader_and_a_writer_of_ones_own(folder):
    (folder / "images").mkdir()
    lines = [f"{name}.png,{','.join(map(str, box))},white box\n" for name, box in BOXES.items()]
    (folder / "boxes.csv").write_text("".join(lines))
    for name, box in BOXES.items():
        (folder / "images" / f"{name}.png").write_bytes(drawn(box))
    said = run(folder, "own_format.py")
    assert "seen=2 kept=2" in said and "exported/boxes.csv" in said
    exported = (folder / "exported" / "boxes.csv").read_text()
    assert [line.split(",")[1:] for line in exported.splitlines()] == [line.strip().split(",")[1:] for line in lines]
    assert all((folder / "exported" / line.split(",")[0]).is_file() for line in exported.splitlines())


@pytest.mark.slow
def test_spawned_workers_and_job_files_find_the_teacher(folder):
    run(folder, "own_teacher.py")  # two processes
    assert_labelled(folder / "own")
    job = (
        "from pipeline.stages import *\n"
        "write_job('a.json', PseudoLabel(shards='crawl', teacher='bright', out='b/regions'))"
    )
    run(folder, "-c", job)
    run(folder, "-m", "pipeline", "run-job", "a.json")
    name = "regions/00000.parquet"
    assert (folder / "b" / name).stat().st_size and read_table(folder / "b" / name, REGIONS).num_rows == 2


@pytest.mark.slow
def test_entry_points_need_no_variable(folder):
    (folder / "brightest.py").write_text(BLOCKS["brightest.py"].replace('@TEACHERS.register("brightest")\n', ""))
    info = folder / "bright_teacher-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bright-teacher\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[glip_self_train.annotators]\nbrightest = brightest:Brightest\n")
    run(folder, "own_teacher.py", modules="")
    assert_labelled(folder / "own")
