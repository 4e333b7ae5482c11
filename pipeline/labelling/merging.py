"""Merge the regions of a shard that several teachers found: match, fuse, and count who agrees."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import MergeConfig
from pipeline.data.image_names import FOOTER
from pipeline.data.records import AGREED, REGIONS
from pipeline.errors import InputError
from pipeline.execution.reports import Tally
from pipeline.filtering.fusion import Clusters, falling, match
from pipeline.filtering.nms import concatenated_ranges, run_lengths
from pipeline.filtering.store import BOX, STRINGS
from pipeline.io.tables import footer, read_table

OF_PHRASE = ("key", "phrase", "start", "end", "height", "width")
"""Columns in which all stores must agree on a phrase."""
NOT_OF_A_TEACHER = re.compile(r"agreed|score_\d+|status")
"""Columns of merged regions and of labels."""


def merge_stores(paths: Sequence[str], config: MergeConfig) -> tuple[pa.Table, Tally, dict[str, float], dict[str, str]]:
    """Merge the same shard of several stores.

    A merged region has the columns of its best member (by score times weight), apart from its box,
    its score and its rank; columns that only some stores have are null for the others' regions.

    Returns:
        The table: columns of records.REGIONS, the stores' further ones, ``agreed`` and a
        ``score_N`` for each store; a tally of the regions; the number of merged regions by how many
        stores found them; and the teachers, for the footer.

    Raises:
        InputError: a file is missing or no regions file, or the stores are of different phrases.
    """
    tables = [_read(path) for path in paths]
    try:
        table = pa.concat_tables([t.replace_schema_metadata() for t in tables], promote_options="default")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"{', '.join(paths)}: the stores' columns have different types ({error})") from None
    table = table.unify_dictionaries().combine_chunks()
    store = np.repeat(np.arange(len(tables)), [len(t) for t in tables])
    group, order = _groups(table, np.cumsum([len(t) for t in tables[:-1]]))
    _check_phrases(table, store, group, order, paths)
    tally, boxes, score = Tally(), np.stack([_numbers(table, name) for name in BOX], 1), _numbers(table, "score")
    area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    scored = np.isfinite(score) & (score >= 0)
    tally.drop("no_area", int((~area).sum()))
    tally.drop("no_score", int((area & ~scored).sum()))
    rows = np.flatnonzero(area & scored)
    store, group, boxes, score = (values.take(rows, 0) for values in (store, group, boxes, score))
    weights = np.asarray(config.weights or [1.0] * len(paths), np.float32)
    weighted = score * weights[store]
    clusters = match(boxes, weighted, group, config.iou, moving=config.method == "wbf")
    scores = _scores(clusters, score, store, len(paths))
    agreed = np.isfinite(scores).sum(0)
    merged = _fused_score(clusters, weighted, weights) if config.method == "wbf" else score[clusters.best]
    chosen = np.flatnonzero(agreed >= config.least)
    chosen = chosen[falling(group.take(clusters.best.take(chosen)), merged.take(chosen))]
    members = np.bincount(clusters.cluster, minlength=len(agreed))
    tally.keep(len(chosen))
    tally.drop("fused", int(members[chosen].sum()) - len(chosen))
    tally.drop("too_few_teachers", int(members[agreed < config.least].sum()))
    counts = np.bincount(agreed[chosen], minlength=len(paths) + 1)
    rank = concatenated_ranges(run_lengths(group[clusters.best[chosen]])[1]).astype(np.int16)
    fused = clusters.boxes.astype(np.float32).take(chosen, 0)
    replaced = dict(zip(BOX, fused.T, strict=True)) | {"score": merged[chosen], "rank": rank}
    added = {f"score_{i}": of_store[chosen] for i, of_store in enumerate(scores)}
    result = _table(table, rows[clusters.best[chosen]], replaced, agreed[chosen], added)
    numbers = {f"agreed_{n}": float(counts[n]) for n in range(1, len(paths) + 1)}
    footers = [footer(t.schema) for t in tables]
    return result, tally, numbers, _names(paths, footers) | _teachers(footers, config)


def _read(path: str) -> pa.Table:
    """All columns of a regions file, strings as dictionaries."""
    table = read_table(path, REGIONS, optional=None, strings=STRINGS)
    if found := [name for name in table.column_names if NOT_OF_A_TEACHER.fullmatch(name)]:
        raise InputError(
            f"{path}: found the column {found[0]}; want regions of one teacher, as pseudo-label writes them"
        )
    return table


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table[name].to_numpy())


def _codes(table: pa.Table, name: str) -> np.ndarray:
    """(n,) integers that stand for a column's values."""
    column = table[name].combine_chunks()
    return np.asarray(
        (column.indices if pa.types.is_dictionary(column.type) else column).to_numpy(zero_copy_only=False)
    )


def _groups(table: pa.Table, begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((n,) number of each region's phrase, rising in the order of the stores; (n,) order by it).

    begins: the first rows of the second store and further ones.
    """
    row, key = _numbers(table, "phrase_row").astype(np.int64), _codes(table, "key")
    # a row of the phrases file is of one image, unless phrases are numbered by image
    if not all(map(_is_function, np.split(row, begins), np.split(key, begins))):
        row += key * (row.max() + 1)
    order = np.argsort(row, kind="stable")
    group = np.empty_like(row)
    group[order] = np.cumsum(np.diff(row.take(order), prepend=-1) != 0) - 1
    return group, order


def _check_phrases(
    table: pa.Table, store: np.ndarray, group: np.ndarray, order: np.ndarray, paths: Sequence[str]
) -> None:
    """Raise InputError if stores differ in a phrase; ``order`` sorts the regions by ``group``."""
    same = np.diff(group.take(order)) == 0
    for name in OF_PHRASE:
        differs = np.flatnonzero(same & (np.diff(_codes(table, name).take(order)) != 0))
        if len(differs):
            rows = order[differs[0] : differs[0] + 2].tolist()
            words = " and ".join(f"{table[name][i].as_py()!r} in {paths[store[i]]}" for i in rows)
            where = f"phrase {table['phrase_row'][rows[0]]}" + (f" of {table['key'][rows[0]]}" if name != "key" else "")
            raise InputError(f"{where}: found {name} {words}; want stores of the same crawl and phrases")


def _is_function(of: np.ndarray, values: np.ndarray) -> bool:
    """Whether equal integers ``of`` have equal ``values``."""
    value = np.zeros(int(of.max(initial=-1)) + 1, values.dtype)
    value[of] = values
    return bool((value[of] == values).all())


def _scores(clusters: Clusters, score: np.ndarray, store: np.ndarray, stores: int) -> np.ndarray:
    """(stores, c) float32 best score of each store's boxes in each cluster; nan if it has none."""
    scores = np.full((stores, len(clusters.best)), -np.inf, np.float32)
    for i, of_store in enumerate(scores):
        mine = store == i
        np.maximum.at(of_store, clusters.cluster[mine], score[mine])
    scores[np.isneginf(scores)] = np.nan
    return scores


def _fused_score(clusters: Clusters, weighted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(c,) float32 scores of weighted box fusion: the members' mean x min(members, stores) / sum of the weights.

    Clipped to 1, which two boxes of one store of large weight could exceed.
    """
    members = np.bincount(clusters.cluster)
    total = np.bincount(clusters.cluster, weighted.astype(np.float64))
    fused = total / members * np.minimum(members, len(weights)) / weights.sum(dtype=np.float64)
    return np.asarray(np.minimum(fused, 1), np.float32)


def _table(
    table: pa.Table, rows: np.ndarray, replaced: Mapping[str, np.ndarray], agreed: np.ndarray,
    scores: Mapping[str, np.ndarray],
) -> pa.Table:  # fmt: skip
    """Rows of the table with replaced columns, ``agreed`` and the stores' scores."""
    taken = table.drop_columns(list(replaced)).take(pa.array(rows))
    fields, columns = [], []
    for name in [*REGIONS.names, *(n for n in table.column_names if n not in REGIONS.names)]:
        required = name in REGIONS.names and REGIONS.field(name)
        column = pa.array(replaced[name], REGIONS.field(name).type) if name in replaced else taken[name]
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        fields.append(required or pa.field(name, kind))
        columns.append(column)
    for field, values in [(AGREED, agreed), *((pa.field(name, pa.float32()), v) for name, v in scores.items())]:
        fields.append(field)
        columns.append(pa.array(values, field.type, from_pandas=True))  # nan is null
    return pa.table(columns, names=[f.name for f in fields]).cast(pa.schema(fields))


def _names(paths: Sequence[str], footers: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Footer entries of class names, on which all stores agree."""
    first, of_images = footers[0], dict[str, list[int]]()
    for path, notes in zip(paths, footers, strict=True):
        if notes.get("names") != first.get("names") or (FOOTER in notes) != (FOOTER in first):
            raise InputError(f"{path}: found other class names than {paths[0]}'s; want stores of the same names")
        for key, numbers in json.loads(notes.get(FOOTER, "{}")).items():
            if of_images.setdefault(key, numbers) != numbers:
                raise InputError(f"{path}: found other class names of {key} than in the stores before; want the same")
    entries = {"names": first["names"]} if "names" in first else {}
    return entries | ({FOOTER: json.dumps(of_images, separators=(",", ":"))} if FOOTER in first else {})


def _teachers(footers: Sequence[Mapping[str, str]], config: MergeConfig) -> dict[str, str]:
    """Footer entries: the teachers' names and stores, and the settings.

    ``floor`` in ``config`` is the largest of the stores': of merged regions that score above it, each has
    a member that does.
    """
    about = [{name: f.get(name, "") for name in ("teacher", "stage", "fingerprint", "config")} for f in footers]
    settings: dict[str, Any] = config.model_dump(mode="json")
    settings["floor"] = max(json.loads(f.get("config") or "{}").get("floor", 0.0) for f in footers)
    return {
        "teacher": "+".join(f.get("teacher", "") for f in footers),
        "teachers": json.dumps(about),
        "config": json.dumps(settings),
    }
