"""Secrets in addresses are refused, by the same rule wherever settings are checked, and never repeated."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter, ValidationError

from pipeline.addresses import PATTERN, Address
from pipeline.config import DataConfig
from pipeline.errors import InputError
from pipeline.recipes import load_recipe

PLAIN = [
    "crawl", "/data/crawl/{00000..02399}.tar", "/data/a:b/c://d".replace("://", ":/"), "../x/0000?.tar", "/odd=name/me@host.tar", "C:/x.tar", "a:",
    "s3://bucket/crawl/{00000..02399}.tar", "s3://bucket/crawl/0000?.tar", "s3://bucket/date=2024-01-01/*.tar", "s3://bucket", "gs://b/{0,1}/x@2.tar",
    "https://host:8443/crawl/00000.tar", "http://[::1]:9000/x/0.tar", "file:///data/x.tar", "memory://x/0.tar", "s3://b/part-?/date=1/0.tar",
]  # fmt: skip
SECRET = [
    "https://TOKEN@host/0.tar", "https://me:TOKEN@host/0.tar", "s3://KEY:TOKEN@bucket/0.tar", "s3://KEY:TO/KEN@bucket/0.tar", "HTTPS://TOKEN@host",
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
            InputError, match=rf"^{where}: want an address without .* environment of the worker"
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
