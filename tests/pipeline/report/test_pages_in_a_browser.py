"""Pages in a real browser: enlarging, filter, slider, order, next page, labels, contrast, phone width, dark mode."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.cli.inspect import inspect
from pipeline.config.recipes import load_recipe
from pipeline.inspection.label_store import LabelStore
from pipeline.report.figures import write_gallery
from pipeline.report.run import write_run_report
from pipeline.report.view import PER_PAGE, Site, shard_source
from pipeline.runs.layout import RunLayout
from tests.fixtures.browser import browser as browser
from tests.fixtures.browser import until
from tests.fixtures.crawl import jpeg
from tests.fixtures.regions import random_gold, random_rows, region, table_of, write, write_gold
from tests.pipeline.report.test_report import SUMMARY
from tests.pipeline.report.test_view import served, write_shards

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here (Debian's package has one)"),
]
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
KEY = "g.closest('figure').querySelector('.key').textContent"
SHOWN = "[...document.querySelectorAll('.grid figure')].filter(f => !f.hidden)"
CONTRASTS = """
() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const paper = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  return [...document.body.querySelectorAll('*')]
    .filter(e => own(e) && e.checkVisibility() && !['SCRIPT', 'OPTION', 'SELECT', 'text'].includes(e.tagName))
    .map(e => { const [a, b] = [light(rgb(getComputedStyle(e).color)), light(paper(e))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), `${e.className} ${e.textContent.slice(0, 30)}`]; });
}"""


@pytest.fixture
def opened(browser):
    """Open an address in a window of a size; the page must report no error."""
    contexts, errors = [], []

    def open_page(address: str, viewport=WIDE, scheme: str = "light"):
        context = browser.new_context(viewport=viewport, color_scheme=scheme, offline=address.startswith("file:"))
        page = context.new_page()
        contexts.append(context)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(address)
        page.wait_for_load_state("load")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    return write_shards(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def single(tmp_path_factory, shards) -> str:
    """The page of inspect: one file."""
    file = tmp_path_factory.mktemp("page") / "inspect.html"
    done = CliRunner().invoke(inspect, [*shards, "--html", str(file), "--pictures", "12"])
    assert done.exit_code == 0, done.output
    return file.as_uri()


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> str:
    """A gallery of labels with gold."""
    root = tmp_path_factory.mktemp("judged")
    rows = [row for row in random_rows(1, images=12) if row["x2"] > row["x1"] and row["y2"] > row["y1"]]
    rows += [region(key="00000", phrase_row=1000 + n, phrase="boat", rank=n, box=(10, 10, 30, 30)) for n in range(40)]
    regions = write(root / "regions" / "0.parquet", table_of(rows))
    write_gold(root / "gold" / "0.parquet", random_gold(1, rows, every=1))
    store = LabelStore([regions], gold=str(root / "gold"))
    store.image = lambda shard, row: jpeg(row, (100, 100))
    write_gallery(store, root / "g.html", limit=12, title="Labels", made={"version": "1"})
    return (root / "g.html").as_uri()


def shown(page) -> list[str]:
    return page.evaluate(f"{SHOWN}.map(f => f.querySelector('.key').textContent)")


def set_slider(page, value: float) -> None:
    page.locator("input[name=least]").evaluate(
        f"e => {{ e.value = {value}; e.dispatchEvent(new Event('input', {{bubbles: true}})); "
        "e.dispatchEvent(new Event('change', {bubbles: true})); }"
    )


def test_a_click_enlarges_and_the_boxes_are_where_they_were(opened, single):
    page = opened(single)
    page.locator("figure .shot").first.click()
    shot = page.locator("dialog[open] .shot")
    image, window = shot.locator("img").bounding_box(), page.viewport_size
    assert image["height"] > 0.8 * window["height"] or image["width"] > 0.6 * window["width"]
    scale = image["width"] / 640
    smallest = shot.locator("g[data-phrase=dog] rect.line").bounding_box()  # (30, 40, 50, 60)
    assert abs(smallest["x"] + smallest["width"] / 2 - image["x"] - 40 * scale) < 3
    assert abs(smallest["y"] + smallest["height"] / 2 - image["y"] - 50 * scale) < 3
    page.locator("dialog button", has_text="+").click()
    assert shot.bounding_box()["width"] == pytest.approx(1.5 * image["width"], rel=0.02)
    first = page.locator("dialog .key").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("dialog[open] .key").inner_text() != first and page.locator("dialog[open]").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_a_box_of_20_pixels_is_20_pixels_in_the_grid_and_more_when_enlarged(opened, single):
    page = opened(single)
    natural = page.evaluate("[...document.querySelectorAll('figure img')].map(i => i.naturalWidth)")
    assert set(natural) == {640}
    page.locator("figure .shot").first.click()
    box = page.locator("dialog[open] g[data-phrase=dog] rect.line").bounding_box()
    assert min(box["width"], box["height"]) >= 20


def test_phrase_slider_size_and_order_work_in_the_single_file(opened, single):
    page = opened(single)
    every = shown(page)
    assert len(every) == 12 and page.locator(".shown").inner_text() == "12 of 12 images"
    page.locator("input[name=phrase]").fill("CAT")
    cats = shown(page)
    assert 0 < len(cats) < 12 and set(cats) == set(
        page.evaluate(f"[...document.querySelectorAll('g[data-phrase=cat]')].map(g => {KEY})")
    )
    assert page.locator("figure:not([hidden]) .box:not([hidden]):not([data-phrase=cat])").count() == 0
    page.locator("input[name=phrase]").fill("")
    set_slider(page, 0.4)
    assert page.locator("output").inner_text() == "0.40" and 0 < len(shown(page)) < 12
    scores = page.evaluate("[...document.querySelectorAll('.box:not([hidden])')].map(b => +b.dataset.score)")
    assert min(scores) >= 0.4
    set_slider(page, 0)
    page.locator("select[name=sort]").select_option("score")
    best = page.evaluate(f"{SHOWN}.map(f => Math.max(...[...f.querySelectorAll('.box')].map(b => +b.dataset.score)))")
    assert best == sorted(best, reverse=True) and len(set(best)) > 3
    page.locator("select[name=sort]").select_option("boxes")
    counts = page.evaluate(f"{SHOWN}.map(f => f.querySelectorAll('.box').length)")
    assert counts == sorted(counts, reverse=True) and len(set(counts)) == 3
    page.locator("select[name=sort]").select_option("")
    assert shown(page) == every
    page.locator("select[name=size]").select_option("small")
    areas = page.evaluate("[...document.querySelectorAll('.box:not([hidden])')].map(b => +b.dataset.area)")
    assert areas and max(areas) < 32**2


def test_the_served_page_turns_and_filters_over_all_samples(opened, shards):
    with served(Site("train", {"": shard_source(shards)})) as port:
        page = opened(f"http://127.0.0.1:{port}/")
        first = shown(page)
        assert len(first) == PER_PAGE
        page.locator("a[rel=next]").click()
        page.wait_for_url("**page=2")
        assert len(shown(page)) == PER_PAGE and not set(shown(page)) & set(first)
        until(page, "[...document.images].slice(0, 2).every(i => i.complete && i.naturalWidth === 640)")
        page.locator("a[rel=next]").click()
        page.wait_for_url("**page=3")
        assert len(shown(page)) == 62 - 2 * PER_PAGE and page.locator("a[rel=next]").count() == 0
        with page.expect_navigation():
            set_slider(page, 0.65)
        expected = [n for n in range(62) if (n + 1) / 124 + (n % 3) / 10 >= 0.65]
        assert f"{len(expected)} of 62 images" in page.inner_text("body")
        assert [int(name.rsplit("/", 1)[1]) for name in shown(page)] == expected[:PER_PAGE]
        page.locator("input[name=phrase]").fill("dog")
        with page.expect_navigation():
            page.keyboard.press("Enter")
        assert page.locator("input[name=least]").input_value() == "0.65" and shown(page) == []  # no dog has that score


def test_labels_do_not_cover_each_other_and_hidden_ones_appear_under_the_pointer(opened, judged):
    page = opened(judged)
    for n in range(page.locator(".grid .shot").count()):
        rectangles = (
            page.locator(".grid .shot")
            .nth(n)
            .evaluate(
                "s => [...s.querySelectorAll('.label')].filter(l => !l.hidden).map(l => l.getBoundingClientRect())"
                ".map(r => [r.left, r.top, r.right, r.bottom])"
            )
        )
        assert rectangles
        for i, (l, t, r, b) in enumerate(rectangles):
            for l2, t2, r2, b2 in rectangles[:i]:
                assert l >= r2 - 0.5 or r <= l2 + 0.5 or t >= b2 - 0.5 or b <= t2 + 0.5
    hidden = page.locator(".grid .label[hidden]").count()
    assert hidden > 0
    figure = page.locator(".grid figure", has=page.locator(".label[hidden]")).first
    before = figure.locator(".label:not([hidden])").count()
    items = figure.locator(".boxes li")
    appeared = []
    for i in range(items.count()):
        items.nth(i).hover()
        appeared.append(figure.locator(".label:not([hidden])").count() - before)
    assert set(appeared) == {0, 1} and figure.locator(".box.on").count() == 1


def test_gold_is_dashed_and_right_and_wrong_differ_in_colour_and_sign(opened, judged):
    page = opened(judged)
    dashes = page.evaluate(
        "[...document.querySelectorAll('.box')].map(b => [b.classList.contains('gold'), "
        "getComputedStyle(b.querySelector('.line')).strokeDasharray !== 'none'])"
    )
    assert {tuple(pair) for pair in dashes} == {(True, True), (False, False)}
    colours = {
        kind: page.locator(f".box.{kind}.kept .line").first.evaluate("e => getComputedStyle(e).stroke")
        for kind in ("right", "wrong")
    }
    assert colours["right"] != colours["wrong"]
    labels = page.evaluate("[...document.querySelectorAll('.label')].map(l => l.textContent)")
    assert all(any(text.startswith(sign) for text in labels) for sign in ("✓ ", "✗ ", "missed: "))
    page.locator("select[name=kind]").select_option("missed")
    assert page.locator("figure:not([hidden]) .box:not([hidden]):not(.missed)").count() == 0 < len(shown(page))


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    """A run's page."""
    layout = RunLayout(tmp_path_factory.mktemp("run"))
    return write_run_report(load_recipe("demo"), layout, SUMMARY).as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read(opened, single, judged, report, scheme):
    for address in (single, judged, report):
        contrasts = opened(address, scheme=scheme).evaluate(CONTRASTS)
        assert len(contrasts) > 20 and [row for row in contrasts if row[0] < 4.5] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_the_headline_and_scrolls_in_one_direction(opened, single, judged, report, shards, scheme):
    with served(Site("train", {"": shard_source(shards)})) as port:
        for address in (single, judged, report, f"http://127.0.0.1:{port}/"):
            page = opened(address, PHONE, scheme)
            assert page.evaluate("document.documentElement.scrollWidth") == 390, address
    page = opened(report, PHONE, scheme)
    box = page.locator(".headline b", has_text="61.5").bounding_box()
    assert box["y"] + box["height"] < PHONE["height"] and box["x"] >= 0 and box["x"] + box["width"] <= 390
    assert "+32.5 over the control" in page.inner_text(".headline")
    page = opened(single, PHONE, scheme)
    page.locator("figure .shot").first.click()
    assert page.locator("dialog[open] .shot").bounding_box()["width"] > 300
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_plots_have_the_pages_text_colour(opened, report, tmp_path):
    ink = {}
    for scheme in ("light", "dark"):
        page = opened(report, scheme=scheme)
        file = Path(tmp_path / f"{scheme}.png")
        page.locator(".plot svg").first.screenshot(path=str(file))
        with Image.open(file) as image:
            ink[scheme] = np.asarray(image.convert("L")).astype(int)
    assert ink["light"][2, 2] > 200 and ink["light"].min() < 80
    assert ink["dark"][2, 2] < 80 and ink["dark"].max() > 220


def test_hostile_captions_stay_text(opened, single, shards):
    with served(Site("train", {"": shard_source(shards)})) as port:
        for address in (single, f"http://127.0.0.1:{port}/"):
            page = opened(address)
            page.locator("figure .shot").first.click()
            assert "</script><script>" in page.locator("dialog figcaption, dialog .side").first.inner_text()
            assert page.title() != "owned" and page.locator("img[src=x]").count() == 0
