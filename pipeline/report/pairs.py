"""A self-contained HTML page of near-duplicate pairs, for visual inspection."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import pyarrow as pa
from PIL import Image

from pipeline.data.images import ImageError, open_image
from pipeline.dedup.image_sets import ImageSet
from pipeline.dedup.report import WITHIN, DedupReport
from pipeline.errors import InputError
from pipeline.io.atomic import write_atomic
from pipeline.io.paths import join
from pipeline.io.tables import read_table
from pipeline.report.provenance import package_version
from pipeline.report.templates import render
from pipeline.report.urls import jpeg_url

SIDE = 240


def write_pairs(
    matches: pa.Table, training: ImageSet, against: Sequence[ImageSet], out: str, *, limit: int, report: DedupReport
) -> None:
    """Write ``out/pairs.html``: up to ``limit`` pairs, least similar (likely mistakes) first."""
    rows = matches.sort_by([("details", "descending"), ("shard", "ascending"), ("key", "ascending")])
    sets = {images.name: images for images in against} | {WITHIN: training}
    ranges = lru_cache(maxsize=4)(_byte_ranges)
    items = []
    for row in rows.slice(0, limit).to_pylist():
        folder = join(out, "hashes/shards" if row["set"] == WITHIN else f"hashes/against/{row['set']}")
        left = _thumbnail(training, row["shard"], row["key"], ranges(join(out, "hashes/shards"), row["shard"]))
        right = _thumbnail(sets[row["set"]], row["set_part"], row["set_key"], ranges(folder, row["set_part"]))
        items.append({**row, "images": [left, right]})
    page = render(
        "pairs.html", title="Near-duplicates of evaluation images", lines=report.lines(), items=items,
        total=matches.num_rows, made={"version": package_version()},  # a resumed run writes the same bytes
    )  # fmt: skip
    write_atomic(join(out, "pairs.html"), page)


def _byte_ranges(folder: str, part: str) -> dict[str, tuple[int | None, int | None]]:
    table = read_table(join(folder, f"{part}.parquet"), ["key", "offset", "bytes"])
    key, offset, size = (table[name].to_pylist() for name in table.column_names)
    return dict(zip(key, zip(offset, size, strict=True), strict=True))


def _thumbnail(images: ImageSet, part: str, key: str, ranges: dict[str, tuple[int | None, int | None]]) -> str | None:
    """The image as a small data URL; None if it cannot be read any more."""
    try:
        image = open_image(images.fetch(part, key, *ranges[key]), at_least=(SIDE, SIDE))
    except (ImageError, InputError, OSError):
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return jpeg_url(image, quality=88)
