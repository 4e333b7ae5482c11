"""Shards behind a web server: with ranges, without them, and with connections that break in the middle."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from aiohttp import ServerDisconnectedError
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import InputError
from pipeline.execution.stage_failures import stage_failure
from pipeline.io import files
from pipeline.io.files import StoreError, file_size, open_file, read_range
from pipeline.io.hashing import digest_file
from pipeline.io.tars import TarProblems, read_tar, write_tar
from tests.fixtures.crawl import jpeg


class Server(ThreadingHTTPServer):
    """Serves a folder. ranges: whether it knows them; breaks: so many answers end half-way."""

    daemon_threads = True

    def __init__(self, folder: Path, ranges: bool, breaks: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.ranges, self.breaks, self.broken = folder, ranges, breaks, 0
        self.for_folder, self.for_shards = 404, 200  # what it answers when they are asked for
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.respond(body=False)

    def do_GET(self) -> None:
        self.respond(body=True)

    def respond(self, body: bool) -> None:
        path = self.server.folder / self.path.lstrip("/")
        if path == self.server.folder:
            self.send_error(self.server.for_folder)
            return
        if not path.is_file() or (path.suffix == ".tar" and self.server.for_shards != 200):
            self.send_error(self.server.for_shards if path.is_file() else 404)
            return
        data = path.read_bytes()
        asked = self.headers.get("Range") if self.server.ranges else None
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last or len(data)), len(data) - 1)
            if start > end:
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
            data = data[start : end + 1]
        else:
            self.send_response(200)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body and self.server.broken < self.server.breaks and len(data) > 1000:
            self.server.broken += 1
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.connection.close()
            return
        if body:
            self.wfile.write(data)


@pytest.fixture
def shard(tmp_path):
    samples = [(f"{i:05d}", {"jpg": jpeg(i, (400, 300)), "txt": b"a red car"}) for i in range(20)]
    write_tar(tmp_path / "00000.tar", samples)
    return tmp_path, samples


@pytest.mark.parametrize(("ranges", "breaks"), [(True, 0), (False, 0), (True, 2), (False, 2)])
def test_a_shard_is_read_whole(shard, ranges, breaks):
    folder, samples = shard
    server = Server(folder, ranges, breaks)
    problems = TarProblems()
    assert [(s.key, s.files) for s in read_tar(f"{server.url}/00000.tar", problems)] == samples
    assert problems.counts == {} and server.broken == breaks
    server.shutdown()


def test_sizes_ranges_and_digests(shard):
    folder, _ = shard
    server = Server(folder, True)
    url, data = f"{server.url}/00000.tar", (folder / "00000.tar").read_bytes()
    assert file_size(url) == len(data) and read_range(url, 700, 50) == data[700:750]
    assert read_range(url, len(data) - 5, 50) == data[-5:] and read_range(url, len(data), 50) == b""
    assert digest_file(url) == digest_file(folder / "00000.tar")  # this server gives no tag to go by
    server.shutdown()


def test_what_is_missing_and_who_never_answers_is_told(shard, monkeypatch):
    folder, _ = shard
    server = Server(folder, True)
    with pytest.raises(InputError, match=r"/00001\.tar: no such object"):
        list(read_tar(f"{server.url}/00001.tar"))
    server.shutdown()
    server.server_close()
    monkeypatch.setattr(files, "PATIENCE", 1.0)
    for look in (file_size, lambda url: open_file(url).read(), digest_file):
        with pytest.raises(StoreError, match=r"/00000\.tar: no answer from its store \(.*connect") as raised:
            look(f"{server.url}/00000.tar")
        assert stage_failure(raised.value) is not None  # the next shard would wait as long


@pytest.mark.parametrize("kind", [TimeoutError, FSTimeoutError, ConnectionResetError, ServerDisconnectedError])
def test_a_store_that_stays_silent_stops_the_stage(kind, monkeypatch):
    """Each shard would wait for PATIENCE seconds, whatever the error's kind."""
    monkeypatch.setattr(files, "PATIENCE", 0)

    def silent(*_: object, **__: object) -> None:
        raise kind("no word")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", silent)
    with pytest.raises(StoreError, match=r"memory://b/0\.tar: no answer from its store") as raised:
        files.read_bytes("memory://b/0.tar")
    assert stage_failure(raised.value) is not None and raised.value.no_answer
