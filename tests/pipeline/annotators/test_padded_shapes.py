"""Padded shapes: few, and one for every image and text; what a GLIP teacher does with them."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.image_processing_glip import resized_size
from pipeline.annotators.base import TextQuery, collate_again, start
from pipeline.annotators.batches import Item, batches
from pipeline.annotators.flops import labelling_flops
from pipeline.annotators.padded_shapes import PaddedShapes
from pipeline.config import PseudoLabelConfig
from pipeline.execution.throughput import Rates
from tests.fixtures.annotators import predict_images
from tests.fixtures.compiling import compile_graphs_alone
from tests.pipeline.annotators.conftest import ALL, CAPTION, SPANS, picture

SIZES = [(800, 1333, 256), (320, 533, 64), (64, 128, 24), (1000, 640, 77)]
"""Shorter and longer side, and text limit, of teachers."""
sides = st.integers(1, 5000)


@pytest.mark.parametrize("size", SIZES)
@given(sides, sides, st.integers(2, 256))
def test_every_image_with_every_text_has_a_shape(size, width, height, tokens):
    shortest, longest, limit = size
    shapes = PaddedShapes.of(*size)
    assert 2 <= len(shapes.shapes) <= 32
    h, w = resized_size(width, height, shortest, longest)
    found = shapes.holding(h, w, min(tokens, limit))
    if max(h, w) > longest:  # GLIP's resize rounds the shorter side, and may exceed the limit
        return
    assert found in shapes.shapes and found[0] >= h and found[1] >= w and found[2] >= min(tokens, limit)


def items(seed: int, count: int) -> list[Item]:
    rng = random.Random(seed)
    found = []
    for index in range(count):
        size = rng.randint(20, 3000), rng.randint(20, 3000)
        query = TextQuery("a dog", ((2, 5),), (0,), rng.randint(3, 256))
        found.append(Item(index, str(index), b"", size, resized_size(*size[::-1], 800, 1333), query))
    return found


@given(st.integers(0, 99), st.integers(0, 60), st.integers(1, 9))
def test_every_batch_has_a_shape(seed, count, size):
    shapes, given_items = PaddedShapes.of(800, 1333, 256), items(seed, count)
    cut = list(batches(given_items, size, shapes))
    assert sorted(i.index for batch in cut for i in batch) == list(range(count))
    assert len(cut) <= -(-count // size) + 1  # landscape and portrait images each end with a smaller one
    for batch in cut:
        height, width, tokens = map(max, zip(*((*i.shape, i.query.tokens) for i in batch), strict=True))
        assert len(batch) <= size
        assert max(height, width) > 1344 or shapes.holding(height, width, tokens) is not None


def one_query(annotator, caption=CAPTION, spans=SPANS):
    return annotator.queries(caption, spans)[0][0]


def close(a, b, tolerance: float = 1e-3) -> bool:
    order = [np.lexsort((f.boxes[:, 0], f.score, f.phrase)) for f in (a, b)]
    return len(a.score) == len(b.score) > 0 and all(
        np.allclose(getattr(a, name)[order[0]], getattr(b, name)[order[1]], atol=tolerance)
        for name in ("phrase", "score", "token_min", "centerness")
    )


THRESHOLDS = PseudoLabelConfig(floor=0.3, nms_threshold=0.5, batch_size=3)


def test_padding_to_a_shape_changes_no_region(load):
    """As on GPUs."""
    annotator, other = load("glip", THRESHOLDS), load("glip", THRESHOLDS.model_copy(update={"batch_size": 4}))
    images, queries = [picture(0), picture(1, (60, 90))], [one_query(annotator)] * 2
    other.shapes = PaddedShapes.of(other._size["shortest_edge"], other._size["longest_edge"], other._limit)
    for image, query in zip(images, queries, strict=True):
        ready = [other.prepare(image, image.size[::-1])]
        shape = other.collate(ready, [query]).inputs
        assert (*shape["pixel_values"].shape[2:], shape["input_ids"].shape[1]) in other.shapes.shapes
        (a,), (b,) = predict_images(other, [image], [query]), predict_images(annotator, [image], [query])
        assert close(a, b)


def test_other_texts_about_the_same_images_need_their_features_once(load, monkeypatch):
    annotator = load("glip", THRESHOLDS)
    images = [annotator.prepare(picture(i), (60, 90)) for i in range(2)]
    queries = [
        one_query(annotator),
        one_query(annotator, "two dogs", [(0, 8)]),
        one_query(annotator, "a car", [(2, 5)]),
    ]
    wanted = [annotator.predict(annotator.collate(images, [query] * 2)) for query in queries]
    passes = []
    encode = annotator._encode_image
    monkeypatch.setattr(annotator, "_encode_image", lambda pixels: passes.append(len(pixels)) or encode(pixels))
    first = replace(annotator.collate(images, [queries[0]] * 2), of_images={})
    later = [collate_again(annotator, first, [query] * 2) for query in queries[1:]]
    for batch, regions in zip([first, *later], wanted, strict=True):
        for a, b in zip(start(annotator, batch)(), regions, strict=True):
            assert np.array_equal(a.boxes, b.boxes) and np.array_equal(a.score, b.score)
    assert passes == [2]


def test_a_batch_that_is_filled_up_has_the_same_regions(load):
    """As compiled networks get it, here computed eagerly."""
    annotator, other = load("glip", THRESHOLDS), load("glip", THRESHOLDS.model_copy(update={"batch_size": 5}))
    other._compiles = True
    images = [annotator.prepare(picture(i), (60, 90)) for i in range(2)]
    queries = [one_query(annotator), one_query(annotator, "two dogs", [(0, 8)])]
    first = replace(other.collate(images, [queries[0]] * 2), of_images={})
    batches_of = [first, collate_again(other, first, [queries[1]] * 2)]
    for query, batch in zip(queries, batches_of, strict=True):
        for a, b in zip(other.predict(batch), annotator.predict(annotator.collate(images, [query] * 2)), strict=True):
            assert close(a, b)


def test_the_least_time_is_that_of_the_flops_of_all_padded_images(load):
    annotator = load("glip", THRESHOLDS.model_copy(update={"batch_size": 6}))
    annotator.least_seconds()
    annotator._peaks = {"float32": 1e9}
    images = [annotator.prepare(picture(i), (60, 90)) for i in range(3)]
    first = annotator.collate(images, [one_query(annotator)] * 3)
    shape, tokens = first.inputs["pixel_values"].shape[2:], first.inputs["input_ids"].shape[1]
    annotator.predict(first)
    wanted = 3 * labelling_flops(annotator._model.config, tuple(shape), tokens, "float32")["float32"] / 1e9
    assert annotator.least_seconds() == pytest.approx(wanted) and annotator.least_seconds() == 0
    annotator.predict(replace(first, of_images={}))  # the image's part may be computed once for several texts
    assert annotator.least_seconds() is None


@pytest.mark.parametrize(
    "parts, bound",
    [
        ({"model": 95.0, "wait": 5.0, "decode": 300.0, "limit": 40.0}, "device"),
        ({"model": 50.0, "wait": 50.0, "decode": 300.0, "read": 20.0}, "decode"),
        ({"model": 50.0, "wait": 50.0, "decode": 90.0, "read": 95.0}, "read"),
        ({"model": 20.0, "wait": 1.0, "load": 79.0}, None),
        ({}, None),
    ],
)
def test_what_bounds_the_rate_is_named(parts, bound):
    rates = Rates(device_seconds=100, samples=10, parts=parts)
    assert rates.bound == bound
    lines = [line for line in rates.lines() if "bound by" in line]
    assert bool(lines) == (bound is not None) and ("40 % of the FLOPs" in "".join(lines)) == ("limit" in parts)
    assert not any("limit 40" in line for line in rates.lines())


@pytest.mark.slow
def test_a_compiled_teacher_finds_the_same_regions(load, monkeypatch, caplog):
    """By its graphs; tests/model/test_glip_paths.py has inductor's code of a network."""
    compile_graphs_alone(monkeypatch)
    plain, fast = load("glip", THRESHOLDS), load("glip", THRESHOLDS.model_copy(update={"compile": "auto"}))
    for count in (3, 1):  # a smaller batch is filled up
        images = [picture(i, (640, 480)) for i in range(count)]
        queries = [one_query(plain)] * count
        for a, b in zip(*(predict_images(t, images, queries) for t in (fast, plain)), strict=True):
            assert close(a, b)
    assert "not compiled" not in caplog.text


def test_settings_without_compile_are_those_of_earlier_runs():
    assert (
        "compile" not in ALL.model_dump_json()
        and "compile" in ALL.model_copy(update={"compile": "auto"}).model_dump_json()
    )
