"""Read a crawl shard as windows of queries: a bounded number of samples and bytes at a time."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.annotators.base import Annotator, TextQuery
from pipeline.annotators.batches import Item
from pipeline.data.caption_files import names_of
from pipeline.data.caption_phrases import CaptionPhrases
from pipeline.data.crawl import image_of
from pipeline.data.image_names import ImageNames
from pipeline.data.images import ImageError, image_size
from pipeline.errors import InputError
from pipeline.io.samples import read_samples, repeated_names
from pipeline.io.tars import TarSample
from pipeline.labelling.region_table import ShardResult

WINDOW_SAMPLES = 1024
WINDOW_BYTES = 128 << 20
PART_SAMPLES, PART_BYTES = 256, 32 << 20
"""A window ends at the sample that fills one of these, so it depends on the shard alone, as the batches in it do; so
does a part of samples, whose class names are looked up at once."""


def read_windows(
    crawl: str, result: ShardResult, annotator: Annotator, first: TextQuery | None = None,
    names: ImageNames | None = None,
) -> Iterator[list[Item]]:  # fmt: skip
    """The queries about every sample that has phrases; sizes, losses and problems go to ``result``.

    first: the only query about every sample, in place of those of its caption. names: class names of each sample, in
    place of a caption's phrases.

    Raises:
        InputError: no such shard, not a tar archive, or ``names`` has none of its samples.
    """
    samples_read = read_samples(crawl, result.problems)
    if names is not None:
        samples_read = _with_names(samples_read, names, result, repeated_names(crawl), crawl)
    window: list[Item] = []
    samples, size = 0, 0
    for index, sample in enumerate(samples_read):
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


def _with_names(
    samples: Iterator[TarSample], names: ImageNames, result: ShardResult, repeated: frozenset[str] | None, crawl: str
) -> Iterator[TarSample]:
    """The samples, whose names are in ``result`` by then; the file is searched once for several of them."""
    of_all, found_any, first = CaptionPhrases.of_names(names.names), False, None
    for part in _parts(samples):
        images = [image_of(sample) for sample in part]
        called = [names_of(s, image[0] if image else "", repeated) for s, image in zip(part, images, strict=True)]
        found = names.find(name for of_sample in called for name in of_sample)
        found_any, first = found_any or bool(found), first or (called[0][0] if called else None)
        for sample, of_sample in zip(part, called, strict=True):
            numbers = next((found[name] for name in of_sample if name in found), None)
            if numbers:
                result.phrases[sample.key] = of_all.of_some(numbers)
            else:
                result.unnamed["unlisted" if numbers is None else "no_name"] += 1
            yield sample
    if first is not None and not found_any:
        raise InputError(
            f"{crawl}: found class names of none of its samples in {names.file.path}, whose column {names.file.key} "
            f"has {names.file.first()!r}; want keys such as {first!r}"
        )


def _parts(samples: Iterator[TarSample]) -> Iterator[list[TarSample]]:
    """Runs of samples, a bounded number of them and of bytes."""
    part: list[TarSample] = []
    size = 0
    for sample in samples:
        part.append(sample)
        size += sum(map(len, sample.files.values()))
        if len(part) >= PART_SAMPLES or size >= PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


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
        if phrases.names is not None:
            queries = annotator.class_queries(phrases.phrases)
        else:
            queries, missing = annotator.queries(phrases.caption, phrases.spans)
            result.beyond_limit[index] = len(missing)
    shape = annotator.shape(width, height)
    return [Item(index, sample.key, image[1], (height, width), shape, query) for query in queries]
