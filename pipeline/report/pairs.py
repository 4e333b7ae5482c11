"""A page of pairs of near-duplicates side by side, for people to judge. One file, no network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import pyarrow as pa
from PIL import Image

from pipeline.data.images import ImageError, open_image
from pipeline.dedup.image_sets import ImageSet
from pipeline.dedup.report import DedupReport
from pipeline.errors import InputError
from pipeline.io.atomic import write_atomic
from pipeline.io.paths import join
from pipeline.io.tables import read_table
from pipeline.report.gallery import data_url
from pipeline.report.templates import render

SIDE = 240


def write_pairs(
    matches: pa.Table, training: ImageSet, against: Sequence[ImageSet], out: str, *, limit: int, report: DedupReport
) -> None:
    """Write ``out/pairs.html`` with up to ``limit`` pairs, the least alike first: where the mistakes are, if there are any."""
    rows = matches.sort_by([("details", "descending"), ("shard", "ascending"), ("key", "ascending")])
    sets = {images.name: images for images in against}
    places = lru_cache(maxsize=4)(_places)
    items = []
    for row in rows.slice(0, limit).to_pylist():
        folder = join(out, f"hashes/against/{row['set']}")
        mine = _picture(training, row["shard"], row["key"], places(join(out, "hashes/shards"), row["shard"]))
        other = _picture(sets[row["set"]], row["set_part"], row["set_key"], places(folder, row["set_part"]))
        items.append({**row, "images": [mine, other]})
    page = render(
        "pairs.html", title="Near-duplicates of evaluation images", lines=report.lines(), items=items,
        total=matches.num_rows,
    )  # fmt: skip
    write_atomic(join(out, "pairs.html"), page)


def _places(folder: str, part: str) -> dict[str, tuple[int | None, int | None]]:
    table = read_table(join(folder, f"{part}.parquet"), ["key", "offset", "bytes"])
    key, offset, size = (table[name].to_pylist() for name in table.column_names)
    return dict(zip(key, zip(offset, size, strict=True), strict=True))


def _picture(images: ImageSet, part: str, key: str, places: dict[str, tuple[int | None, int | None]]) -> str | None:
    """A small picture inside a URL; None if it is not to be had any more."""
    try:
        image = open_image(images.fetch(part, key, *places[key]), at_least=(SIDE, SIDE))
    except (ImageError, InputError, OSError):
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return data_url(image)
