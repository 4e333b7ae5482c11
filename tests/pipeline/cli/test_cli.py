"""The commands as a user types them: help, exit codes, messages that name what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import app as cli
from pipeline.config import SelfTrainConfig
from pipeline.config.recipes import load_recipe, recipe_names
from pipeline.errors import InputError

COMMANDS = [
    "ingest",
    "parse_phrases",
    "pseudo_label",
    "rescore",
    "filter_boxes",
    "count_phrases",
    "calibrate",
    "build_shards",
    "train_teacher",
    "train_student",
    "evaluate",
]


def call(name: str, *arguments: str):
    return CliRunner().invoke(getattr(cli, name), list(arguments))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_it_does_and_shows_an_example(name):
    done = call(name, "--help")
    assert done.exit_code == 0 and "Example:" in done.output and "--out" in done.output and "--set" in done.output


def test_the_labelling_stages_alone_on_their_own_inputs(crawl, teacher, tmp_path):
    done = call("parse_phrases", "--shards", str(tmp_path / "crawl"), "--out", str(tmp_path / "phrases"))
    assert done.exit_code == 0 and "file_name 1" in done.output
    done = call(
        "pseudo_label", "--shards", str(tmp_path / "crawl" / "{00000..00001}.tar"),
        "--phrases", str(tmp_path / "phrases"),
        "--teacher", str(teacher), "--out", str(tmp_path / "regions"), "--set", "floor=0.01",
        "--report-json", str(tmp_path / "report.json"),
    )  # fmt: skip
    assert done.exit_code == 0 and "broken_image 1" in done.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["done"] == 2 and report["tallies"]["samples"]["dropped"] == {"broken_image": 1}
    done = call(
        "filter_boxes",
        "--regions",
        str(tmp_path / "regions"),
        "--out",
        str(tmp_path / "labels"),
        "--set",
        "threshold=0.02",
    )
    assert done.exit_code == 0
    done = call(
        "build_shards", "--shards", str(tmp_path / "crawl"), "--phrases", str(tmp_path / "phrases"),
        "--labels", str(tmp_path / "labels"), "--out", str(tmp_path / "train"),
    )  # fmt: skip
    assert done.exit_code == 0 and (tmp_path / "train" / "pseudo-00001.tar").is_file()


@pytest.fixture
def store(tmp_path):
    from tests.fixtures.regions import write_store

    write_store(tmp_path)
    return ["--regions", str(tmp_path / "regions")]


def test_a_sweep_prints_and_writes_what_thresholds_keep(store, tmp_path):
    options = [*store, "--gold", str(tmp_path / "gold"), "--report-json", str(tmp_path / "sweep.json")]
    done = call("filter_boxes", *options, "--set", "preset=grit", "--sweep", "0.3,0.6")
    assert done.exit_code == 0, done.output
    table = [line.split() for line in done.output.splitlines()]
    assert table[1] == ["threshold", "images", "boxes", "phrases", "precision", "recall"]
    assert [row[0] for row in table[2:]] == ["0.3", "0.6"]
    result = json.loads((tmp_path / "sweep.json").read_text())
    assert [f"{row['boxes']:,}" for row in result["thresholds"]] == [row[2] for row in table[2:]]
    assert result["rules"]["cross_phrase_iou"] == 0.6
    done = call("filter_boxes", *store, "--sweep")
    assert done.exit_code == 0 and len(done.output.splitlines()) == 2 + 9


def test_counts_and_fitted_thresholds_go_from_command_to_command(store, tmp_path):
    counts, thresholds = str(tmp_path / "counts.parquet"), str(tmp_path / "thresholds.json")
    done = call("count_phrases", *store, "--min-count", "5", "--out", counts)
    assert done.exit_code == 0 and "phrases with 5 mentions" in done.output
    done = call(
        "calibrate", *store, "--gold", str(tmp_path / "gold"), "--counts", counts, "--bands", "10",
        "--precision", "0.4",
        "--min-labels", "5", "--out", thresholds,
    )  # fmt: skip
    assert done.exit_code == 0 and "from 10" in done.output, done.output
    options = ["--thresholds", thresholds, "--counts", counts, "--out", str(tmp_path / "labels")]
    done = call("filter_boxes", *store, *options)
    assert done.exit_code == 0 and (tmp_path / "labels" / "00002.parquet").is_file()
    done = call("calibrate", *store, "--gold", str(tmp_path / "gold"), "--precision", "1", "--out", thresholds)
    assert done.exit_code == 1 and "no threshold reaches precision 1.0" in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "want --out FOLDER"),
        (["--out", "y", "--gold", "g"], "--gold goes with --sweep"),
        (["--sweep", "--thresholds", "t"], "leave --thresholds out"),
        (["--sweep", "--counts", "c"], "leave them out with --sweep"),
        (["--sweep", "0.3,much"], "want comma-separated numbers"),
        (["--out", "y", "--set", "balance_to=9"], "run count-phrases"),
    ],
)
def test_options_that_do_not_go_together_are_named(store, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("filter_boxes", *store, *arguments)
    assert done.exit_code == 2 and words in done.output and "Traceback" not in done.output
    assert not (tmp_path / "y").exists()


def test_a_preset_starts_anew_and_what_stands_beside_it_wins():
    from pipeline.cli.common import load_section

    alone = load_section("filter_boxes", "demo", ["preset=grit"]).effective()
    assert (alone["threshold"], alone["best_per_phrase"], alone["cross_phrase_iou"]) == (0.65, None, 0.6)
    beside = load_section("filter_boxes", "demo", ["threshold=0.7", "preset=grit"]).effective()
    assert beside == alone | {"threshold": 0.7}
    whole = load_recipe("demo", ["filter_boxes.preset=grit", "seed=3"])
    assert whole.filter_boxes.effective() == alone and whole.seed == 3 and whole.teacher == load_recipe("demo").teacher


def test_pseudo_label_parses_by_itself_where_no_phrases_are_given(crawl, teacher, tmp_path):
    done = call(
        "pseudo_label", "--shards", crawl[0], "--teacher", str(teacher), "--out", str(tmp_path / "store" / "regions")
    )
    assert done.exit_code == 0 and (tmp_path / "store" / "phrases" / "00000.parquet").is_file()


@pytest.mark.parametrize("quoted", [True, False])
def test_globs_need_no_quotes(crawl, tmp_path, quoted):
    files = ["--shards", str(tmp_path / "crawl" / "*.tar")] if quoted else ["--shards", *sorted(crawl)]
    options = ["--set", "rules=2", "workers_unknown=1"] if quoted else ["--set", "rules=2", "min_words=1"]
    done = call("parse_phrases", *files, "--out", str(tmp_path / "phrases"), *options[:2])
    assert done.exit_code == 0 and "2 shards done" in done.output
    # a further value of the last option, not a shard
    done = call("parse_phrases", *files, "--out", str(tmp_path / "phrases"), *options)
    assert done.exit_code == 2 and options[-1].split("=")[0] in done.output


def test_a_value_too_many_is_refused(tmp_path):
    done = call("parse_phrases", "--shards", "a.tar", "--out", "x", "y")
    assert done.exit_code == 2 and "unexpected extra argument (y)" in done.output
    done = call("parse_phrases", "-v", "y", "--shards", "a.tar", "--out", "x")
    assert done.exit_code == 2 and "unexpected extra argument (y)" in done.output


def test_a_released_checkpoint_in_place_of_a_model_folder_names_the_command_that_converts_it(crawl, tmp_path):
    file = tmp_path / "glip_tiny.pth"
    file.write_bytes(b"weights")
    done = call("pseudo_label", "--shards", crawl[0], "--teacher", str(file), "--out", str(tmp_path / "regions"))
    assert done.exit_code == 2 and f"convert-checkpoint {file} --out" in done.output
    source = ["--source", f"a={crawl[0]}", "--out", str(tmp_path / "y")]
    done = call("train_student", "--init", str(file), *source)
    assert done.exit_code == 2 and f"convert-checkpoint {file} --out" in done.output


def test_a_pilot_estimates_the_labels_of_all_shards_by_threshold(crawl, teacher, tmp_path):
    options = ["--teacher", str(teacher), "--out", str(tmp_path / "regions"), "--set", "floor=0.001"]
    done = call("pseudo_label", "--shards", *crawl, *options, "--limit", "1")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    start = lines.index("labels by filter-boxes' threshold, in 1 shards and, estimated, in all 2:")
    (regions,) = (tmp_path / "regions").glob("*.parquet")
    swept = call("filter_boxes", "--regions", str(regions), "--sweep", "0.3,0.4,0.5,0.6,0.7")
    boxes = [row.split()[2] for row in swept.stdout.splitlines()[2:]]
    sizes = {Path(shard).stem: Path(shard).stat().st_size for shard in crawl}
    for line, n in zip(lines[start + 1 : start + 6], boxes, strict=True):
        total = round(int(n.replace(",", "")) * sum(sizes.values()) / sizes[regions.stem])
        assert f": {n} boxes on" in line and line.endswith(f"; {total:,} in all")
    assert "labels by" not in call("pseudo_label", "--shards", *crawl, *options).stdout


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("parse_phrases", ["--shards", "nowhere/{00000..00002}.tar", "--out", "x"], "nowhere/00000.tar: no such file"),
        ("filter_boxes", ["--regions", "x", "--out", "y", "--set", "treshold=1"], "did you mean threshold?"),
        (
            "filter_boxes",
            ["--regions", "x", "--out", "y", "--set", "threshold=2"],
            "threshold: Input should be less than",
        ),
        ("filter_boxes", ["--regions", "x", "--out", "y", "--recipe", "dmeo"], "recipe 'dmeo': want one of"),
        (
            "filter_boxes",
            ["--regions", "x", "--out", "y", "--set", "preset=glib"],
            "preset: Input should be 'glip', 'owl_st'",
        ),
        ("train_teacher", ["--source", "a=b", "--out", "y"], "want --init MODEL"),
        ("train_teacher", ["--source", "a", "--out", "y", "--recipe", "demo"], "want NAME=SHARDS"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(name, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(name, *arguments)
    assert done.exit_code == 2 and words in done.output and "Traceback" not in done.output
    assert not (tmp_path / "y").exists()


def test_recipes_load_and_changes_reach_their_place():
    assert "demo" in recipe_names()
    for name in recipe_names():
        assert isinstance(load_recipe(name), SelfTrainConfig)
    changed = load_recipe("demo", ["teacher.steps=7", "demo.crawled_scenes=12", "rounds=2"])
    assert (changed.teacher.steps, changed.rounds) == (7, 2) and changed.demo["crawled_scenes"] == 12
    assert changed.student == load_recipe("demo").student


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("teacher.stepz=1", "teacher.stepz.*did you mean steps"),
        ("teacher", "want NAME=VALUE"),
        ("seed.x=1", "seed is a value, not a group"),
        ("seed=[1", "not YAML"),
    ],
)
def test_wrong_changes_are_named(change, words):
    with pytest.raises(InputError, match=words):
        load_recipe("demo", [change])
