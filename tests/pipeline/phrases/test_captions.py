"""What describes nothing: whole captions, and parts of others."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.phrases.captions import find_boilerplate, skip_reason
from tests.pipeline.phrases.captions import captions


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("  ", "empty_caption"),
        ("https://x.org/a?b=1", "address"),
        ("IMG_2034.jpg", "file_name"),
        ("my cat on the sofa.png", "file_name"),
        ("Untitled", "file_name"),
        ("404", "boilerplate"),
        ("BUY NOW | stock photo", "boilerplate"),
        ("Free shipping on orders over $50", "boilerplate"),
        ("Image may contain: 2 people, smiling", "boilerplate"),
        ("Photo by Jane Doe", "boilerplate"),
        ("$25.99 - www.shop.com", "boilerplate"),
        ("A red car - BUY NOW", None),
        ("Royalty free stock photos of two dogs", None),
        ("the stock of photos in a shop", None),
        ("a photo by the sea", None),
    ],
)
def test_whole_captions(caption, reason):
    assert skip_reason(caption) == reason


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("A bag for $ 1,299.00 or 30 euros, 20% off",
         [("$ 1,299.00", "price"), ("30 euros", "price"), ("20% off", "price")]),
        ("see http://a.b/c and shop.co.uk/x", [("http://a.b/c", "address"), ("shop.co.uk/x", "address")]),
        ("write to me@x.org now", [("me@x.org", "address")]),
        ("DSC_1234 and cat-2.jpeg", [("DSC_1234", "file_name"), ("cat-2.jpeg", "file_name")]),
        ("Two dogs | photo by Jane Doe | SOLD OUT", [("photo by Jane Doe", "shop_talk"), ("SOLD OUT", "shop_talk")]),
        ("A mountain of 3 kinds of fruit at 5 pm.", []),
        ("A dog.A cat", []),
    ],
)  # fmt: skip
def test_parts(caption, found):
    assert [(caption[p.start : p.end], p.reason) for p in find_boilerplate(caption)] == found


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=200), captions(30)))
def test_parts_are_in_order_and_apart(caption):
    last = 0
    for part in find_boilerplate(caption):
        assert last <= part.start < part.end <= len(caption)
        assert part.reason in {"address", "file_name", "price", "shop_talk"}
        last = part.end
    skip_reason(caption)


@pytest.mark.parametrize(
    "unit",
    ["a_", "a-", "1.", "1,", "$1", "www.", "a.b@", "photo by ", "a(b)5", "a ", "x"],
    ids=lambda unit: unit.strip(),
)
def test_no_caption_takes_long(unit):
    started = time.perf_counter()
    skip_reason(unit * 2000 + "!")
    find_boilerplate(unit * 2000 + "5")
    assert time.perf_counter() - started < 0.5  # it was exponential in underscores once
