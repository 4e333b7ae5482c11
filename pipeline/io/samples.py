"""One reader of samples: of tars, and of virtual shards (loose images, lists of them, image tables)."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.io.paths import stem
from pipeline.io.tars import TarProblems, TarSample, read_tar
from pipeline.io.virtual_shards import ImageTable, LooseImages, encoded, read_regular, virtual_shard

CAPTION_COLUMNS = ("caption", "captions", "text")
"""Columns of an image table that captions are in; the first that there is."""
_ROWS_AT_ONCE = 32
_ENDS = (".", "!", "?", "…", "。", "！", "？")
_MAGIC = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"), (b"BM", "bmp"), (b"GIF8", "gif"))
"""First bytes of image files -> extension, as tables hold images without names."""


def read_samples(shard: str | Path, problems: TarProblems | None = None) -> Iterator[TarSample]:
    """Stream the samples of a crawl shard, a tar (:func:`pipeline.io.tars.read_tar`) or a virtual shard, in order.

    Of a virtual shard, what lies among the images and is none is counted in ``problems``: ``hidden_file``,
    ``not_an_image``, ``broken_link``, ``not_a_file``, ``folder_listed_before`` (a loop of links),
    ``unreadable_folder``, ``listed_twice``; and ``missing_file`` and ``unreadable_file``, images that
    cannot be read. The first of each reason is noted. A sample has the image's bytes as they are, and those
    of KEY.txt and KEY.json beside it; of a table's row, its caption as ``txt``.

    Raises:
        InputError: the shard is missing, is not a tar archive, or a virtual shard's source has other images
            now or is damaged.
    """
    problems = problems if problems is not None else TarProblems()
    if (virtual := virtual_shard(shard)) is None:
        yield from read_tar(shard, problems)
        return
    source = virtual.open()
    if isinstance(source, ImageTable):
        yield from _rows(source, virtual.number)
        return
    for reason, note in source.problems_of(virtual.number):
        problems.add_once(reason, note)
    for path in source.members(virtual.number):
        if (sample := _loose_sample(source, path, problems)) is not None:
            yield sample


def find_sample(shard: str | Path, key: str) -> TarSample | None:
    """The sample of a crawl shard with this key; None if it cannot be read. Of loose images only its files are read.

    Raises:
        InputError: as :func:`read_samples`.
    """
    virtual = virtual_shard(shard)
    source = None if virtual is None else virtual.open()
    if virtual is None or not isinstance(source, LooseImages):
        return next((sample for sample in read_samples(shard) if sample.key == key), None)
    path = next((path for path in source.members(virtual.number) if source.key(path) == key), None)
    return None if path is None else _loose_sample(source, path, TarProblems())


def repeated_names(shard: str | Path) -> frozenset[str] | None:
    """File names of a shard's images that others of its folder or list have too; None for other shards."""
    virtual = virtual_shard(shard)
    source = None if virtual is None else virtual.open()
    if virtual is None or not isinstance(source, LooseImages):
        return None
    return source.repeated_names & {posixpath.basename(path) for path in source.members(virtual.number)}


def joined_captions(captions: Iterable[str | None]) -> str:
    """One text of an image's captions, each a sentence of its own; empty and repeated ones are left out."""
    texts = list(dict.fromkeys(text for caption in captions if caption and (text := caption.strip())))
    if len(texts) == 1:
        return texts[0]
    return " ".join(text if text.endswith(_ENDS) else f"{text}." for text in texts)


def _loose_sample(source: LooseImages, path: str, problems: TarProblems) -> TarSample | None:
    """An image and its sidecars; None, with the reason in ``problems``, if the image cannot be read."""
    sample = TarSample(source.key(path), path=path)
    for extension, file in source.files(path):
        try:
            sample.files[extension] = read_regular(file)
        except OSError as error:
            reason = "missing_file" if isinstance(error, FileNotFoundError) else "unreadable_file"
            if not sample.files or reason == "unreadable_file":  # sidecars may be missing
                problems.add_once(reason, f"{sample.key}.{extension}: {error.strerror}")
            if not sample.files:
                return None
    return sample


def _rows(table: ImageTable, number: int) -> Iterator[TarSample]:
    """Samples of a table's rows; keys are the file's name and the row's number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row, _, begin, end = table.groups[number]
    name = encoded(stem(table.path))
    try:
        with pq.ParquetFile(table.path) as file:
            caption = next((c for c in CAPTION_COLUMNS if c in file.schema_arrow.names), None)
            columns = [table.column] if caption is None else [table.column, caption]
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=range(begin, end), columns=columns):
                images = batch.column(table.column).to_pylist()
                captions = [None] * len(images) if caption is None else batch.column(caption).to_pylist()
                for image, text in zip(images, captions, strict=True):
                    yield _row(f"{name}-{row:07d}", image or {}, text)
                    row += 1
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{table.path}: cannot be read from row {row} on ({str(error).splitlines()[0]})") from None


def _row(key: str, image: dict[str, Any], caption: Any) -> TarSample:
    sample = TarSample(key)
    if (data := image.get("bytes")) is not None:
        named = (image.get("path") or "").rpartition(".")[2].lower() or "bin"
        sample.files[next((extension for magic, extension in _MAGIC if data.startswith(magic)), named)] = data
    captions = caption if isinstance(caption, list) else [caption]
    if texts := [text for text in captions if isinstance(text, str)]:
        sample.files["txt"] = (texts[0] if len(texts) == 1 else joined_captions(texts)).encode()
    return sample
