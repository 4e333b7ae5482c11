"""What the pages tell people to type is understood, and the Python they show runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import torch
from PIL import Image

from flows import cli as flow_cli
from model import convert_checkpoint
from pipeline.cli import app as cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: dict[str, click.Command] = {
    **cli.main.commands,
    "self-train": flow_cli.main,
    "convert-checkpoint": convert_checkpoint.main,
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


@pytest.mark.parametrize(("page", "words"), documented(), ids=lambda v: v if isinstance(v, str) else v[0])
def test_documented_commands_are_understood(page, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for word in words:
        if word.endswith(".pth"):
            (tmp_path / word).touch()
        elif word == "glip-t":  # the folder that an earlier line of the page wrote
            (tmp_path / word).mkdir(exist_ok=True)
    command, arguments = COMMANDS[words[0]], words[1:]
    while isinstance(command, click.Group):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(words[0], list(arguments))  # raises on an unknown option or a missing one


def test_make_targets_of_the_pages_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:^    |`)make ([a-z-]+)", page.read_text(), re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"


def test_links_of_the_pages_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_python_of_the_model_page_runs(teacher):
    lines = [line.strip() for line in re.findall(r"^    (.*)$", (ROOT / "docs" / "model.md").read_text(), re.MULTILINE)]
    code = "\n".join(line for line in lines if line and line.split()[0] not in COMMANDS)
    names = {"image": Image.new("RGB", (80, 64), "grey"), "captions": ["a dog", "two red kites"], "torch": torch}
    exec(compile(code.replace('"glip-t"', repr(str(teacher))), "docs/model.md", "exec"), names)
    assert names["inputs"]["input_ids"].shape[0] == 1
    assert len(names["found"]) == 1 and set(names["found"][0]) >= {"boxes", "scores", "labels", "text_labels"}
    assert names["outputs"].logits.shape[0] == 2  # the last call: two captions of one image
