"""Statistics of a label store file: labels or regions, with captions if the phrases are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.caption_phrases import CaptionPhrases, read_caption_phrases
from pipeline.data.name_list import footer_names
from pipeline.data.records import LABELS, REGIONS
from pipeline.filtering.store import BOX
from pipeline.inspection.counts import OUTSIDE, Counts, Picture, key_hash, sample_rank
from pipeline.io.paths import join, stem
from pipeline.io.tables import footer, read_table


def count_table(path: str, *, status: bool, phrases: str | None, pictures: int) -> Counts:
    """Count a file of labels or regions.

    Pictures are chosen only if ``phrases``, which have the captions, is given, or of class names.

    Args:
        status: whether the file has labels.
        phrases: folder of parse-phrases' output.
        pictures: maximum number of samples to draw.

    Raises:
        InputError: a file is missing, or not of the label store.
    """
    counts, name = Counts(), stem(path)
    table = read_table(path, LABELS if status else REGIONS, optional=["name"])
    notes = footer(table.schema)
    teacher, names = notes.get("teacher") or None, footer_names(notes, path)
    captions = read_caption_phrases(join(phrases, f"{name}.parquet")) if phrases and names is None else {}
    statuses = table["status"].cast(pa.string()) if status else None
    kept = table if statuses is None else table.filter(pc.equal(statuses, "keep"))
    uncertain = 0 if statuses is None else pc.sum(pc.equal(statuses, "uncertain")).as_py() or 0
    keys = list(dict.fromkeys([*captions, *table["key"].unique().to_pylist()]))
    per_image = _value_counts(kept["key"])
    counts.keys = [key_hash(key) for key in keys]
    counts.numbers.update(
        samples=len(keys), with_boxes=len(per_image), without_boxes=len(keys) - len(per_image),
        boxes=kept.num_rows, ignore_regions=table.num_rows - kept.num_rows - uncertain, uncertain_names=uncertain,
    )  # fmt: skip
    counts.bin("boxes_per_image", [per_image.get(key, 0) for key in keys])
    if kept.num_rows:
        counts.table("annotators", teacher or "unknown", kept.num_rows)
    _boxes(counts, table, kept, name)
    if names is not None:
        of_name = _value_counts(kept["name"])
        for each in names.names:
            counts.table("names", each, of_name.get(each, 0))
    elif captions:
        counts.numbers["captions"] = len(captions)
        counts.bin("caption_words", [len(a.caption.split()) for a in captions.values()])
        _spans(counts, table, captions, name)
    if names is not None or captions:
        drawable = [key for key in per_image if names is not None or key in captions]
        ranks = sorted((sample_rank(name, key, True), key) for key in drawable)
        counts.pictures = [Picture(rank, name, key) for rank, key in ranks[:pictures]]
    return counts


def _value_counts(column: pa.ChunkedArray) -> Mapping[str, int]:
    return {row["values"]: row["counts"] for row in column.value_counts().to_pylist()}


def _numbers(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    """(rows, names) float64."""
    return np.stack([table[name].to_numpy().astype(np.float64) for name in names], 1)


def _boxes(counts: Counts, table: pa.Table, kept: pa.Table, name: str) -> None:
    """Count kept boxes' sizes, phrases and scores, all boxes' problems, and image sizes."""
    boxes, images = _numbers(table, BOX), _numbers(table, ("height", "width"))
    empty = ~((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    limits = np.concatenate([images[:, ::-1], images[:, ::-1]], 1)
    outside = ((boxes < -OUTSIDE) | (boxes > limits + OUTSIDE)).any(1)
    for reason, bad in (("box_without_area", empty), ("box_outside_image", outside)):
        if bad.any():
            counts.problems[reason] += int(bad.sum())
            first = table["key"][int(np.flatnonzero(bad)[0])]
            counts.note(f"{name}/{first}: {reason.replace('_', ' ')}, first of {int(bad.sum()):,}")
    kept_boxes = _numbers(kept, BOX)
    valid = (kept_boxes[:, 2] > kept_boxes[:, 0]) & (kept_boxes[:, 3] > kept_boxes[:, 1])
    counts.boxes(kept_boxes[valid], _numbers(kept, ("height", "width"))[valid])
    scores = kept["score"].to_numpy()
    counts.bin("scores", scores[~np.isnan(scores)])
    if "name" not in table.column_names:
        texts = _value_counts(pc.utf8_lower(kept["phrase"]))
        counts.phrases.update(texts)
        counts.bin("phrase_words", [len(text.split()) for text in texts], np.array(list(texts.values()), np.int64))
    first_rows = table.group_by("key", use_threads=False).aggregate([("height", "first"), ("width", "first")])
    counts.sizes(list(zip(first_rows["height_first"].to_pylist(), first_rows["width_first"].to_pylist(), strict=True)))


def _spans(counts: Counts, table: pa.Table, captions: Mapping[str, CaptionPhrases], name: str) -> None:
    columns = (table[c].to_pylist() for c in ("key", "phrase", "start", "end"))
    for key, phrase, start, end in zip(*columns, strict=True):
        if key not in captions:
            counts.problem("key_without_phrases", f"{name}/{key}: has regions, but no phrases")
        elif not 0 <= start < end <= len(captions[key].caption):
            counts.problem("span_outside_caption", f"{name}/{key}: [{start}, {end}) is outside the caption")
        elif captions[key].caption[start:end] != phrase:
            counts.problem("phrase_differs", f"{name}/{key}: {phrase!r} is not the text of [{start}, {end})")
