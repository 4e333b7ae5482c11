"""Commands of the pages are understood and run by a test, their Python runs, their links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest
import torch
import yaml
from PIL import Image

from flows import cli as flow_cli
from model import convert_checkpoint
from pipeline.cli import app as cli
from pipeline.config import SelfTrainConfig
from pipeline.config.recipes import build

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md", *sorted(ROOT.glob("docs/*.md"))]
COMMANDS: dict[str, click.Command] = {
    **cli.main.commands,
    "self-train": flow_cli.main,
    "convert-checkpoint": convert_checkpoint.main,
}


RUN_BY = {
    "README.md": "tests/flows/test_loop.py",  # make demo at a tiny size; the other command is the tutorial's
    "tutorial.md": "tests/test_docs.py",  # as printed, with fewer steps
    "settings.md": "tests/pipeline/config/test_describe.py",
    "datasets.md": "tests/pipeline/stages/test_ingest.py",
    "demo.md": "tests/flows/test_rounds.py",
    "evaluation.md": "tests/pipeline/evaluation/test_compare.py",
    "export.md": "tests/pipeline/writers/test_stage.py",
    "filtering.md": "tests/pipeline/filtering/test_calibration.py",
    "http-teacher.md": "tests/pipeline/annotators/test_http.py",
    "inspect.md": "tests/pipeline/inspection/test_inspect.py",
    "label-images.md": "tests/pipeline/cli/test_label_images.py",
    "labelling.md": "tests/pipeline/stages/test_labelling.py",
    "merge-regions.md": "tests/pipeline/stages/test_merge_regions.py",
    "model.md": "tests/model/test_glip_checkpoint.py",
    "phrases.md": "tests/pipeline/phrases/test_docs.py",
    "prefect.md": "tests/flows/test_up.py",
    "python.md": "tests/test_python_docs.py",
    "recipes.md": "tests/pipeline/config/test_recipes.py",
    "review.md": "tests/pipeline/report/test_review.py",
    "teachers.md": "tests/pipeline/annotators/test_teachers.py",
    "verify.md": "tests/pipeline/stages/test_verify.py",
}
"""Page -> the test that runs its commands' code on data of its own; here they are parsed as they are printed."""
NOT_RUN = {
    "training.md": "needs BERT and Swin files that cannot be fetched here; tests/pipeline/training runs both commands",
    "cluster.md": "needs a cluster; what of it is tested is a table of the page",
}


def documented() -> list[tuple[str, list[str]]]:
    """(page, words) of every indented line that starts with one of our commands."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^    (?:\$ )?(.+)$", text, re.MULTILINE):
            if line.split()[0] in COMMANDS:
                found.append((page.name, shlex.split(line, comments=True)))
    return found


def test_the_pages_show_every_stage():
    shown = {words[0] for _, words in documented()}
    assert set(cli.main.commands) | {"self-train", "convert-checkpoint"} <= shown


def test_commands_of_every_page_are_run_by_a_test_or_marked_with_why_not():
    pages = {page for page, _ in documented()}
    assert pages == pages & (RUN_BY.keys() | NOT_RUN.keys()), "name the test that runs them, or why none does"
    assert not [test for test in RUN_BY.values() if not (ROOT / test).is_file()]


@pytest.mark.parametrize(("page", "words"), documented(), ids=lambda v: v if isinstance(v, str) else v[0])
def test_documented_commands_are_understood(page, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for word in words:
        if word.endswith(".pth"):
            (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / word).touch()
        elif word in ("glip-t", "stand-in/model/final"):  # the folder that an earlier line of the page wrote
            (tmp_path / word).mkdir(parents=True, exist_ok=True)
    command, arguments = COMMANDS[words[0]], words[1:]
    while isinstance(command, click.Group):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(words[0], list(arguments))  # raises on an unknown option or a missing one


def test_make_targets_of_the_pages_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:^    |`)make ([a-z-]+)", page.read_text(), re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"


def test_scripts_that_the_pages_start_exist():
    for page in PAGES:
        for script in re.findall(r"(?:python|bash|sbatch(?: --\S+)*) ([\w/.-]+\.(?:py|sh))", page.read_text()):
            assert (ROOT / script).is_file(), f"{page.name}: {script}"


def test_the_recipe_of_the_recipes_page_is_one():
    text = (ROOT / "docs/recipes.md").read_text().partition("## A recipe for real data")[2]
    block = re.search(r"\n\n((?:    .*\n|\n)+)", text)
    assert block is not None
    recipe = build(SelfTrainConfig, yaml.safe_load(block[1]))
    assert recipe.data.manifest == "my_sets.yaml" and recipe.student.mixture["pseudo"] == 2


def anchors(page: Path) -> set[str]:
    """Names of a page's headings in links, as forges and the site make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_links_of_the_pages_lead_somewhere():
    for page in PAGES:
        for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", page.read_text()):
            target = page.parent / link if link else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in anchors(target), f"{page.name}: {link}#{anchor}"


def test_external_links_are_well_formed():
    for page in PAGES:
        for link in re.findall(r"\]\((https?:[^)]*)\)", page.read_text()):
            parts = urlsplit(link)
            assert parts.scheme == "https" and "." in parts.netloc and " " not in link, f"{page.name}: {link}"


def test_every_page_is_in_the_navigation_of_the_site():
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    assert not [page.name for page in ROOT.glob("docs/*.md") if f": {page.name}\n" not in navigation + "\n"]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path):
    pytest.importorskip("mkdocstrings_handlers.python")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    for page in tmp_path.glob("site/*.html"):
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="?(https?:[^" >]+)', page.read_text())
        loaded += re.findall(
            r'<link[^>]* rel="?(?:stylesheet|preconnect|icon)"?[^>]* href="?(https?:[^" >]+)', page.read_text()
        )
        assert not loaded, f"{page.name} loads {loaded}"
    assert "PseudoLabel" in (tmp_path / "site/api.html").read_text()


def test_the_python_of_the_readme_runs(teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (80, 64), "grey").save("photo.jpg")
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(code.replace('"glip-t"', repr(str(teacher))), "README.md", "exec"), {})
    assert "boxes" in capsys.readouterr().out


TINY = {
    " steps=150": " steps=2 --set warmup_steps=1",
    "student.steps=20": "student.steps=2",
    "student.warmup_steps=2": "student.warmup_steps=1",
}
"""Changes of the tutorial's commands in the test: the printed ones take a quarter of an hour."""


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two minutes on two idle cores, seven on busy ones
def test_the_tutorial_runs_as_printed(tmp_path):
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    scripts = tmp_path / "bin"
    scripts.mkdir()
    calls = {name: f"-m pipeline {name}" for name in COMMANDS}
    calls |= {"self-train": "-m flows.cli", "convert-checkpoint": "-m model.convert_checkpoint", "python": ""}
    for name, call in calls.items():  # this checkout's commands, not the installed ones
        (scripts / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {call} "$@"\n')
        (scripts / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    environment |= {"PREFECT_HOME": str(tmp_path / "prefect"), "DO_NOT_TRACK": "1"}
    for command in tutorial_commands():
        for printed, tiny in TINY.items():
            command = command.replace(printed, tiny)
        if command.startswith(("self-train run", "self-train check")):  # two steps teach no word
            command += " --set pseudo_label.floor=0.0001 --set filter_boxes.threshold=0.001"
        done = subprocess.run(
            ["bash", "-ec", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    for made in ("runs/mine/report/index.html", "runs/mine/summary.json", "teacher/config.json", "labels.html"):
        assert (tmp_path / made).is_file(), made


def tutorial_commands() -> list[str]:
    """The commands of docs/tutorial.md after the installation, in their order: lines that begin with `$`."""
    text = (ROOT / "docs/tutorial.md").read_text().partition("## 2. ")[2].partition("## Your own data")[0]
    return re.findall(r"^    \$ (.+)$", text.replace("\\\n", " "), re.MULTILINE)


def test_the_python_of_the_model_page_runs(teacher):
    lines = [line.strip() for line in re.findall(r"^    (.*)$", (ROOT / "docs" / "model.md").read_text(), re.MULTILINE)]
    code = "\n".join(line for line in lines if line and line.split()[0] not in COMMANDS)
    names = {"image": Image.new("RGB", (80, 64), "grey"), "captions": ["a dog", "two red kites"], "torch": torch}
    exec(compile(code.replace('"glip-t"', repr(str(teacher))), "docs/model.md", "exec"), names)
    assert names["inputs"]["input_ids"].shape[0] == 1
    assert len(names["found"]) == 1 and set(names["found"][0]) >= {"boxes", "scores", "labels", "text_labels"}
    assert names["outputs"].logits.shape[0] == 2  # the last call: two captions of one image
