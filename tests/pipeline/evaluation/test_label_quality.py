"""Precision and recall of labels against gold, by hand."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.records import LABELS
from pipeline.errors import InputError
from pipeline.evaluation.label_quality import label_quality
from pipeline.io.tables import write_table


def label(key, start, end, box, score, status="keep"):
    values = dict.fromkeys(LABELS.names, 0) | {"key": key, "phrase": "p", "start": start, "end": end, "score": score}
    return values | dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)) | {"status": status}


def gold(key, start, end, box, novel):
    return {"key": key, "phrase": "p", "novel": novel, "start": start, "end": end} | dict(
        zip(("x1", "y1", "x2", "y2"), map(float, box), strict=True)
    )


def test_quality_by_hand(tmp_path):
    rows = [
        label("a", 2, 10, (0, 0, 10, 10), 0.95),  # fits the first gold
        label("a", 14, 20, (50, 50, 60, 60), 0.55),  # novel, far off
        label("b", 0, 5, (0, 0, 10, 8), 0.65),  # IoU 0.8 with a gold phrase of another start
        label("b", 0, 5, (1, 0, 10, 10), 0.62),  # the same gold box again: wrong, as in detection
        label("b", 30, 40, (0, 0, 10, 10), 0.51),  # names no gold object
        label("b", 0, 5, (0, 0, 10, 10), 0.4, "ignore"),
    ]
    columns = {n: [r[n] for r in rows] for n in LABELS.names}
    table = pa.table({n: pa.array(v) for n, v in columns.items()})
    status = pa.array(columns["status"]).dictionary_encode().cast(LABELS.field("status").type)
    table = table.set_column(table.schema.get_field_index("status"), "status", status)
    (tmp_path / "labels").mkdir(), (tmp_path / "gold").mkdir()
    write_table(tmp_path / "labels" / "00000.parquet", table, LABELS, {})
    golds = [
        gold("a", 2, 10, (0, 0, 10, 10), False),
        gold("a", 12, 20, (0, 20, 10, 30), True),
        gold("b", 1, 5, (0, 0, 10, 10), False),
        gold("c", 0, 4, (0, 0, 10, 10), True),  # never labelled
    ]
    pq.write_table(pa.Table.from_pylist(golds), tmp_path / "gold" / "00000.parquet")
    got = label_quality(tmp_path / "labels", tmp_path / "gold")
    assert got["all"] == {"labels": 5, "correct": 2, "gold": 4, "found": 2, "precision": 40.0, "recall": 50.0}
    assert got["base"] == {"labels": 3, "correct": 2, "gold": 2, "found": 2, "precision": 66.67, "recall": 100.0}
    assert got["novel"] == {"labels": 1, "correct": 0, "gold": 2, "found": 0, "precision": 0.0, "recall": 0.0}
    assert got["phrases_not_gold"] == 1
    assert {b["from"]: (b["labels"], b["correct"]) for b in got["by_score"] if b["labels"]} == {
        0.5: (2, 0), 0.6: (2, 1), 0.9: (1, 1),
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist(golds[:1]), tmp_path / "gold" / "00000.parquet")
    assert label_quality(tmp_path / "labels", tmp_path / "gold")["novel"]["precision"] is None  # of no label
    (tmp_path / "gold" / "00000.parquet").rename(tmp_path / "gold" / "00009.parquet")
    with pytest.raises(InputError, match=r"no gold table of any of the labels' shards, such as 00000\.parquet"):
        label_quality(tmp_path / "labels", tmp_path / "gold")
