"""What a set's metrics rest on, stored beside them: every detection's verdict, every gold box, every question.

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
"""As :class:`Matches`; ``hit`` and ``ignored`` hold a bit an IoU threshold, 0.5 the lowest."""
GOLD = _schema(gold_image=pa.int32(), gold_label=pa.int32(), gold_area=pa.float32(), gold_score=pa.float32())
QUERIES = _schema(
    image=pa.int32(), label=pa.int32(), boxes=pa.int32(), first=pa.int16(), first_merged=pa.int16(), phrase=pa.string()
)
BITS = 1 << np.arange(len(IOUS))


@dataclass(frozen=True)
class Evidence:
    """One set's. names: class names (none for captions); phrases (q,): what each query is called. gold: a digest of the
    set's shards; groups, counts: by name or phrase; counts_from: what was counted. absent_pairs: of each of ``names``, in how many
    images it is known not to be.
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


def absent_images(results: Sequence[ImageResult], names: int) -> tuple[int, ...]:
    """In how many images each of so many names is known not to be: all without gold of it, or those verified so."""
    counts = np.zeros(names, np.int64)
    for r in results:
        asked = np.arange(names) if r.absent is None else r.absent
        counts[np.setdiff1d(asked, r.gold_labels)] += 1
    return tuple(counts.tolist())


def write_evidence(folder: Path, name: str, evidence: Evidence) -> None:
    """Three tables and a JSON in ``folder``; the JSON last."""
    m, q = evidence.matches, evidence.queries
    table = {
        "detections": (
            DETECTIONS,
            [m.image, m.label, m.score, m.area, m.hit @ BITS, m.ignored @ BITS, m.present, m.absent],
        ),
        "gold": (GOLD, [m.gold_image, m.gold_label, m.gold_area, pa.array(m.gold_score.astype(np.float32), from_pandas=True)]),
        "queries": (QUERIES, [q.image, q.label, q.boxes, q.first, q.first_merged, pa.array(evidence.phrases, pa.string())]),
    }  # fmt: skip
    for kind, (schema, columns) in table.items():
        arrays = [c if isinstance(c, pa.Array) else pa.array(c) for c in columns]
        columns_ = [a.cast(f.type, safe=False) for a, f in zip(arrays, schema, strict=True)]
        write_table(folder / f"{name}.{kind}.parquet", pa.table(columns_, schema=schema), schema, {"set": name})
    write_json(
        folder / f"{name}.json",
        {
            "protocol": evidence.protocol, "names": list(evidence.names), "gold": evidence.gold, "images": m.images,
            "groups": dict(evidence.groups), "counts": dict(evidence.counts), "counts_from": evidence.counts_from,
            "absent_pairs": list(evidence.absent_pairs),
        },
    )  # fmt: skip


def read_evidence(folder: Path, name: str) -> Evidence:
    """What :func:`write_evidence` wrote.

    Raises:
        InputError: it is not there, or of an earlier version.
    """
    try:
        card = json.loads((folder / f"{name}.json").read_text())
    except FileNotFoundError:
        raise InputError(f"{folder / name}.json: no such file; want a folder that evaluate wrote") from None
    if not isinstance(card.get("absent_pairs"), list):
        raise InputError(
            f"{folder / name}.json: written by an earlier version; run evaluate again (it keeps its predictions)"
        )
    d, g, q = (
        read_table(folder / f"{name}.{kind}.parquet", schema)
        for kind, schema in (("detections", DETECTIONS), ("gold", GOLD), ("queries", QUERIES))
    )
    plain = {c: d[c].to_numpy() for c in DETECTIONS.names} | {c: g[c].to_numpy() for c in GOLD.names}
    bits = {c: (plain.pop(c)[:, None] & BITS).astype(bool) for c in ("hit", "ignored")}
    return Evidence(
        protocol=card["protocol"],
        names=tuple(card["names"]),
        gold=card["gold"],
        matches=Matches(**plain, **bits, images=card["images"]),
        queries=Queries(*(q[c].to_numpy().astype(np.int64) for c in QUERIES.names[:-1])),
        phrases=tuple(q["phrase"].to_pylist()),
        groups=card["groups"],
        counts=card["counts"],
        counts_from=card["counts_from"],
        absent_pairs=tuple(card["absent_pairs"]),
    )


def query_phrases(queries: Queries, names: Sequence[str], phrases: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """What each query is called: its class name, or its phrase in the caption."""
    if names:
        return tuple(names[i] for i in queries.label)
    return tuple(phrases[image][label] for image, label in zip(queries.image, queries.label, strict=True))
