"""Secrets in addresses are refused, by the same rule wherever settings are checked, and never repeated."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter, ValidationError

from pipeline.config import DataConfig
from pipeline.config.recipes import load_recipe
from pipeline.config.secrets import PATTERN, Address
from pipeline.errors import InputError

PLAIN = [
    "crawl", "/data/crawl/{00000..02399}.tar", "/data/a:b/c://d".replace("://", ":/"), "../x/0000?.tar",
    "/odd=name/me@host.tar", "C:/x.tar", "a:",
    "s3://bucket/crawl/{00000..02399}.tar", "s3://bucket/crawl/0000?.tar", "s3://bucket/date=2024-01-01/*.tar",
    "s3://bucket", "gs://b/{0,1}/x@2.tar",
    "https://host:8443/crawl/00000.tar", "http://[::1]:9000/x/0.tar", "file:///data/x.tar", "memory://x/0.tar", "s3://b/part-?/date=1/0.tar",
]  # fmt: skip
SECRET = [
    "https://TOKEN@host/0.tar", "https://me:TOKEN@host/0.tar", "s3://KEY:TOKEN@bucket/0.tar",
    "s3://KEY:TO/KEN@bucket/0.tar", "HTTPS://TOKEN@host",
    "https://host/0.tar?X-Amz-Signature=TOKEN", "https://host/0.tar?sv=1&sig=TOKEN", "https://host/0.tar?token=TOKEN", "https://host/#a=TOKEN",
    "https://host/0.tar?x/y&sig=TOKEN", "simplecache::s3://KEY:TOKEN@bucket/0.tar", " https://TOKEN@host/0.tar", "https://host?sig=TOKEN",
    "https://TOKEN:@host/x", "x/https://TOKEN@host/0.tar",
]  # fmt: skip


@pytest.mark.parametrize("address", PLAIN)
def test_paths_patterns_and_urls_are_addresses(address):
    assert load_recipe("demo", [f"data.crawl=['{address}']"]).data.crawl == (address,)


@pytest.mark.parametrize("address", SECRET)
def test_a_secret_is_refused_and_not_repeated(address):
    for setting, where in (
        (f"data.crawl=[a.tar, '{address}']", r"data\.crawl\.1"),
        (f"data.manifest='{address}'", r"data\.manifest"),
        (f"data.root='{address}'", r"data\.root"),
        (f"data.gold='{address}'", r"data\.gold"),
        (f"data.frequencies={{lvis: '{address}'}}", r"data\.frequencies\.lvis"),
    ):
        with pytest.raises(
            InputError, match=rf"^{where}: want an address without .* the worker's environment"
        ) as error:
            load_recipe("demo", [setting])
        assert "TOKEN" not in str(error.value) and error.value.__cause__ is None
    with pytest.raises(InputError):
        load_recipe("demo", [f"resources.cluster='{address.replace('https', 'ray')}'"])


pieces = st.lists(
    st.sampled_from([":", "/", "://", "@", "?", "=", "&", "#", "[", "]", "s3", "https", "a", "9", ".", "é", "\n"]),
    max_size=12,
)


@given(text=pieces.map("".join))
@example(text="::/:/")
@example(text="a://[::1]:9/?/=")
def test_every_checker_draws_the_same_line(text):
    by_python = bool(re.search(PATTERN, text))
    try:
        TypeAdapter(Address).validate_python(text)
        by_rust = True
    except ValidationError:
        by_rust = False
    schema = DataConfig.model_json_schema()
    by_schema = not list(Draft202012Validator(schema).iter_errors({"crawl": [text]}))
    assert by_python == by_rust == by_schema
    if "://" not in text:
        assert by_python
    elif re.match(r"[a-z0-9]+://[^/]*@", text):
        assert not by_python


def test_a_web_servers_token_comes_by_the_environment(tmp_path):
    class Guarded(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers.get("Authorization") == "Bearer TOKEN"
            self.send_response(200 if allowed else 401)
            self.send_header("Content-Length", "5" if allowed else "0")
            self.end_headers()
            if allowed and self.command == "GET":
                self.wfile.write(b"inner")

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/sets.yaml"
    code = f"from pipeline.io.files import read_bytes; print(read_bytes({url!r}))"
    for variables, words in (
        ({}, "Error"),
        ({"FSSPEC_HTTPS": '{"headers": {"Authorization": "Bearer TOKEN"}}'}, "b'inner'"),
    ):
        env = (
            {k: v for k, v in os.environ.items() if k != "FSSPEC_HTTPS"} | variables | {"GLIP_SELF_TRAIN_PATIENCE": "1"}
        )
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert words in done.stdout + done.stderr
    server.shutdown()


def test_the_command_says_so_in_a_line(tmp_path):
    command = [sys.executable, "-c", "from flows.cli import main; main()", "run", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, "--set", "data.crawl=['https://TOKEN@host/0.tar']"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("self-train: error: data.crawl.0: want an address")
    assert "TOKEN" not in done.stdout + done.stderr and not (tmp_path / "run").exists()
