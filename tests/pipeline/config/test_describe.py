"""Descriptions of the settings: complete, in a recipe's own syntax, and the same in docs/settings.md."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from flows.cli import main
from pipeline.config import SelfTrainConfig
from pipeline.config.describe import markdown_lines, sections, settings_of
from pipeline.config.recipes import build

PAGE = Path(__file__).resolve().parents[3] / "docs" / "settings.md"


def test_the_page_of_settings_is_up_to_date():
    assert PAGE.read_text().splitlines() == list(markdown_lines()), (
        "run: self-train settings --markdown > docs/settings.md"
    )


def test_the_defaults_shown_give_the_default_settings():
    shown = [
        f"{section}.{row.name}={row.default}"
        for section in sections()
        if section != "run"
        for row in settings_of(section)
    ]
    shown += [f"{row.name}={row.default}" for row in settings_of("run")]
    assert build(SelfTrainConfig, {}, shown) == SelfTrainConfig()
    assert len(shown) > 130 and not [line for line in shown if yaml.safe_load(line.partition("=")[2]) == ""]


@pytest.mark.parametrize(
    ("section", "name", "values"),
    [
        ("filter_boxes", "threshold", "number from 0 to 1"),
        ("filter_boxes", "same_text_iou", "number above 0 to 1, or null"),
        ("filter_boxes", "max_aspect", "number above 1, or null"),
        ("pseudo_label", "floor", "number from 0 below 1"),
        ("pseudo_label", "score_agg", "`mean`, `max`, `geometric`, `sum`, or null"),
        ("student", "noisy.score_weight", "true or false"),
        ("student", "image_sizes", "list of integer"),
        ("evaluate", "protocols", "mapping"),
        ("data", "crawl", "list of text"),
    ],
)
def test_values_of_a_setting(section, name, values):
    assert {row.name: row.values for row in settings_of(section)}[name] == values


def test_every_setting_has_a_meaning():
    for section in sections():
        for row in settings_of(section):
            assert row.meaning, f"{section}.{row.name}"


def test_the_command_prints_a_section_and_names_the_one_that_was_meant():
    done = CliRunner().invoke(main, ["settings", "filter_boxes", "promotion"])
    assert done.exit_code == 0 and done.output.startswith("filter_boxes: Selection of regions as labels.")
    assert "\n  threshold: 0.5    # number from 0 to 1\n" in done.output and "\npromotion: " in done.output
    wrong = CliRunner().invoke(main, ["settings", "filterboxes"])
    assert (
        wrong.exit_code == 2 and "found 'filterboxes'" in wrong.stderr and "did you mean filter_boxes?" in wrong.stderr
    )


def test_a_reader_that_stops_early_gets_no_error(tmp_path):
    command = f"{shlex.quote(sys.executable)} -m flows.cli settings 2>{tmp_path}/errors | true"
    subprocess.run(["bash", "-c", command], cwd=PAGE.parents[1], check=True, timeout=60)
    assert (tmp_path / "errors").read_text() == ""
