"""The pages of inspect and dedup in a real browser: offline, with pictures, light and dark."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli.inspect import dedup, inspect
from pipeline.data.records import GroundingRecord, Region
from pipeline.io.tars import write_tar
from tests.fixtures.browser import browser as browser
from tests.fixtures.browser import until
from tests.fixtures.photos import CHANGES, encoded, photos

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here (Debian's package has one)"),
]
PICTURES = os.environ.get("SCREENSHOTS")
"""A folder to keep the pictures in, for the docs."""


def opened(browser, path: Path, scheme: str):
    """The page in a browser without a network, and what it asked the network for."""
    context = browser.new_context(offline=True, viewport={"width": 1160, "height": 1000}, color_scheme=scheme)
    page, captions, errors = context.new_page(), [], []
    page.on("request", lambda request: captions.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(path.as_uri())
    until(page, "[...document.images].every(i => i.complete)")
    assert not errors and [url for url in captions if not url.startswith("data:")] == [path.as_uri()]
    if PICTURES:
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(PICTURES) / f"{path.stem}-{scheme}.png"), full_page=True)
    return page


def brightness(page) -> float:
    """Of the page's background."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) / 3


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("pages")
    samples = []
    for i, (name, photo) in enumerate(photos().items()):
        image = photo.copy()
        image.thumbnail((400, 400))
        region = Region(
            box=(20, 20, image.width - 30, image.height / 2), phrase=name, tokens_positive=((2, 2 + len(name)),),
            score=0.5 + i / 40, annotator="glip@0123456789ab",
        )  # fmt: skip
        record = GroundingRecord(
            key=name, dataset="pseudo", kind="grounding", image_size=(image.height, image.width),
            caption=f"a {name} <as it is>", regions=(region,),
        )  # fmt: skip
        samples.append((name, {"jpg": encoded(image), "json": record.to_json()}))
    write_tar(root / "pseudo-00000.tar", samples)
    (root / "eval").mkdir()
    for name in ("china", "coffee"):
        (root / "eval" / f"{name}.jpg").write_bytes(CHANGES["crop_1_percent_quality_50"](photos()[name]))
    return root


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_inspects_page(world, browser, scheme):
    page_file = world / "inspect.html"
    done = CliRunner().invoke(inspect, [str(world / "pseudo-00000.tar"), "--html", str(page_file), "--pictures", "6"])
    assert done.exit_code == 0, done.output
    page = opened(browser, page_file, scheme)
    assert page.locator("figure").count() == 6
    assert min(page.evaluate("[...document.images].map(i => i.naturalWidth)")) == 400
    words = page.inner_text("body")
    assert words.count("<as it is>") == 6 and "No problems" in words
    bars = page.locator(".bar")
    assert bars.count() > 20 and max(bars.nth(i).bounding_box()["width"] for i in range(20)) > 80
    assert (brightness(page) > 200) == (scheme == "light")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_dedups_page_has_the_pairs_side_by_side(world, browser):
    arguments = [str(world / "pseudo-00000.tar"), "--against", str(world / "eval"), "--out", str(world / "out")]
    done = CliRunner().invoke(dedup, arguments)
    assert done.exit_code == 0, done.output
    page = opened(browser, world / "out" / "pairs.html", "light")
    assert page.locator("figure").count() == 2
    left, right = (page.locator(".pair img").nth(i).bounding_box() for i in (0, 1))
    assert abs(left["y"] - right["y"]) < 5 and right["x"] >= left["x"] + left["width"]
