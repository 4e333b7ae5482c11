"""A record is always the same JSON: sorted, compact, without absent fields, and read back as it was."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.records import GroundingRecord, Region

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBERS = st.floats(-1e5, 1e5) | st.floats(0, 1e-6)
SIDES = st.floats(2e-3, 1e5)
REGIONS = st.builds(
    lambda x, y, w, h, **rest: Region(box=(x, y, x + w, y + h), **rest),
    NUMBERS, NUMBERS, SIDES, SIDES, phrase=TEXTS, score=st.none() | st.floats(0, 1), annotator=st.none() | TEXTS,
    root=st.none() | TEXTS, ignore=st.booleans(), tokens_positive=st.lists(st.just((0, 1)), max_size=2).map(tuple),
)  # fmt: skip


@given(
    st.builds(
        GroundingRecord,
        key=TEXTS, dataset=TEXTS, kind=st.just("detection"),
        image_size=st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
        caption=st.none() | TEXTS, regions=st.lists(REGIONS, max_size=4).map(tuple),
        uncertain=st.lists(st.just((1, 2)), max_size=2).map(tuple),
        verified_absent=st.none() | st.lists(TEXTS, max_size=3).map(tuple),
    )
)  # fmt: skip
def test_a_record_is_plain_sorted_json(record):
    data = record.to_json()
    plain = json.dumps(
        record.model_dump(mode="json", exclude_none=True), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    assert data == plain.encode()
    assert GroundingRecord.model_validate_json(data) == record
