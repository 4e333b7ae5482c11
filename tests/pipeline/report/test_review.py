"""The page of review: its token, origins and paths; verdicts on the disk after an answer; order, restart, estimate."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pytest
import uvicorn

from pipeline.data.records import PHRASES
from pipeline.data.verdicts import Verdict, VerdictLog, Verdicts, read_log
from pipeline.errors import InputError
from pipeline.inspection.review_store import GivenVerdict, ReviewOptions, ReviewStore
from pipeline.io.tables import read_table, write_table
from pipeline.io.tars import write_tar
from pipeline.report.review import review_application
from pipeline.report.server import listen
from tests.fixtures.crawl import jpeg
from tests.fixtures.regions import region, table_of, write

ROOT = Path(__file__).resolve().parents[3]
CAPTION = "a dog 🐕 and a red car by a lake </script><img src=x onerror=\"document.title='owned'\">"
SPANS = {"dog": (2, 5), "red car": (14, 21), "lake": (27, 31)}
TOKEN = "t0ken"


def write_inputs(root: Path, shards: int = 2, images: int = 6, size: tuple[int, int] = (320, 240)) -> Path:
    """``regions``, ``crawl``, ``phrases``: a dog and a red car an image, of rising scores; the lake has no region."""
    for name in ("regions", "crawl", "phrases"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        keys = [f"{shard:03d}{n:06d}" for n in range(images)]
        rows, phrases = [], []
        for n, key in enumerate(keys):
            for k, phrase in enumerate(SPANS):
                start, end = SPANS[phrase]
                phrases.append(
                    {"key": key, "caption": CAPTION, "phrase": phrase, "root": phrase} | {"start": start, "end": end}
                )
                if phrase == "lake":
                    continue
                score = 0.3 + 0.6 * (shard * images + n + k / 2) / (shards * images)
                box = (20.5 + 120 * k, 30.25, 90.5 + 130 * k, 150.125)
                row = region(
                    key=key, phrase_row=len(phrases) - 1, phrase=phrase, start=start, end=end, score=score, box=box
                )
                rows.append(row | {"height": size[1], "width": size[0]})
        write(root / "regions" / f"{shard:05d}.parquet", table_of(rows), {"fingerprint": f"print-{shard}"})
        table = pa.Table.from_pylist(phrases, schema=PHRASES)
        write_table(root / "phrases" / f"{shard:05d}.parquet", table, PHRASES, {})
        write_tar(root / "crawl" / f"{shard:05d}.tar", [(key, {"jpg": jpeg(n, size)}) for n, key in enumerate(keys)])
    return root


def open_store(root: Path, order: Any = "uncertain", **options: Any) -> ReviewStore:
    files, crawl = (sorted(map(str, (root / name).iterdir())) for name in ("regions", "crawl"))
    chosen = ReviewOptions(order, **{"threshold": 0.5, "least": 0.2} | options)
    return ReviewStore(
        files, crawl=crawl, phrases=str(root / "phrases"), verdicts=root / "verdicts", by="ann", options=chosen
    )


@contextmanager
def served(store: ReviewStore) -> Iterator[int]:
    with listen("127.0.0.1", 0) as listener:
        application = review_application(store, TOKEN)
        server = uvicorn.Server(uvicorn.Config(application, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)


def ask(port: int, path: str, body: Any = None, token: str | None = TOKEN, **headers: str) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    address = path if token is None else f"{path}?token={token}"
    sent = {"content-type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
    connection.request("GET" if body is None else "POST", address, None if body is None else json.dumps(body), sent)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, data


def given(shown: dict[str, Any], n: int = 0, verdict: str = "accept", **more: Any) -> dict[str, Any]:
    """A verdict on a region of a stop, as the page sends it."""
    image = shown["image"]
    region = image["regions"][n]
    phrase = image["phrases"][region["phrase"]]
    return {
        "id": uuid4().hex, "verdict": verdict, "shard": image["shard"], "key": image["key"], "phrase": phrase["phrase"],
        "start": phrase["start"], "end": phrase["end"], "box": region["box"], "boxes": [],
    } | more  # fmt: skip


@pytest.fixture
def root(tmp_path) -> Path:
    return write_inputs(tmp_path)


@pytest.fixture
def port(root) -> Iterator[int]:
    with served(open_store(root)) as port:
        yield port


@pytest.mark.parametrize("path", ["/", "/start", "/stop/0", "/image/0"])
def test_nothing_of_the_data_is_served_without_the_token(port, path):
    assert ask(port, path)[0] == 200
    for token in (None, "", "t0keN", "t0ken2", "é"):
        status, body = ask(port, path, token=token and token.encode().decode("latin-1").replace("Ã©", "%C3%A9"))
        assert status == 403 and b"want the address that review printed" in body


def test_other_hosts_and_origins_are_refused(port, root):
    body = [given(json.loads(ask(port, "/stop/0")[1]))]
    assert ask(port, "/start", Host="evil.example")[0] == 421
    for headers in (
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": f"http://127.0.0.1:{port + 1}"},
        {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}, {"Sec_Fetch_Site": "none"},
    ):  # fmt: skip
        assert ask(port, "/verdicts", body, **headers)[0] == 403
    assert ask(port, "/verdicts", body, content_type="text/plain")[0] == 415
    assert ask(port, "/verdicts", body, token="x")[0] == 403
    assert not (root / "verdicts").exists()
    assert ask(port, "/verdicts", body, Origin=f"http://127.0.0.1:{port}", Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/image/12", "/image/-1", "/stop/12", "/stop/x", "/../etc/passwd", "/%2e%2e/etc/passwd", "/review.html",
     "/server.py", "/image/..%2f..%2fetc%2fpasswd", "//etc/passwd", "/docs"],
)  # fmt: skip
def test_nothing_else_is_served(port, path):
    assert ask(port, path)[0] == 404


def test_the_page_runs_its_own_script_only(port):
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", f"/?token={TOKEN}")
    answer = connection.getresponse()
    policy = answer.getheader("content-security-policy")
    assert "script-src 'self'" in policy and "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", answer.read().decode())
    assert ask(port, "/review.js", token=None)[0] == ask(port, "/review.css", token=None)[0] == 200


def test_a_stop_has_image_caption_phrases_and_regions(root):
    store = open_store(root)
    shown = store.stop(0)
    image = shown["image"]
    assert image["caption"] == CAPTION and [p["phrase"] for p in image["phrases"]] == list(SPANS)
    assert [CAPTION[p["start"] : p["end"]] for p in image["phrases"]] == list(SPANS)
    assert [r["box"] for r in image["regions"]] == [[20.5, 30.25, 90.5, 150.125], [140.5, 30.25, 220.5, 150.125]]
    assert len({p["colour"] for p in image["phrases"]}) == 3 and sorted(shown["due"]) == [
        r["region"] for r in image["regions"]
    ]
    assert store.image(image["number"]).startswith(b"\xff\xd8") and store.image(12) is None and store.stop(12) is None


def test_a_phrase_that_is_listed_twice_is_one(root):
    path = root / "phrases" / "00000.parquet"
    table = read_table(path, PHRASES)
    write_table(path, pa.concat_tables([table.slice(0, 1), table]), PHRASES, {})
    store = open_store(root)
    image = next(i for n in range(12) if (i := store.stop(n)["image"])["key"] == "000000000")
    assert [p["phrase"] for p in image["phrases"]] == list(SPANS)
    assert [image["phrases"][r["phrase"]]["phrase"] for r in image["regions"]] == ["dog", "red car"]


def test_stops_are_images_near_the_threshold_first(root):
    store = open_store(root, threshold=0.6)
    best = [min(abs(r["score"] - 0.6) for r in store.stop(n)["image"]["regions"]) for n in range(12)]
    assert best == sorted(best) and len({store.stop(n)["image"]["key"] for n in range(12)}) == 12
    least = open_store(root, least=0.8)
    assert least.regions == sum(r["score"] > 0.8 for n in range(12) for r in store.stop(n)["image"]["regions"])


def test_orders_need_their_columns(root):
    with pytest.raises(InputError, match="found neither `agreed` nor `verified`"):
        open_store(root, "disagreement")
    with pytest.raises(InputError, match="found no region to review of 24"):
        open_store(root, least=1.0)


def test_rare_and_disagreed_come_first(tmp_path):
    rows = [region(key=f"{n:03d}", phrase_row=n, phrase="Dog" if n % 2 else "dog", score=0.9) for n in range(8)]
    rows += [region(key="008", phrase_row=8, phrase="yak", score=0.9)]
    scores = {"score_0": [0.9] * 9, "score_1": [None if n == 3 else 0.9 for n in range(9)]}
    table = table_of(rows, **scores).append_column(
        "agreed", pa.array([1 if n == 3 else 2 for n in range(9)], pa.int16())
    )
    (tmp_path / "regions").mkdir()
    write(tmp_path / "regions" / "0.parquet", table)

    def first(order):
        options = ReviewOptions(order, 0.5, 0.5)
        files = [str(tmp_path / "regions" / "0.parquet")]
        store = ReviewStore(files, crawl=[], phrases=None, verdicts=tmp_path / "v", by="a", options=options)
        return store.stop(0)["image"]["key"]

    assert first("rare") == "008" and first("disagreement") == "003"


def test_a_verdict_is_on_the_disk_when_the_post_is_answered_and_has_every_field(port, root):
    shown = json.loads(ask(port, "/stop/0")[1])
    fixed = given(shown, 1, "fixed", boxes=[[1.0, 2.0, 30.0, 40.0]])
    phrase = given(shown, 0, "missing", phrase="lake", start=27, end=31, box=None, boxes=[[5.0, 5.0, 9.0, 9.0]])
    status, body = ask(port, "/verdicts", [given(shown), fixed, phrase])
    answer = json.loads(body)
    assert status == 200 and len(answer["saved"]) == 3 and answer["progress"]["decided"] == 2 and not answer["refused"]
    found = {v["verdict"]: v for v in read_log(root / "verdicts").to_pylist()}
    assert set(found) == {"accept", "fixed", "missing"} and found["fixed"]["boxes"] == [[1.0, 2.0, 30.0, 40.0]]
    row = found["accept"]
    assert (row["by"], row["kind"], row["height"], row["width"]) == ("ann", "person", 240, 320)
    assert row["store"] == str(root / "regions") and row["revision"] == f"print-{int(row['shard'])}"
    again = json.loads(ask(port, "/stop/0")[1])
    assert [r["verdict"] for r in again["image"]["regions"]] == ["accept", "fixed"]
    assert again["image"]["phrases"][2]["boxes"] == [[5.0, 5.0, 9.0, 9.0]]


def test_a_resent_verdict_counts_once_and_does_not_undo_a_later_one(port, root):
    shown = json.loads(ask(port, "/stop/0")[1])
    first, second = given(shown), given(shown, verdict="reject")
    for body in ([first], [second], [first]):
        assert json.loads(ask(port, "/verdicts", body)[1])["saved"] == [body[0]["id"]]
    assert json.loads(ask(port, "/stop/0")[1])["image"]["regions"][0]["verdict"] == "reject"
    assert len(read_log(root / "verdicts")) == 2
    assert Verdicts.read(root / "verdicts").table["verdict"].to_pylist() == ["reject"]


def test_a_verdict_that_the_store_has_no_place_for_is_refused_by_name_and_the_others_are_saved(port, root):
    shown = json.loads(ask(port, "/stop/0")[1])
    bad = [
        given(shown, shard="nowhere"), given(shown, key="nobody"), given(shown, box=[1.0, 1.0, 2.0, 2.0]),
        given(shown, verdict="fixed", boxes=[[0.0, 0.0, 400.0, 100.0]]), given(shown, verdict="fixed"),
        given(shown, verdict="missing", phrase="cat", start=0, end=3, box=None, boxes=[[1.0, 1.0, 9.0, 9.0]]),
    ]  # fmt: skip
    good = given(shown)
    answer = json.loads(ask(port, "/verdicts", [*bad, good])[1])
    assert answer["saved"] == [good["id"]]
    reasons = [answer["refused"][one["id"]] for one in bad]
    for words, reason in zip(
        ("no such shard", "no region", "no region", "reaches out", "want box and", "found the phrase 'cat'"),
        reasons,
        strict=True,
    ):
        assert words in reason
    assert ask(port, "/verdicts", [{"id": "1"}])[0] == 422 and len(read_log(root / "verdicts")) == 1


def test_after_a_restart_the_page_goes_on_at_the_first_region_without_a_verdict(root):
    store = open_store(root)
    for n in range(3):
        shown = store.stop(n)
        sent = [given(shown, k, "unsure" if k else "reject") for k in range(2)]
        assert store.save([GivenVerdict.model_validate(v) for v in sent]) == {}
    store.close()
    again = open_store(root)
    assert again.start()["progress"]["open"] == 3 and again.progress()["decided"] == 6
    assert again.progress()["decisions"] == {"reject": 3, "unsure": 3}
    assert [r["verdict"] for r in again.stop(1)["image"]["regions"]] == ["reject", "unsure"]


def test_a_withdrawn_verdict_is_none_and_a_machines_does_not_count(root):
    store = open_store(root)
    shown = store.stop(0)
    for verdict in ("accept", "withdrawn"):
        store.save([GivenVerdict.model_validate(given(shown, verdict=verdict))])
    assert store.progress()["decided"] == 0
    machine = given(shown, 1)
    with VerdictLog(root / "verdicts") as log:
        log.append(Verdict(**machine, by="vlm", kind="machine", height=240, width=320))
    assert open_store(root).progress()["decided"] == 0


@pytest.mark.parametrize("order", ["random", "stratified"])
def test_the_estimate_is_of_the_first_regions_of_the_sample(root, order):
    store = open_store(root, order)
    assert store.progress()["estimate"] is None and len({store.stop(n)["due"][0] for n in range(24)}) == 24

    def judge(n, verdict, **more):
        shown = store.stop(n)
        row = [r["region"] for r in shown["image"]["regions"]].index(shown["due"][0])
        store.save([GivenVerdict.model_validate(given(shown, row, verdict, **more))])

    for n in range(12):
        judge(n, ("accept", "reject", "unsure")[n % 3])
    judge(20, "accept")  # after an open one: not of the sample yet
    progress = store.progress()
    assert progress["beyond"] == 1 and progress["open"] == 12
    if order == "random":
        assert progress["estimate"]["precision"] == 0.5 and progress["estimate"]["more"] == 16  # all that are left
    for n in range(24):
        judge(n, "fixed", boxes=[store.stop(n)["image"]["regions"][0]["box"]])
    final = store.progress()["estimate"]
    same = [store.stop(n)["image"]["regions"][0]["region"] == store.stop(n)["due"][0] for n in range(24)]
    assert final["precision"] == pytest.approx(np.mean(same)) and final["more"] == 0  # a box elsewhere was wrong


def test_regions_of_class_names(tmp_path):
    rows = [
        region(key=f"{n:03d}", phrase=name, phrase_row=i, start=i, end=i + 3, box=(5 * i, 0, 5 * i + 20, 20))
        for n in range(2)
        for i, name in enumerate(("cat", "fork lift"))
    ]
    table = table_of(rows).append_column("name", pa.array([row["phrase"] for row in rows]))
    (tmp_path / "regions").mkdir()
    write(tmp_path / "regions" / "0.parquet", table, {"names": json.dumps({"names": ["cat", "fork lift", "dog"]})})
    options = ReviewOptions(least=0.1)
    store = ReviewStore(
        [str(tmp_path / "regions" / "0.parquet")],
        crawl=[],
        phrases=None,
        verdicts=tmp_path / "v",
        by="a",
        options=options,
    )
    shown = store.stop(0)
    assert store.start()["names"] == ["cat", "fork lift", "dog"] and shown["image"]["caption"] is None
    assert [(p["start"], p["phrase"]) for p in shown["image"]["phrases"]] == [(None, "cat"), (None, "fork lift")]
    dog = given(shown, verdict="missing", phrase="dog", box=None, boxes=[[1.0, 1.0, 5.0, 5.0]])
    assert store.save([GivenVerdict.model_validate(v) for v in (dog, given(shown, 1))]) == {}
    assert [p["phrase"] for p in store.stop(0)["image"]["phrases"]] == ["cat", "fork lift", "dog"]
    verdicts = Verdicts.read(tmp_path / "v").table.to_pylist()
    assert [(v["phrase"], v["start"], v["verdict"]) for v in verdicts] == [
        ("dog", None, "missing"),
        ("fork lift", None, "accept"),
    ]


@pytest.mark.slow
def test_verdicts_outlive_a_killed_command(root):
    command = [
        sys.executable,
        "-m",
        "pipeline",
        "review",
        "--regions",
        str(root / "regions"),
        "--shards",
        str(root / "crawl"),
    ]
    command += ["--phrases", str(root / "phrases"), "--least", "0.2", "--port", "0", "--by", "ann"]
    sent = []
    for n in range(2):
        with subprocess.Popen(
            command, cwd=root, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout.readline() == "24 of 24 regions to review, in 12 images\n"
                port, token = re.match(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", process.stdout.readline()).groups()
                progress = json.loads(ask(int(port), "/start", token=token)[1])["progress"]
                assert progress["open"] == n and progress["decided"] == 2 * n
                shown = json.loads(ask(int(port), f"/stop/{n}", token=token)[1])
                body = [given(shown, k) for k in range(2)]
                assert ask(int(port), "/verdicts", body, token=token)[0] == 200
                sent += [one["id"] for one in body]
            finally:
                process.send_signal(signal.SIGKILL)
    assert sorted(read_log(root / "regions-verdicts")["id"].to_pylist()) == sorted(sent)
