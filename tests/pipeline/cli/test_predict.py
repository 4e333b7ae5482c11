"""``glip predict``: what it prints and draws, on a real network of a small size."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.cli.predict import glip
from tests.fixtures.crawl import jpeg


@pytest.fixture
def photo(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(jpeg(3))
    return tmp_path / "photo.jpg"


def predict(*arguments):
    return CliRunner().invoke(glip, ["predict", *map(str, arguments)])


def test_prints_boxes_of_phrases_in_the_image_and_draws_them(photo, teacher, tmp_path):
    done = predict(photo, "a red car.  two dogs. ", "--model", teacher, "--threshold", "0.01")
    assert done.exit_code == 0, done.output
    *boxes, last = done.stdout.splitlines()
    width, height = Image.open(photo).size
    scores = []
    for line in boxes:
        phrase, numbers = line.rsplit("  ", 1)
        text, score = phrase.rsplit(" ", 1)
        x1, y1, x2, y2 = map(float, numbers.split())
        assert text in ("a red car", "two dogs") and 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        scores.append(float(score))
    assert {line.split("  ")[0].rsplit(" ", 1)[0] for line in boxes} == {"a red car", "two dogs"}
    assert scores == sorted(scores, reverse=True) and min(scores) >= 0.01
    assert last == f"{len(boxes)} boxes from a score of 0.01 on; wrote {tmp_path}/photo-predicted.jpg"
    drawn = Image.open(tmp_path / "photo-predicted.jpg")
    assert drawn.size == (width, height)
    difference = np.abs(np.asarray(drawn, int) - np.asarray(Image.open(photo).convert("RGB"), int))
    assert difference.max() > 100  # a box's colour
    fewer = predict(photo, "a red car", "--model", teacher, "--threshold", "1", "--out", tmp_path / "none.png")
    assert fewer.stdout == f"0 boxes from a score of 1 on; wrote {tmp_path}/none.png\n"
    assert (np.asarray(Image.open(tmp_path / "none.png")) == np.asarray(Image.open(photo).convert("RGB"))).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([" . ."], "found no phrase"),
        (["a cat", "--out", "x.gif"], "ends in .jpg or .png"),
        (["a cat", "--model", "nowhere"], "nowhere: no config.json"),
        (["very " * 200 + "long"], "longer than the model's text limit"),
    ],
)
def test_wrong_input_is_one_line(photo, teacher, arguments, words):
    text, *options = arguments
    done = predict(photo, text, "--model", teacher, *options)
    assert done.exit_code == 2 and words in done.output and "Traceback" not in done.output


def test_a_file_that_is_no_image_is_refused(teacher, tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"text")
    done = predict(tmp_path / "x.jpg", "a cat", "--model", teacher)
    assert done.exit_code == 2 and "cannot be read as an image" in done.output
