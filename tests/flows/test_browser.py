"""What a person sees: the dashboard's pages of a run, in a real browser."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import httpx
import pytest

from flows.local_server import ROOT
from tests.fixtures.browser import browser as browser
from tests.fixtures.browser import until
from tests.flows.api import ask
from tests.flows.tiny import wait_until
from tests.flows.up import Up

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here (Debian's package has one)"),
]
PICTURES = os.environ.get("SCREENSHOTS")
"""A folder to keep the pictures in, for the docs."""


@pytest.fixture(scope="module")
def page(browser):
    return browser.new_page(viewport={"width": 1280, "height": 900})


def keep(page, name: str) -> None:
    if PICTURES:
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(PICTURES) / f"{name}.png"))


def artifact(up: Up, run: str, key: str) -> str:
    """The address of what the run shows under a key."""
    return f"{up.url}/artifacts/artifact/{up.artifacts(run)[key]['id']}"


def test_the_runs_page_shows_the_stages(up, deployed_run, page):
    page.goto(f"{up.url}/runs/flow-run/{deployed_run}")
    page.get_by_text("Subflow Runs").first.wait_for(timeout=60_000)
    page.wait_for_timeout(3000)  # the timeline is a drawing: nothing in the page tells when it is there
    keep(page, "run")
    page.get_by_text("Subflow Runs").first.click()
    for stage in ("parse-phrases", "train-teacher", "round-1"):
        page.get_by_text(stage).first.wait_for(timeout=60_000)  # task runs arrive some seconds late
    page.get_by_text("Completed").first.wait_for(timeout=30_000)


def test_a_round_has_a_page_with_its_stages_and_its_verdict(up, deployed_run, page):
    named = {"flow_runs": {"name": {"any_": ["round-1"]}, "id": {"any_": up.family(deployed_run)}}}
    (found,) = ask("POST", f"{up.api}/flow_runs/filter", named)
    page.goto(f"{up.url}/runs/flow-run/{found['id']}")
    page.get_by_text("Subflow Runs").first.wait_for(timeout=60_000)
    page.get_by_text("Subflow Runs").first.click()
    for stage in ("pseudo-label-round-1", "train-student-round-1"):
        page.get_by_text(stage).first.wait_for(timeout=60_000)
    page.goto(artifact(up, deployed_run, "round-1"))
    for words in ("Teacher teacher, student student-1.", "Gates", "Labels", "regions"):
        page.get_by_text(words).first.wait_for(timeout=60_000)
    keep(page, "round")
    page.goto(f"http://127.0.0.1:{up.port + 1}/whole/report/round-1.html")
    page.get_by_text("The student is promoted if all of them hold").wait_for(timeout=30_000)
    keep(page, "round-page")


def test_the_report_shows_numbers_plots_and_labels(up, deployed_run, page):
    page.goto(artifact(up, deployed_run, "report"))
    page.get_by_text("NOVEL R@1").first.wait_for(timeout=60_000)
    page.get_by_text("Pseudo-labels").first.wait_for(timeout=30_000)
    until(page, "[...document.images].filter(i => i.src.startsWith('data:')).every(i => i.complete)")
    widths = page.evaluate("[...document.images].filter(i => i.src.startsWith('data:')).map(i => i.naturalWidth)")
    assert len(widths) == 3 and min(widths) > 100  # labels, precision by score, loss
    keep(page, "report")
    with page.expect_navigation():
        page.evaluate("[...document.links].find(a => a.textContent == 'full report').removeAttribute('target')")
        page.get_by_text("full report").click()
    assert page.url == f"http://127.0.0.1:{up.port + 1}/whole/report/index.html"
    page.get_by_text("NOVEL").first.wait_for(timeout=30_000)
    keep(page, "page")


def test_tables_say_what_was_kept_and_what_thresholds_would_keep(up, deployed_run, page):
    page.goto(artifact(up, deployed_run, "kept-parse-phrases"))
    page.get_by_text("seen").first.wait_for(timeout=60_000)
    keep(page, "kept")
    page.goto(artifact(up, deployed_run, "thresholds-filter-boxes-round-1"))
    page.get_by_text("threshold").first.wait_for(timeout=60_000)
    keep(page, "thresholds")
    page.goto(artifact(up, deployed_run, "progress-pseudo-label-round-1"))
    page.get_by_text("100%").first.wait_for(timeout=60_000)


def test_the_run_form_has_fields_with_help(up, page):
    deployment = ask("GET", f"{up.api}/deployments/name/self-train/local")["id"]
    page.goto(f"{up.url}/deployments/deployment/{deployment}/run")
    page.get_by_text("rounds").first.wait_for(timeout=60_000)
    page.get_by_text("maximum number of rounds").first.wait_for(timeout=30_000)
    keep(page, "form")


def test_the_dashboard_asks_the_api_where_it_came_from_itself(up, page):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(
        f"http://localhost:{up.port}/deployments"
    )  # another name than the server was started with, as behind a proxy
    page.get_by_text("parse-phrases").first.wait_for(timeout=60_000)
    to_api = [url for url in asked if "/api/" in url]
    assert to_api and all(url.startswith(f"http://localhost:{up.port}/api/") for url in to_api), to_api


def test_tensorboard_answers(up, deployed_run):
    wait_until(
        lambda: httpx.get(f"http://127.0.0.1:{up.port + 2}/data/runs", timeout=10).status_code == 200, 60, "TensorBoard"
    )
    assert (ROOT / "flows" / "prefect.yaml").is_file()
