"""Rules on regions of class names: by name, across its synonyms, and what becomes uncertain."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import FilterConfig
from pipeline.data.name_list import footer_names
from pipeline.data.records import LABELS, NAMED_LABELS
from pipeline.errors import InputError
from pipeline.evaluation.label_quality import label_quality
from pipeline.filtering.calibration import lines
from pipeline.filtering.counting import count_phrases
from pipeline.filtering.thresholds import NameThresholds, read_thresholds
from pipeline.io.tables import footer, read_table
from pipeline.stages.jobs import Calibrate, FilterBoxes
from tests.fixtures.names import NAMES, named, write_named
from tests.fixtures.regions import region, table_of, write, write_gold

FAR = (60, 60, 80, 80)


def filtered(tmp_path: Path, rows, thresholds: dict | None = None, footer: dict | None = None, **config):
    """(name, phrase, key, score, status) of the labels, and the report."""
    path = write_named(tmp_path / "regions" / "00000.parquet", rows, **(footer or {}))
    by_name = None
    if thresholds is not None:
        by_name = tmp_path / "thresholds.json"
        by_name.write_text(json.dumps(thresholds))
    job = FilterBoxes(regions=path, out=tmp_path / "labels", settings=FilterConfig(**config), thresholds=by_name)
    report = job.run()
    table = read_table(tmp_path / "labels" / "00000.parquet", NAMED_LABELS)
    assert table.schema.remove_metadata().types == NAMED_LABELS.types
    labels = [(r["name"], r["phrase"], r["key"], round(r["score"], 3), r["status"]) for r in table.to_pylist()]
    return labels, report


def test_boxes_of_synonyms_suppress_each_other_as_those_of_a_phrase_did(tmp_path):
    rows = [
        named("dog", 0.8), named("hound", 0.9, (0, 0, 10, 11)), named("puppy", 0.7, FAR), named("dog", 0.6, FAR),
        named("cat", 0.85), named("dog", 0.9, key="b"),
    ]  # fmt: skip
    labels, report = filtered(tmp_path, rows)
    assert [label[:4] for label in labels] == [
        ("dog", "hound", "a", 0.9), ("dog", "puppy", "a", 0.7), ("cat", "cat", "a", 0.85), ("dog", "dog", "b", 0.9),
    ]  # fmt: skip
    assert report.tallies["regions"].dropped == {"same_text_overlap": 2}
    looser, _ = filtered(tmp_path, rows, footer={"config": '{"nms_threshold": 0.95, "floor": 0.05}'})
    assert len(looser) == 5  # 10 x 10 and 10 x 11 overlap by 0.91: only the equal boxes suppress each other


def test_limits_are_of_a_name_in_an_image_and_of_a_name_in_a_shard(tmp_path):
    rows = [
        named("dog", 0.8), named("hound", 0.9, FAR), named("cat", 0.7), named("dog", 0.6, FAR, key="b"),
        named("dog", 0.7, key="b"),
    ]  # fmt: skip
    best, report = filtered(tmp_path, rows, best_per_phrase=1)
    kept = [label[1:4] for label in best if label[4] == "keep"]
    assert kept == [("hound", "a", 0.9), ("cat", "a", 0.7), ("dog", "b", 0.7)]
    assert report.tallies["regions"].dropped == {"not_best_of_phrase": 2}
    capped, _ = filtered(tmp_path, rows, max_per_phrase_text=2)
    assert [label[1:4] for label in capped if label[4] == "keep"] == [
        ("dog", "a", 0.8), ("hound", "a", 0.9), ("cat", "a", 0.7)
    ]  # fmt: skip


def test_names_state_no_number(tmp_path):
    assert len(filtered(tmp_path, [named("dog", 0.8), named("dog", 0.7, FAR)], phrase_number=True)[0]) == 2


def test_mentions_are_images_of_a_name(tmp_path):
    rows = [named("dog", 0.8), named("hound", 0.9), named("cat", 0.7), named("puppy", 0.6, key="b")]
    path = write_named(tmp_path / "00000.parquet", rows)
    count_phrases(FilterConfig(), [path], tmp_path / "counts.parquet", min_count=1)
    counts = read_table(tmp_path / "counts.parquet", ["phrase", "mentions"]).to_pylist()
    assert counts == [{"phrase": "dog", "mentions": 2}, {"phrase": "cat", "mentions": 1}]


def test_a_name_without_a_label_is_uncertain_down_to_a_score_and_absent_below(tmp_path):
    rows = [
        named("dog", 0.9), named("dog", 0.3, FAR), named("cat", 0.4), named("cat", 0.3, FAR), named("fork lift", 0.2),
        named("zebra", 0.05), named("cat", 0.45, key="b"),
    ]  # fmt: skip
    labels, report = filtered(tmp_path, rows, uncertain_above=0.1)
    assert labels == [
        ("dog", "dog", "a", 0.9, "keep"), ("cat", "cat", "a", 0.4, "uncertain"),
        ("fork_lift", "fork lift", "a", 0.2, "uncertain"),
    ]  # fmt: skip
    tally = report.tallies["regions"]
    assert (tally.seen, tally.kept) == (7, 1)
    assert tally.dropped == {"kept_as_uncertain": 2, "below_threshold": 4}
    assert ("zebra", "zebra", "a", 0.05, "uncertain") in filtered(tmp_path, rows)[0]  # by default whatever is stored
    ignored, _ = filtered(tmp_path, rows, ignore_above=0.35, uncertain_above=0.1)
    assert [label[4] for label in ignored] == ["keep", "ignore", "uncertain"]


def test_what_another_rule_drops_is_uncertain_too(tmp_path):
    labels, _ = filtered(tmp_path, [named("dog", 0.9), named("cat", 0.8, (0, 0, 1, 1))], min_box_side=5)
    assert [label[::4] for label in labels] == [("dog", "keep"), ("cat", "uncertain")]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([text for text, _ in NAMES.phrases]), st.sampled_from("abc"),
            st.sampled_from([0.05, 0.2, 0.3, 0.5, 0.7, 0.9]), st.integers(0, 8),
        ), min_size=1, max_size=30,
    ),
    st.sampled_from([0.0, 0.2, 0.4]), st.sampled_from([None, 0.25]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_every_name_of_a_labelled_image_has_one_state(tmp_path_factory, drawn, low, ignore):
    rows = [named(text, s, (9 * x, 0, 9 * x + 9, 9), key) for text, key, s, x in sorted(drawn, key=lambda d: d[1])]
    labels, report = filtered(tmp_path_factory.mktemp("s"), rows, uncertain_above=low, ignore_above=ignore)
    tally = report.tallies["regions"]
    assert tally.seen == len(rows) == tally.kept + sum(tally.dropped.values())
    labelled = {key for _, _, key, _, status in labels if status == "keep"}
    assert {key for _, _, key, _, _ in labels} == labelled
    assert labelled == {r["key"] for r in rows if r["score"] > 0.5}
    for key in labelled:
        for name in NAMES.names:
            own = [r["score"] for r in rows if (r["key"], r["name"]) == (key, name)]
            states = [status for n, _, k, _, status in labels if (n, k) == (name, key)]
            if max(own, default=0) > 0.5:
                assert "keep" in states and "uncertain" not in states
            elif ignore is not None and max(own, default=0) > ignore:
                assert set(states) == {"ignore"}
            else:
                assert states == ["uncertain"] * (max(own, default=0) > low)


def test_labels_of_synonyms_are_those_of_one_phrase_of_all_boxes(tmp_path):
    """The suppression of the whole name is torchvision's, of boxes that pseudo-label has not suppressed yet."""
    import torch
    from torchvision.ops import nms

    rng = np.random.default_rng(0)
    corners = rng.integers(0, 60, (60, 2))
    boxes = np.concatenate([corners, corners + rng.integers(10, 40, (60, 2))], 1).astype(float)
    scores = rng.permutation(np.linspace(0.51, 0.99, 60))
    texts = rng.choice(["dog", "hound", "puppy"], 60)
    rows = [named(str(t), float(s), tuple(b)) for t, s, b in zip(texts, scores, boxes, strict=True)]
    labels, _ = filtered(tmp_path, rows, same_text_iou=0.5)
    kept = nms(torch.tensor(boxes), torch.tensor(scores), 0.5).numpy()
    assert sorted(label[3] for label in labels) == sorted(round(float(np.float32(scores[i])), 3) for i in kept)


def test_thresholds_by_name_replace_the_setting_for_their_names(tmp_path):
    rows = [
        named("dog", 0.6),
        named("hound", 0.75, FAR),
        named("fork lift", 0.3),
        named("cat", 0.55),
        named("zebra", 0.4),
    ]
    labels, _ = filtered(tmp_path, rows, {"Dog": 0.7, "fork_lift": 0.2}, uncertain_above=0.99)
    assert [label[1] for label in labels] == ["hound", "fork lift", "cat"]
    footers = footer(read_table(tmp_path / "labels" / "00000.parquet", LABELS).schema)
    assert footer_names(footers, "") == NAMES and footers["thresholds"]


def test_wrong_thresholds_by_name_are_named(tmp_path):
    with pytest.raises(
        InputError, match=r"found the name 'dgo'; want those of .*00000\.parquet \(did you mean dog\?\)"
    ):
        filtered(tmp_path, [named("dog", 0.6)], {"dgo": 0.7})
    with pytest.raises(InputError, match=r"found 1\.5 for 'dog'; want a threshold between 0 and 1"):
        filtered(tmp_path, [named("dog", 0.6)], {"dog": 1.5})
    captions = write(tmp_path / "captions.parquet", table_of([region()]))
    (tmp_path / "thresholds.json").write_text('{"dog": 0.5}')
    with pytest.raises(
        InputError, match=r"found thresholds by name, and .*captions\.parquet of captions; want what cal"
    ):
        FilterBoxes(regions=captions, out=tmp_path / "out", thresholds=tmp_path / "thresholds.json").run()


def test_gold_is_matched_by_name(tmp_path, caplog):
    rows = [named("hound", 0.9), named("dog", 0.8, FAR), named("cat", 0.7, FAR, key="b"), named("cat", 0.6, key="b")]
    path = write_named(tmp_path / "regions" / "00000.parquet", rows)
    gold = [
        {"key": key, "phrase": phrase, "novel": False, "start": 0, "end": 1, "x1": x, "y1": x, "x2": y, "y2": y}
        for key, phrase, x, y in [("a", "Dog", 0.0, 10.0), ("a", "zebra", 60.0, 80.0), ("b", "cat", 60.0, 80.0)]
    ]
    write_gold(tmp_path / "gold" / "00000.parquet", gold)
    FilterBoxes(regions=path, out=tmp_path / "labels").run()
    quality = label_quality(tmp_path / "labels", tmp_path / "gold")
    assert (quality["all"]["labels"], quality["all"]["correct"], quality["all"]["gold"]) == (4, 2, 3)
    fitted = Calibrate(regions=path, gold=tmp_path / "gold", out=tmp_path / "t.json", precision=0.5, min_labels=1).run()
    assert (fitted.pooled.labels, fitted.pooled.correct) == (4, 2)
    assert "found no gold box of its class names" not in caplog.text
    write_gold(tmp_path / "gold" / "00000.parquet", [row | {"phrase": f"red {row['phrase']}"} for row in gold])
    assert label_quality(tmp_path / "labels", tmp_path / "gold")["all"]["correct"] == 0
    assert "found no gold box of its class names; want gold tables whose phrase is the name" in caplog.text


def gold_rows(right):
    """A gold box for each (key, name, box)."""
    corners = ("x1", "y1", "x2", "y2")
    return [
        {"key": key, "phrase": name, "novel": False, "start": 0, "end": 1, **dict(zip(corners, map(float, box)))}
        for key, name, box in right
    ]


@pytest.mark.parametrize("include_equal", [False, True])
def test_calibrate_fits_a_threshold_for_each_name(include_equal, tmp_path):
    rng, rows, right = np.random.default_rng(0), [], []
    share_right = {"dog": lambda score: score > 0.4, "cat": lambda score: score > 0.7, "zebra": lambda _: False}
    for image in range(60):
        for name, is_right in share_right.items():
            score = round(float(rng.uniform(0.1, 0.5 if name == "zebra" else 1)), 2)
            text = name if name != "dog" or image % 2 else "hound"
            rows.append(named(text, score, key=f"k{image:02d}"))
            if is_right(score):
                right.append((f"k{image:02d}", name, (0, 0, 10, 10)))
    rows += [named("fork lift", 0.3 + 0.2 * n, key=f"k{n:02d}") for n in range(3)]
    right += [("k01", "fork_lift", (0, 0, 10, 10)), *((f"k{n:02d}", "a tree", FAR) for n in range(60))]
    regions = write_named(tmp_path / "regions" / "00000.parquet", rows)
    write_gold(tmp_path / "gold" / "00000.parquet", gold_rows(right))
    config = FilterConfig(include_equal=include_equal)
    job = Calibrate(
        regions=regions, gold=tmp_path / "gold", out=tmp_path / "t.json", precision=0.9, min_labels=10, settings=config
    )
    result = job.run()
    written = json.loads((tmp_path / "t.json").read_text())
    assert sorted(written) == sorted(NAMES.names) and isinstance(read_thresholds(tmp_path / "t.json"), NameThresholds)
    fits = {fit.name: fit for fit in result.names}
    assert {name: fit.status for name, fit in fits.items()} == {
        "dog": "fitted", "cat": "fitted", "zebra": "closed", "fork_lift": "pooled",
    }  # fmt: skip
    assert written["zebra"] is None and fits["fork_lift"].threshold == result.pooled.threshold
    assert fits["dog"].threshold < fits["cat"].threshold < 0.75 and fits["dog"].gold == fits["dog"].correct
    assert (fits["fork_lift"].labels, fits["fork_lift"].gold) == (3, 1)
    table = lines(result)
    assert [line.split()[0] for line in table] == ["name", *NAMES.names] and "nothing reaches it" in table[1]

    FilterBoxes(regions=regions, out=tmp_path / "labels", settings=config, thresholds=tmp_path / "t.json").run()
    labels = read_table(tmp_path / "labels" / "00000.parquet", NAMED_LABELS).to_pylist()
    kept = [r for r in labels if r["status"] == "keep"]
    golds = {(key, name) for key, name, _ in right}
    for name, fit in fits.items():
        mine = [r for r in kept if r["name"] == name]
        assert len(mine) == fit.kept and sum((r["key"], name) in golds for r in mine) == fit.kept_correct
        assert fit.status == "pooled" or not mine or fit.precision >= 0.9


def test_calibrate_refuses_shards_of_other_names(tmp_path):
    for number, names in enumerate((NAMES, NAMES.model_copy(update={"names": ("zebra", "dog", "fork_lift", "cow")}))):
        write_named(tmp_path / "regions" / f"{number}.parquet", [named("dog", 0.9)], names)
        write_gold(tmp_path / "gold" / f"{number}.parquet", gold_rows([("a", "dog", (0, 0, 10, 10))]))
    with pytest.raises(InputError, match=r"1\.parquet: found other class names than .*0\.parquet's"):
        Calibrate(regions=tmp_path / "regions", gold=tmp_path / "gold", out=tmp_path / "t.json").run()
