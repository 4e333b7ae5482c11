"""Pages of ``self-train view``: all samples, runs, and nothing else, to this machine's names only."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
import uvicorn
from click.testing import CliRunner

from flows.cli import main
from pipeline.config.recipes import load_recipe
from pipeline.data.records import GroundingRecord, Region
from pipeline.io.atomic import write_json
from pipeline.io.tars import write_tar
from pipeline.report.server import OwnHosts, listen
from pipeline.report.view import PER_PAGE, Site, shard_source
from pipeline.runs.status import runs_in
from tests.fixtures.crawl import jpeg, write_crawl

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"


def write_shards(folder: Path, shards: int = 2, samples: int = 31) -> list[str]:
    """Training shards of images of 640 x 480 with one to three boxes, of 20 pixels and more."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard in range(shards):
        rows = []
        for i in range(samples):
            n = shard * samples + i
            regions = tuple(
                Region(
                    box=(30.0 + 150 * k, 40.0, 50.0 + 210 * k, 60.0 + 70 * k),
                    phrase=("dog", "red car", "cat")[k], tokens_positive=((2, 5),),
                    score=round((n + 1) / (2 * shards * samples) + k / 10, 3),
                )
                for k in range(1 + n % 3)
            )  # fmt: skip
            record = GroundingRecord(
                key=f"{n:05d}", dataset="pseudo", kind="grounding", image_size=(480, 640),
                caption=f"a dog {HOSTILE}", regions=regions,
            )  # fmt: skip
            rows.append((record.key, {"jpg": jpeg(n, (640, 480)), "json": record.to_json()}))
        paths.append(str(folder / f"pseudo-{shard:06d}.tar"))
        write_tar(paths[-1], rows)
    return paths


@contextmanager
def served(site: Site) -> Iterator[int]:
    """The site on a real port."""
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(site.app(), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)


def get(port: int, path: str, host: str | None = None) -> tuple[int, str, dict[str, str]]:
    """(status, body, headers); the path is sent as it is."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{port}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode("latin-1")
    connection.close()
    return answer.status, body, {name.lower(): value for name, value in answer.getheaders()}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Iterator[int]:
    shards = write_shards(tmp_path_factory.mktemp("train"))
    with served(Site("train", {"": shard_source(shards)})) as port:
        yield port


def names(page: str) -> list[str]:
    return re.findall(r'<div class="key">([^<]*)</div>', page)


def test_pages_have_every_sample_once(store):
    found, address = [], "/"
    while address:
        status, page, _ = get(store, address)
        assert status == 200 and len(names(page)) <= PER_PAGE
        found += names(page)
        turn = re.search(r'<a href="([^"]*)" rel="next">', page)
        address = "/" + turn[1].replace("&amp;", "&") if turn else ""
    assert found == [f"pseudo-{n // 31:06d}/{n:05d}" for n in range(62)]


def test_a_store_that_was_written_anew_is_opened_anew(tmp_path):
    shards = write_shards(tmp_path / "train", shards=1, samples=3)
    with served(Site("train", {"": shard_source(shards)})) as port:
        assert len(names(get(port, "/")[1])) == 3
        write_shards(tmp_path / "train", shards=1, samples=5)
        assert len(names(get(port, "/")[1])) == 5


def test_filters_and_orders_are_over_the_whole_store(store):
    _, page, _ = get(store, "/?sort=score")
    assert names(page)[0] == "pseudo-000001/00059" and "<b>62</b> of 62 images, page 1 of 3" in page
    _, page, _ = get(store, "/?phrase=CAT&least=0.6&sort=low_score")
    scores = [round((n + 1) / 124 + 0.2, 3) for n in range(62) if n % 3 == 2]
    assert f"<b>{sum(s >= 0.6 for s in scores)}</b> of 62 images" in page
    assert '<option value="low_score" selected>' in page and 'value="CAT"' in page
    status, page, _ = get(store, "/?phrase=%3Cb%3Ezebra")
    assert status == 200 and "No image meets these conditions" in page and "<b>zebra" not in page


def test_captions_are_text(store):
    _, page, headers = get(store, "/")
    assert "&lt;script&gt;document.title" in page and "<script>document.title" not in page and "<img src=x" not in page
    assert "script-src &#39;sha256-" in page or "script-src 'sha256-" in page
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"


def test_an_image_is_served_as_a_jpeg(store):
    status, body, headers = get(store, "/image/1-3.jpg")
    assert status == 200 and headers["content-type"] == "image/jpeg" and body.startswith("\xff\xd8")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/image/2-0.jpg", 404), ("/image/0-31.jpg", 404), ("/image/-1-0.jpg", 404), ("/nothing", 404),
        ("/../../etc/passwd", 404), ("/%2e%2e/%2e%2e/etc/passwd", 404), ("//etc/passwd", 404),
        ("/?least=7", 400), ("/?page=0", 400), ("/?sort=x", 400), ("/?unknown=1", 400),
    ],
)  # fmt: skip
def test_other_addresses_are_refused(store, path, status):
    assert get(store, path)[0] == status


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[evil]"])
def test_other_hosts_are_refused(store, host):
    status, body, _ = get(store, "/", host)
    assert status == 421 and "want an address or a name of this machine" in body and "pseudo" not in body


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:4210", "127.0.0.1", "[::1]:4210", "10.0.0.7:4210"])
def test_this_machines_names_are_served(store, host):
    assert get(store, "/", host)[0] == 200
    assert OwnHosts(None).allows(os.uname().nodename)


@pytest.fixture
def runs(tmp_path) -> Path:
    """Two runs: one finished, with a page and labels; one that has just begun."""
    config = load_recipe("demo").model_dump_json()
    for name in ("done", "new"):
        (tmp_path / "runs" / name / "report").mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text(config)
    done = tmp_path / "runs" / "done"
    write_shards(done / "pseudo" / "round-1", shards=1, samples=3)
    (done / "regions" / "round-1").mkdir(parents=True)
    metrics = {"novel_recall_at_1": 61.5, "base_recall_at_1": 85.0}
    write_json(done / "summary.json", {"student": metrics, "control": metrics | {"novel_recall_at_1": 29.0}})
    (done / "report" / "index.html").write_text("the report")
    (tmp_path / "secret.html").write_text("secret")
    (done / "report" / "link.html").symlink_to(tmp_path / "secret.html")
    return tmp_path / "runs"


def test_runs_are_listed_with_state_and_numbers(runs):
    with served(Site("runs", {}, lambda: runs_in(runs))) as port:
        status, page, _ = get(port, "/")
        assert status == 200 and page.index(">done</a>") < page.index(">new</a>")
        words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
        assert (
            "done completed BASE R@1, student 85.0" in words
            and "NOVEL R@1, student 61.5 (+32.5 over the control)" in words
        )
        assert "new not finished" in words
        assert get(port, "/done")[2]["location"] == "/done/"
        _, page, _ = get(port, "/done/")
        assert 'href="/done/report/index.html"' in page and 'href="/done/pseudo/round-1/"' in page
        assert len(names(get(port, "/done/pseudo/round-1/")[1])) == 3
        assert get(port, "/done/pseudo/round-1/image/0-1.jpg")[0] == 200
        assert get(port, "/done/report/index.html")[1] == "the report"
        for outside in (
            "/done/config.yaml", "/done/report/../config.yaml", "/done/report/%2e%2e/summary.json",
            "/done/report/link.html", "/done/report//etc/passwd", "/secret.html", "/../secret.html",
            "/nope/report/index.html",
        ):  # fmt: skip
            assert get(port, outside)[0] == 404, outside
        later = runs / "team" / "later"
        (later / "report").mkdir(parents=True)
        (later / "report" / "round-1.html").write_text("its round")
        (later / "config.yaml").write_text((runs / "new" / "config.yaml").read_text())
        assert '<a href="/team/later/">team/later</a>' in get(port, "/")[1]
        assert get(port, "/team/later/report/round-1.html")[1] == "its round"
        assert get(port, "/team/later/")[0] == 200 and get(port, "/team/report/round-1.html")[0] == 404


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: no such file"),
        (["crawl"], "found crawl shards; want training shards, labels or regions"),
        (["train", "--phrases", "p"], "found training shards, which have their own phrases"),
        (["train", "--set-shards", "a=b.tar"], "b.tar: no such file"),
        (["train", "--port", "1", "--host", "192.0.2.1"], "name another --port"),
        (["runs/done", "train"], "found a run; want no other folder"),
    ],
)
def test_wrong_input_is_one_line(runs, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    write_crawl(tmp_path / "crawl")
    write_shards(tmp_path / "train", shards=1, samples=1)
    done = CliRunner().invoke(main, ["view", *arguments])
    assert done.exit_code == 2 and words in done.output and "Traceback" not in done.output, done.output


def test_a_run_that_cannot_be_read_does_not_hide_the_others(runs):
    (runs / "new" / "config.yaml").write_text("seed: [")
    (runs / "done" / "summary.json").write_text(json.dumps([1]))
    with served(Site("runs", {}, lambda: runs_in(runs))) as port:
        status, page, _ = get(port, "/")
        assert status == 200 and ">done</a>" in page and ">new</a>" in page
        assert (
            page.count("cannot be read") == 2 and get(port, "/done/")[0] == get(port, "/done/pseudo/round-1/")[0] == 200
        )
