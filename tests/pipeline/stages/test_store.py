"""The labelling stages on a real S3 store with credentials: the same bytes as on a disk, and its failures survived."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import fsspec
import pytest

from pipeline.config import BuildShardsConfig, ModelConfig, ParsePhrasesConfig, TrainConfig
from pipeline.data.training_shards import ShardSet
from pipeline.errors import InputError, RunError
from pipeline.inspection.summary import inspect_shards
from pipeline.io.files import filesystem, listing, open_file, read_range, write_remote
from pipeline.io.shard_patterns import expand_shards
from pipeline.io.tars import read_tar
from pipeline.stages.jobs import BuildShards, Dedup, FilterBoxes, ParsePhrases, PseudoLabel
from pipeline.training.dataset import TrainingData
from pipeline.training.model_factory import build_model
from tests.conftest import tiny_model
from tests.fixtures.crawl import write_crawl
from tests.fixtures.store import SECRET, Store
from tests.pipeline.stages.test_labelling import KEEP, LABEL, digests, whole

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    server = Store(tmp_path_factory.mktemp("store") / "s3")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").clear_instance_cache()
        yield server
    server.stop()


@pytest.fixture(scope="module")
def local(tmp_path_factory, teacher):
    """The same crawl on a disk, and everything made of it there."""
    root = tmp_path_factory.mktemp("local")
    crawl = write_crawl(root / "crawl")
    whole(crawl, root, teacher)
    return root


def s3():
    """Provide the product's own client: the finalizer of another one, run in a loader's forked worker, takes the
    sockets that both processes share out of this process's event loop, which then waits for ever.
    """
    return filesystem("s3://")[0]


def upload(folder: Path, url: str) -> None:
    for path in folder.glob("*.tar"):
        s3().put_file(str(path), f"{url}/{path.name}")


def download(url: str, folder: Path) -> dict[str, str]:
    s3().get(f"{url}/", str(folder), recursive=True)
    return digests(folder)


def test_every_stage_reads_and_writes_the_store(store, local, teacher, tmp_path):
    store.make_bucket("whole")
    upload(local / "crawl", "s3://whole/crawl")
    crawl = expand_shards("s3://whole/crawl/{00000..00001}.tar")
    assert crawl == expand_shards("s3://whole/crawl") == expand_shards("s3://whole/crawl/*.tar")
    base = "s3://whole/run"

    def stages() -> list:
        done = [ParsePhrases(settings=ParsePhrasesConfig(), shards=crawl, out=f"{base}/phrases").run()]
        done.append(
            PseudoLabel(
                settings=LABEL, shards=crawl, out=f"{base}/regions", phrases=f"{base}/phrases", teacher=teacher
            ).run()
        )
        regions = expand_shards(f"{base}/regions", suffix=".parquet")
        done.append(FilterBoxes(settings=KEEP, regions=regions, out=f"{base}/labels").run())
        folders = {"phrases": f"{base}/phrases", "labels": f"{base}/labels"}
        done.append(BuildShards(settings=BuildShardsConfig(), shards=crawl, out=f"{base}/train", **folders).run())
        return done

    assert [(r.done, r.skipped) for r in stages()] == [(2, 0)] * 4
    assert [(r.done, r.skipped) for r in stages()] == [(0, 2)] * 4
    remote = download(base, tmp_path / "copy")
    tables = {name for name in remote if name.endswith((".parquet", ".tar"))}
    assert tables == {n for n in digests(local) if n.endswith((".parquet", ".tar")) and not n.startswith("crawl")}
    # fingerprints hold the store's own tags instead of digests, so footers differ, and nothing else may
    for name in tables:
        if name.endswith(".tar"):
            assert remote[name] == digests(local)[name]
        else:
            import pyarrow.parquet as pq

            assert pq.read_table(tmp_path / "copy" / name).equals(pq.read_table(local / name))
    assert not [name for name in remote if "claim" in name or "tmp" in name]


def test_links_lead_into_the_store(store, local, teacher, tmp_path):
    store.make_bucket("linked")
    upload(local / "crawl", "s3://linked/crawl")
    folders = {"phrases": local / "phrases", "labels": local / "labels"}
    crawl = expand_shards("s3://linked/crawl")
    BuildShards(settings=BuildShardsConfig(link=True), shards=crawl, out=tmp_path, **folders).run()
    linked, copied = (ShardSet(expand_shards(str(folder))) for folder in (tmp_path, local / "train"))
    assert linked.counts == copied.counts != [0, 0]
    for shard, count in enumerate(copied.counts):
        for row in range(count):
            assert linked.record(shard, row) == copied.record(shard, row)
            assert linked.image(shard, row) == copied.image(shard, row)


def test_shards_in_the_store_are_fetched_once_and_then_a_record_at_a_time(store, local, tmp_path):
    store.make_bucket("indexed")
    upload(local / "train", "s3://indexed/train")
    shards = expand_shards("s3://indexed/train")
    code = (
        "import os, sys; from pipeline.data import shard_index, training_shards as shards;"
        "read = []; whole = shard_index.tar_stream;"
        "shard_index.tar_stream = lambda url: (read.append(url), whole(url))[1];"
        "s = shards.ShardSet(sys.argv[1:]); print(s.counts, len(read), s.record(0, 0).key, len(s.image(0, 0)[0:9]),"
        "os.listdir(os.environ['TMPDIR']))"
    )

    def start(number: int) -> str:
        temporary = tmp_path / f"tmp-{number}"
        temporary.mkdir()
        env = os.environ | {"TMPDIR": str(temporary), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        done = subprocess.run([sys.executable, "-c", code, *shards], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip()

    there = ShardSet(expand_shards(str(local / "train")))
    key = there.record(0, 0).key
    assert start(0) == f"{there.counts} {len(shards)} {key} 9 []"
    assert start(1) == f"{there.counts} 0 {key} 9 []"
    s3().put_file(str(local / "train" / shards[1].rsplit("/", 1)[1]), shards[0])  # now it is another
    assert start(2) == f"{[there.counts[1]] * 2} 1 {there.record(1, 0).key} 9 []"


FORKED = """
    import gc, multiprocessing, sys, time
    from fsspec.asyn import get_loop
    from pipeline.io.files import filesystem, read_range, write_remote

    def read():
        for part in range(3):
            assert len(read_range("s3://forked/x", part, 10)) == 10
        get_loop().call_soon_threadsafe(gc.collect)  # as it may happen at any time, among the client's own work
        time.sleep(0.5)

    write_remote("s3://forked/x", sys.argv[1])
    read_range("s3://forked/x", 0, 10)
    fork = multiprocessing.get_context("fork").Process(target=read)
    fork.start(), fork.join()
    print(fork.exitcode, read_range("s3://forked/x", 0, 10))
"""


def test_a_fork_leaves_its_parents_connections_alone(store, tmp_path):
    store.make_bucket("forked")
    (tmp_path / "x").write_text("0123456789abcdef")
    command = [sys.executable, "-c", textwrap.dedent(FORKED), str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("0 b'0123456789'\n", "")


def test_a_loaders_workers_read_the_store_and_leave_nothing(store, local, tmp_path, monkeypatch):
    store.make_bucket("loaded")
    upload(local / "train", "s3://loaded/train")
    config = TrainConfig(steps=4, batch_size=4, image_sizes=(64,), max_image_size=128)
    processor = build_model(tiny_model(ModelConfig), None)[1]
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    read = {}
    for folder in ("s3://loaded/train", str(local / "train")):
        made = TrainingData(config, {"pseudo": expand_shards(folder)}, processor)
        read[folder] = [(b["names"], b["captions"], b["pixels"].sum().item()) for b in made.loader(first=0, workers=2)]
    remote, here = read.values()
    assert remote == here and len(here) == 4
    assert not [p for p in (tmp_path / "tmp").rglob("*") if p.is_file()]


def test_a_shard_that_was_replaced_by_a_shorter_one_is_told_at_once(store, local, tmp_path, caplog):
    store.make_bucket("shorter")
    upload(local / "train", "s3://shorter/train")
    shards = expand_shards("s3://shorter/train")
    records = ShardSet(shards)
    (tmp_path / "short").write_bytes(b"not much")
    write_remote(shards[0], tmp_path / "short")
    with pytest.raises(
        RunError, match=r"\.tar: 0 bytes from byte \d+ on, want \d+; has it been replaced since the start"
    ):
        records.image(0, 0)
    assert "trying again" not in caplog.text


def test_large_files_go_in_parts_and_come_back_whole(store, tmp_path):
    store.make_bucket("large")
    block = os.urandom(1 << 20)
    (tmp_path / "large.bin").write_bytes(block * 120)
    write_remote("s3://large/large.bin", tmp_path / "large.bin")
    assert "-" in s3().info("large/large.bin")["ETag"]  # so S3 marks what came in parts
    with open_file("s3://large/large.bin") as file:
        assert all(file.read(1 << 20) == block for _ in range(120)) and file.read(1) == b""
    assert read_range("s3://large/large.bin", (1 << 20) - 3, 6) == block[-3:] + block[:3]


def test_a_missing_object_fails_its_shard_alone(store, local, teacher):
    store.make_bucket("missing")
    upload(local / "crawl", "s3://missing/crawl")
    crawl = expand_shards("s3://missing/crawl/{00000..00002}.tar")
    with pytest.raises(RunError, match=r"1 of 3 shards failed.*s3://missing/crawl/00002\.tar: no such object"):
        ParsePhrases(settings=ParsePhrasesConfig(), shards=crawl, out="s3://missing/phrases").run()
    assert len(listing("s3://missing/phrases", ".report.json")) == 2
    with pytest.raises(InputError, match=r"s3://missing/nothing: no \*\.tar objects there"):
        expand_shards("s3://missing/nothing")


def test_a_wrong_key_is_told_in_one_line_without_the_secret(store, local, teacher):
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": SECRET + "-wrong"}
    command = [
        sys.executable, "-m", "pipeline", "parse-phrases", "--shards", "s3://whole/crawl/00000.tar", "--out", "s3://whole/other",
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("parse-phrases: error: s3://whole/") and "credentials" in done.stderr
    assert SECRET not in done.stderr + done.stdout


def test_a_store_that_dies_in_mid_run_costs_only_time(store, local, teacher, tmp_path):
    store.make_bucket("dies")
    (tmp_path / "crawl").mkdir()
    source = (local / "crawl" / "00000.tar").read_bytes()
    for i in range(12):
        (tmp_path / "crawl" / f"{i:05d}.tar").write_bytes(source)
    crawl = expand_shards(str(tmp_path / "crawl"))
    ParsePhrases(settings=ParsePhrasesConfig(), shards=crawl, out=tmp_path / "phrases").run()
    PseudoLabel(
        settings=LABEL, shards=crawl, out=tmp_path / "regions", phrases=tmp_path / "phrases", teacher=teacher
    ).run()
    upload(tmp_path / "crawl", "s3://dies/crawl")
    result: list = []

    def label() -> None:
        shards = expand_shards("s3://dies/crawl")
        result.append(
            PseudoLabel(
                settings=LABEL, shards=shards, out="s3://dies/regions", phrases=tmp_path / "phrases", teacher=teacher
            ).run()
        )

    runner = threading.Thread(target=label)
    runner.start()
    deadline = time.monotonic() + 60
    while len(listing("s3://dies/regions", ".report.json")) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    store.kill()
    time.sleep(3)
    store.start()
    runner.join(240)
    (report,) = result
    assert (report.done, report.skipped, report.failed) == (12, 0, [])
    import pyarrow.parquet as pq

    download("s3://dies/regions", tmp_path / "copy")
    for path in (tmp_path / "regions").glob("*.parquet"):
        assert pq.read_table(tmp_path / "copy" / path.name).equals(pq.read_table(path))


def test_shards_in_the_store_are_looked_at_and_cleaned(store, local, tmp_path):
    """Crawl, evaluation images and everything that is written lie in the store: the same is found as on a disk."""
    store.make_bucket("look")
    upload(local / "crawl", "s3://look/crawl")
    (first, *_) = read_tar(local / "crawl" / "00001.tar")
    s3().pipe_file("look/gold/one.jpg", first.files["jpg"])
    (tmp_path / "gold").mkdir()
    (tmp_path / "gold" / "one.jpg").write_bytes(first.files["jpg"])
    found = {}
    for base, crawl, gold in (
        ("s3://look/out", "s3://look/crawl", "s3://look/gold"),
        (str(tmp_path / "out"), str(local / "crawl"), str(tmp_path / "gold")),
    ):
        found[base] = Dedup(shards=expand_shards(crawl), against=gold, out=base, drop=True).run()[0]
        assert inspect_shards(expand_shards(crawl))[0] == inspect_shards(expand_shards(str(local / "crawl")))[0]
    remote, here = found.values()
    assert remote == here and here.matched >= 1
    download("s3://look/out", tmp_path / "copy")
    names = {
        n: d for n, d in digests(tmp_path / "out").items() if n.endswith((".tar", ".html", ".md", "matches.parquet"))
    }
    copied = digests(tmp_path / "copy")
    assert len(names) == 5 and names == {n: copied[n] for n in names}
