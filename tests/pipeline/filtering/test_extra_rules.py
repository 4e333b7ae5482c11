"""Filter rules of the user's own: reasons, order, fingerprints, errors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.config import FilterConfig, SelfTrainConfig
from pipeline.errors import InputError
from pipeline.filtering.rules import EXTRA_RULES, FilterRule, apply_rules, open_regions, preset_of, rules_of, versioned
from pipeline.io.hashing import digest_json
from tests.fixtures.regions import region, table_of, write


@pytest.fixture
def rules(monkeypatch):
    """Registers rules for a test."""
    registered: dict = {}
    monkeypatch.setattr(EXTRA_RULES, "_registered", registered)

    def add(name, drops, version="1"):
        registered.pop(name, None)
        EXTRA_RULES.register(name)(FilterRule(drops, version))

    return add


def counts(tmp_path, rows, **settings):
    config = FilterConfig(**settings)
    return apply_rules(open_regions(write(tmp_path / "0.parquet", table_of(rows)), config), config).counts()


def left_of(pool, limit):
    return pool.shard.numbers("x1") < limit


def test_a_rule_drops_regions_under_its_name_before_boxes_are_compared(rules, tmp_path):
    rules("left", left_of)
    rows = [region(score=0.9, box=(0, 0, 40, 40)), region(score=0.8, box=(2, 0, 40, 40)), region(score=0.1)]
    assert counts(tmp_path, rows, same_text_iou=0.5) == {"keep": 1, "below_threshold": 1, "same_text_overlap": 1}
    found = counts(tmp_path, rows, same_text_iou=0.5, extra_rules={"left": 1})
    assert found == {"keep": 1, "below_threshold": 1, "left": 1}
    assert counts(tmp_path, rows, extra_rules={"left": None}) == {"keep": 2, "below_threshold": 1}


def test_rules_apply_in_the_order_of_their_names(rules, tmp_path):
    for name in ("b", "a"):
        rules(name, lambda pool, _: np.ones(pool.shard.size, bool))
    assert counts(tmp_path, [region()], extra_rules={"b": 1, "a": 1}) == {"a": 1}


def test_without_extra_rules_nothing_on_disk_changes(rules):
    config = FilterConfig()
    assert "extra_rules" not in config.model_dump() | config.effective() | versioned(config)
    assert "extra_rules" not in SelfTrainConfig().model_dump_json()
    assert digest_json(versioned(config)) == "1eff8eb91232bedfca1bc5a0f87971e5b277180e358dd4766467eec8ad9b2223"
    assert FilterConfig.model_validate(config.model_dump()) == config


def test_name_setting_and_version_are_in_the_fingerprint(rules):
    rules("left", left_of)
    rules("right", left_of)
    given = [FilterConfig(extra_rules=extra) for extra in ({}, {"left": 1}, {"left": 2}, {"right": 1})]
    marks = [rules_of(config, "") for config in given]
    rules("left", left_of, version="2")
    marks.append(rules_of(given[1], ""))
    assert len(set(marks)) == 5 and preset_of(given[1]) == ""
    assert json.loads(json.dumps(versioned(given[1])))["extra_rules"] == {"left": [1, "2"]}
    assert FilterConfig.model_validate_json(given[1].model_dump_json()) == given[1]


def test_wrong_rules_are_named(rules, tmp_path):
    with pytest.raises(InputError, match=r"extra_rules: found 'left'; want one of those that are registered"):
        counts(tmp_path, [region()], extra_rules={"left": 1})
    rules("left", lambda pool, _: pool.score)
    with pytest.raises(InputError, match=r"filter rule left: found float32 of the shape \(1,\); want bool of \(1,\)"):
        counts(tmp_path, [region()], extra_rules={"left": 1})
    with pytest.raises(InputError, match="found 'aspect'; want one of left"):
        counts(tmp_path, [region()], extra_rules={"aspect": 1})
