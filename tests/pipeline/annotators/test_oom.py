"""A teacher that runs out of memory: the batch is halved, and every answer is what it would have been."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from pipeline.annotators.base import load_annotator
from pipeline.annotators.oom import out_of_memory
from tests.pipeline.annotators.conftest import ALL, CAPTION, SPANS, picture


class Small(torch.nn.Module):
    """A network on a device that holds so many images, and says what torch says."""

    def __init__(self, network: torch.nn.Module, most: int, error: type[Exception], words: str) -> None:
        super().__init__()
        self.network, self.most, self.error, self.words = network, most, error, words
        self.seen: list[int] = []

    def forward(self, pixel_values, **inputs):
        self.seen.append(len(pixel_values))
        if len(pixel_values) > self.most:
            raise self.error(self.words)
        return self.network(pixel_values=pixel_values, **inputs)


@pytest.fixture
def asked(folders):
    """A teacher of its own (what is done to it stays in the test), and seven queries about seven images."""
    load_annotator.__globals__["_load"].cache_clear()
    annotator = load_annotator(folders["grounding-dino"], ALL)
    yield (
        annotator,
        [picture(i) for i in range(7)],
        [annotator.queries(CAPTION, SPANS[i % 2 :])[0][0] for i in range(7)],
    )
    load_annotator.__globals__["_load"].cache_clear()


def batch(annotator, images, queries):
    return annotator.collate([annotator.prepare(i, (i.height, i.width)) for i in images], queries)


@pytest.mark.parametrize("most", [1, 2, 3, 6])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB"),
        (RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000000 bytes"),
    ],
)
def test_halves_answer_as_the_whole_did_and_in_order(asked, caplog, most, error, words):
    annotator, images, queries = asked
    wanted = annotator.predict(batch(annotator, images, queries))
    small = annotator._model = Small(annotator._model, most, error, words)
    with caplog.at_level(logging.WARNING, "glip_self_train"):
        found = annotator.predict(batch(annotator, images, queries))
    assert "out of memory with 7 images in a batch: continuing with 3" in caplog.text
    assert len(found) == len(wanted) == 7
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a.phrase, b.phrase)
        np.testing.assert_allclose(a.boxes, b.boxes, atol=2e-3)
        np.testing.assert_allclose(a.score, b.score, atol=1e-5)
    assert sum(n for n in small.seen if n <= most) == 7
    tries = len(small.seen)
    annotator.predict(batch(annotator, images, queries))
    assert max(small.seen[tries:]) <= most, "a size that did not fit is not tried again"


def test_an_image_that_does_not_fit_alone_is_an_error(asked):
    annotator, images, queries = asked
    annotator._model = Small(annotator._model, 0, torch.OutOfMemoryError, "CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        annotator.predict(batch(annotator, images, queries))
    assert annotator._model.seen == [7, 3, 1]


def test_other_errors_are_not_memory(asked):
    annotator, images, queries = asked
    annotator._model = Small(annotator._model, 2, RuntimeError, "shape mismatch")
    with pytest.raises(RuntimeError, match="shape mismatch"):
        annotator.predict(batch(annotator, images, queries))
    assert annotator._model.seen == [7] and not out_of_memory(RuntimeError("shape mismatch"))


@pytest.mark.parametrize("name", ["glip", "owlv2", "owlvit", "mm-grounding-dino", "omdet-turbo", "florence2", "sam3"])
def test_every_family_halves(folders, name, monkeypatch):
    annotator = load_annotator(folders[name], ALL)
    images = [picture(i) for i in range(5)]
    queries = [annotator.queries(CAPTION, SPANS)[0][0]] * 5
    wanted = annotator.predict(batch(annotator, images, queries))
    forward, tried = annotator._forward, []

    def limited(of):
        tried.append(len(of.images))
        if len(of.images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(of)

    monkeypatch.setattr(annotator, "_forward", limited)
    monkeypatch.setattr(annotator._in_halves, "most", None)
    found = annotator.predict(batch(annotator, images, queries))
    assert tried == [5, 2, 2, 1]
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.sort(a.score), np.sort(b.score), atol=1e-5)
