"""Read a crawl shard as windows of queries: a bounded number of samples and bytes at a time."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.annotators.base import Annotator, TextQuery
from pipeline.annotators.batches import Item
from pipeline.data.crawl import image_of
from pipeline.data.images import ImageError, image_size
from pipeline.io.samples import read_samples
from pipeline.io.tars import TarSample
from pipeline.labelling.region_table import ShardResult

WINDOW_SAMPLES = 1024
WINDOW_BYTES = 128 << 20
"""A window ends at the sample that fills one of these, so it depends on the shard alone, as the batches in it do."""


def read_windows(
    crawl: str, result: ShardResult, annotator: Annotator, first: TextQuery | None = None
) -> Iterator[list[Item]]:
    """The queries about every sample that has phrases; sizes, losses and problems go to ``result``.

    first: the only query about every sample, in place of those of its caption.

    Raises:
        InputError: no such shard, or not a tar archive.
    """
    window: list[Item] = []
    samples, size = 0, 0
    for index, sample in enumerate(read_samples(crawl, result.problems)):
        if result.phrases_of(sample.key) is None:
            continue
        result.keys[index] = sample.key
        try:
            window += _items(result, index, sample, annotator, first)
        except ImageError as error:
            result.lose(index, error)
            continue
        samples += 1
        size += sum(map(len, sample.files.values()))
        if samples >= WINDOW_SAMPLES or size >= WINDOW_BYTES:
            yield window
            window, samples, size = [], 0, 0
    if window:
        yield window


def _items(
    result: ShardResult, index: int, sample: TarSample, annotator: Annotator, first: TextQuery | None
) -> list[Item]:
    image = image_of(sample)
    if image is None:
        raise ImageError("no_image", "the sample has no image")
    height, width = result.sizes[index] = image_size(image[1])
    queries = [] if first is None else [first]
    if first is None:
        phrases = result.phrases[sample.key]
        queries, missing = annotator.queries(phrases.caption, phrases.spans)
        result.beyond_limit[index] = len(missing)
    shape = annotator.shape(width, height)
    return [Item(index, sample.key, image[1], (height, width), shape, query) for query in queries]
