"""The page of review in a real browser, by keyboard: verdicts, undo, moving a box, a killed server, the mouse."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.data.verdicts import Verdicts, read_log
from tests.fixtures.browser import browser as browser
from tests.fixtures.browser import until
from tests.fixtures.servers import free_port
from tests.pipeline.report.test_review import CAPTION, ROOT, write_inputs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here (Debian's package has one)"),
]
SAVED = "document.getElementById('saved').textContent === 'all saved'"
LOADED = "document.querySelectorAll('#list li').length > 0 && document.getElementById('image').naturalWidth > 0"


@contextmanager
def command(root: Path, port: int, *options: str) -> Iterator[str]:
    """The command; yields its address; ended by SIGKILL."""
    words = [
        sys.executable,
        "-m",
        "pipeline",
        "review",
        "--regions",
        str(root / "regions"),
        "--shards",
        str(root / "crawl"),
    ]
    words += ["--phrases", str(root / "phrases"), "--least", "0.2", "--port", str(port), "--by", "ann", *options]
    with subprocess.Popen(
        words, cwd=root, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.stdout.readline().split()[0]
        finally:
            process.send_signal(signal.SIGKILL)


@pytest.fixture
def page(browser):
    context, errors = browser.new_context(viewport={"width": 1280, "height": 800}), []
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []


def opened(page, address: str) -> None:
    page.goto(address)
    until(page, LOADED)


def press(page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def position(page) -> str:
    return page.locator("#position").inner_text()


def test_thirty_verdicts_by_keyboard_with_a_kill_in_between(page, tmp_path):
    root, port = write_inputs(tmp_path, images=10), free_port()
    keys = ["a", "r", "u"] * 5
    with command(root, port) as address:
        opened(page, address)
        assert position(page) == "image 1 of 20, region 1 of 2"
        for n, key in enumerate(keys):
            press(page, key)
            until(page, f"document.getElementById('count').textContent.startsWith('{n + 1} of 40')")
        until(page, SAVED)
    shown = [v["verdict"] for v in read_log(root / "regions-verdicts").to_pylist()]
    assert shown == ["accept", "reject", "unsure"] * 5
    # the server is gone: what is decided now waits in the page
    assert position(page) == "image 8 of 20, region 2 of 2"
    press(page, "a")
    until(page, "document.getElementById('saved').textContent === '1 not saved yet'")
    until(page, "document.getElementById('problem').textContent.includes('review does not answer')")
    with command(root, port) as address:
        opened(page, address)  # a new token: the old tab's verdict is taken over
        until(page, SAVED)
        until(page, "document.getElementById('count').textContent.startsWith('16 of 40')")
        assert position(page) == "image 9 of 20, region 1 of 2"
        for n in range(16, 30):
            press(page, "a")
            until(page, f"document.getElementById('count').textContent.startsWith('{n + 1} of 40')")
        press(page, "z")
        until(page, "document.getElementById('count').textContent.startsWith('29 of 40')")
        assert position(page) == "image 15 of 20, region 2 of 2"
        press(page, *["Shift+ArrowRight"], *["Shift+ArrowUp"], *["ArrowDown"] * 10)
        assert "Enter saves" in page.locator("#draft").inner_text()
        press(page, "Enter")
        until(page, "document.getElementById('count').textContent.startsWith('30 of 40')")
        until(page, SAVED)
    log = read_log(root / "regions-verdicts").to_pylist()
    assert [v["verdict"] for v in log] == [*shown, *["accept"] * 15, "withdrawn", "fixed"]
    old, (new,) = log[-1]["box"], log[-1]["boxes"]
    assert [b - a for a, b in zip(old, new, strict=True)] == [10, 0, 10, 0]
    held = Verdicts.read(root / "regions-verdicts").table["verdict"].to_pylist()
    assert len(held) == 30 and held.count("fixed") == 1 and held.count("accept") == 19


def test_boxes_are_drawn_resized_removed_and_all_are_accepted_by_keyboard(page, tmp_path):
    root, port = write_inputs(tmp_path, shards=1), free_port()
    with command(root, port) as address:
        opened(page, address)
        press(page, "]", "]", "d", "ArrowLeft", "s", "Shift+ArrowRight", "ArrowDown", "Enter")
        until(page, SAVED)
        (drawn,) = read_log(root / "regions-verdicts").to_pylist()
        # a quarter of 320 x 240 in the middle, one to the left, then 10 wider and one higher
        assert drawn["verdict"] == "missing" and drawn["box"] is None and drawn["phrase"] in ("dog", "red car", "lake")
        assert drawn["boxes"] == [[119.0, 90.0, 209.0, 151.0]]
        page.locator("#list li.missing").click()
        press(page, "r")
        until(page, SAVED)
        assert len(Verdicts.read(root / "regions-verdicts")) == 0
        press(page, "A")
        until(page, "document.getElementById('position').textContent.startsWith('image 2 of 6')")
        press(page, "z")
        until(page, "document.getElementById('position').textContent.startsWith('image 1 of 6')")
        until(page, SAVED)
        assert len(Verdicts.read(root / "regions-verdicts")) == 0
        press(page, "n", "n", "p", "Tab", "+", "f", "0")
        until(page, "document.getElementById('position').textContent === 'image 2 of 6, region 2 of 2'")
        press(page, "?")
        assert page.locator("dialog#help[open]").count() == 1
        press(page, "Escape")
        assert page.locator("dialog#help[open]").count() == 0


def test_the_mouse_selects_moves_and_draws(page, tmp_path):
    root, port = write_inputs(tmp_path, shards=1), free_port()
    with command(root, port) as address:
        opened(page, address)
        frame = page.locator("#shot").bounding_box()
        scale = frame["width"] / 320

        def at(x: float, y: float) -> tuple[float, float]:
            return frame["x"] + x * scale, frame["y"] + y * scale

        page.mouse.click(*at(180, 90))  # within the red car
        assert "red car" in page.locator("#list li.selected").inner_text()
        page.mouse.move(*at(140.5, 90))  # its left edge
        page.mouse.down()
        page.mouse.move(*at(160.5, 110), steps=4)
        page.mouse.up()
        page.mouse.move(*at(250, 160))
        page.mouse.down()
        page.mouse.move(*at(300, 200), steps=4)
        page.mouse.up()
        until(page, SAVED)
        fixed, missing = read_log(root / "regions-verdicts").to_pylist()
        assert (fixed["verdict"], missing["verdict"], missing["phrase"]) == ("fixed", "missing", "red car")
        assert fixed["boxes"][0] == pytest.approx([160.5, 50.25, 240.5, 170.125], abs=1.5)
        assert missing["boxes"][0] == pytest.approx([250, 160, 300, 200], abs=1.5)


def test_a_sample_shows_its_estimate_and_hostile_captions_stay_text(page, tmp_path):
    root, port = write_inputs(tmp_path), free_port()
    with command(root, port, "--order", "random") as address:
        opened(page, address)
        assert position(page) == "sample 1 of 24" and "too few" in page.locator("#estimate").inner_text()
        for n in range(8):
            press(page, "a" if n % 4 else "r")
            until(page, f"document.getElementById('count').textContent.startsWith('{n + 1} of 24')")
        assert page.locator("#caption").inner_text() == CAPTION and page.title() == f"review {root / 'regions'}"
        text = page.locator("#estimate").inner_text()
        assert re.match(r"precision 75\.0 % \(95 %: 40\.\d to 92\.\d\); 16 more for ±2 points$", text), text
