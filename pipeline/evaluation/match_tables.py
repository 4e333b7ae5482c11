"""Tables of a set's matched detections, gold boxes and queries, stored beside its metrics.

``compare``, ``promote`` and ``label-qa`` read these tables and need neither model nor shards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.errors import InputError
from pipeline.evaluation.matching import IOUS, Matches
from pipeline.evaluation.metrics import ImageResult, Queries
from pipeline.io.atomic import write_json
from pipeline.io.tables import read_table, write_table


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(n, t, nullable=n == "gold_score") for n, t in columns.items()])


DETECTIONS = _schema(
    image=pa.int32(), label=pa.int32(), score=pa.float32(), area=pa.float32(), hit=pa.int16(), ignored=pa.int16(),
    present=pa.bool_(), absent=pa.bool_(),
)  # fmt: skip
"""As :class:`Matches`; ``hit`` (tp) and ``ignored`` have a bit for each of IOUS, 0.5 the lowest."""
GOLD = _schema(gold_image=pa.int32(), gold_label=pa.int32(), gold_area=pa.float32(), gold_score=pa.float32())
QUERIES = _schema(
    image=pa.int32(), label=pa.int32(), boxes=pa.int32(), first=pa.int16(), first_merged=pa.int16(), phrase=pa.string()
)
BITS = 1 << np.arange(len(IOUS))


@dataclass(frozen=True)
class MatchTables:
    """The match tables of one set.

    names: class names, none for captions. phrases (q,): text of each query. gold: digest of the
    set's shards. groups, counts: frequencies by name or phrase; counts_from: where they were
    counted. absent_pairs: for each of ``names``, the number of images in which it is known to be
    absent. shards: paths, relative to the evaluation's folder, or URLs; none of an earlier version.
    presence_threshold: the setting.
    """

    protocol: str
    names: tuple[str, ...]
    gold: str
    matches: Matches
    queries: Queries
    phrases: tuple[str, ...]
    groups: Mapping[str, str]
    counts: Mapping[str, int]
    counts_from: str
    absent_pairs: tuple[int, ...]
    shards: tuple[str, ...] = ()
    presence_threshold: float | None = None


def absent_images(results: Sequence[ImageResult], names: int) -> tuple[int, ...]:
    """For each of ``names`` labels, the number of images in which it is known to be absent.

    These are all images without gold of it, or, in federated sets, those verified.
    """
    if not names:  # each image's own phrases
        return ()
    counts = np.zeros(names, np.int64)
    for r in results:
        candidates = np.arange(names) if r.absent is None else r.absent
        counts[np.setdiff1d(candidates, r.gold_labels)] += 1
    return tuple(counts.tolist())


def write_match_tables(folder: Path, name: str, tables: MatchTables) -> None:
    """Write a set's tables to ``folder``: three Parquet files, then a JSON file."""
    m, q = tables.matches, tables.queries
    files = {
        "detections": (
            DETECTIONS,
            [m.image, m.label, m.score, m.area, m.tp @ BITS, m.ignored @ BITS, m.present, m.absent],
        ),
        "gold": (GOLD, [m.gold_image, m.gold_label, m.gold_area, m.gold_score.astype(np.float32)]),
        "queries": (QUERIES, [q.image, q.label, q.boxes, q.first, q.first_merged, np.array(tables.phrases, object)]),
    }
    for kind, (schema, columns) in files.items():  # from_pandas: NaN in gold_score becomes null
        arrays = [pa.array(c, from_pandas=True).cast(f.type, safe=False) for c, f in zip(columns, schema, strict=True)]
        write_table(folder / f"{name}.{kind}.parquet", pa.table(arrays, schema=schema), schema, {"set": name})
    write_json(
        folder / f"{name}.json",
        {
            "protocol": tables.protocol, "names": list(tables.names), "gold": tables.gold, "images": m.images,
            "groups": dict(tables.groups), "counts": dict(tables.counts), "counts_from": tables.counts_from,
            "absent_pairs": list(tables.absent_pairs), "shards": list(tables.shards),
            **({} if tables.presence_threshold is None else {"presence_threshold": tables.presence_threshold}),
        },
    )  # fmt: skip


def read_match_tables(folder: Path, name: str) -> MatchTables:
    """Read the tables of :func:`write_match_tables`.

    Raises:
        InputError: they do not exist, or are of an earlier version.
    """
    try:
        card = json.loads((folder / f"{name}.json").read_text())
    except FileNotFoundError:
        raise InputError(f"{folder / name}.json: no such file; want a folder that evaluate wrote") from None
    if not isinstance(card.get("absent_pairs"), list):
        raise InputError(
            f"{folder / name}.json: written by an earlier version; run evaluate again (it keeps predictions)"
        )
    d, g, q = (
        read_table(folder / f"{name}.{kind}.parquet", schema)
        for kind, schema in (("detections", DETECTIONS), ("gold", GOLD), ("queries", QUERIES))
    )
    columns = {c: d[c].to_numpy() for c in DETECTIONS.names} | {c: g[c].to_numpy() for c in GOLD.names}
    tp, ignored = ((columns.pop(c)[:, None] & BITS).astype(bool) for c in ("hit", "ignored"))
    return MatchTables(
        protocol=card["protocol"],
        names=tuple(card["names"]),
        gold=card["gold"],
        matches=Matches(**columns, tp=tp, ignored=ignored, images=card["images"]),
        queries=Queries(*(q[c].to_numpy().astype(np.int64) for c in QUERIES.names[:-1])),
        phrases=tuple(q["phrase"].to_pylist()),
        groups=card["groups"],
        counts=card["counts"],
        counts_from=card["counts_from"],
        absent_pairs=tuple(card["absent_pairs"]),
        shards=tuple(card.get("shards", ())),
        presence_threshold=card.get("presence_threshold"),
    )


def query_phrases(queries: Queries, names: Sequence[str], phrases: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The text of each query: its class name, or its phrase of the image's ``phrases``."""
    if names:
        return tuple(names[i] for i in queries.label)
    return tuple(phrases[image][label] for image, label in zip(queries.image, queries.label, strict=True))
