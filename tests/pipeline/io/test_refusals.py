"""A store that refuses is not asked again, and the error says whether it would refuse everything."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import fsspec
import pytest

from pipeline.execution.stage_failures import stage_failure
from pipeline.io.files import StoreError, file_size, open_file, read_bytes, write_remote

s3fs = pytest.importorskip("s3fs")


@contextmanager
def refusing(status: int, code: str) -> Iterator[str]:
    """The URL of an S3 gateway that answers every request so; HEAD requests without a body, as all do."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # clients wait for its "100 Continue"

        def answer(self) -> None:
            self.close_connection = True
            body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode() if code else b""
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "code", "for_all"),
    [
        (400, "ExpiredToken", True),
        (400, "InvalidToken", True),
        (401, "Unauthorized", True),
        (403, "InvalidAccessKeyId", True),
        (403, "SignatureDoesNotMatch", True),
        (403, "QuotaExceeded", True),
        (507, "XMinioStorageFull", True),
        (404, "NoSuchBucket", True),
        (403, "AccessDenied", False),
    ],
)
def test_what_a_store_refuses(status, code, for_all, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("NO_PROXY", "*")
    (tmp_path / "x").write_bytes(b"x")
    with refusing(status, code) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        fsspec.filesystem("s3").clear_instance_cache()
        began = time.monotonic()
        with pytest.raises(StoreError, match=r"^s3://bucket/labels/x: ") as written:
            write_remote("s3://bucket/labels/x", tmp_path / "x")
        assert written.value.exit_code == (1 if for_all and status != 404 else 2)
        assert written.value.for_all == for_all and len(str(written.value).splitlines()) == 1
        assert stage_failure(written.value, "s3://bucket/labels")
        if status != 404:
            with pytest.raises(StoreError) as read:  # HEAD: the status is all that it tells
                file_size("s3://bucket/crawl/x")
            assert read.value.for_all == (status != 403)
            with pytest.raises(StoreError):
                open_file("s3://bucket/crawl/x").read()
            with pytest.raises(StoreError):
                read_bytes("s3://bucket/crawl/x")
        assert time.monotonic() - began < 60, "want no second try: patience is 180 s"
