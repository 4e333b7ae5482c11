"""Frequencies from LVIS' annotations, from a table, and counted in training shards."""

from __future__ import annotations

import json

import pytest

from pipeline.data.records import GroundingRecord, Region
from pipeline.errors import InputError
from pipeline.evaluation.frequencies import Frequencies, read_frequencies
from pipeline.io.tars import write_tar
from tests.fixtures.crawl import jpeg


def test_lvis_annotations_give_groups_counts_and_what_is_not_exhaustive(tmp_path):
    file = tmp_path / "lvis.json"
    file.write_text(
        json.dumps(
            {
                "images": [
                    {"id": 42, "not_exhaustive_category_ids": [2]},
                    {"id": 43, "not_exhaustive_category_ids": []},
                ],
                "categories": [
                    {"id": 1, "name": "Traffic  light", "frequency": "f", "image_count": 800},
                    {"id": 2, "name": "aerosol_can", "frequency": "c", "image_count": 64},
                ],
            }
        )
    )
    got = read_frequencies(str(file))
    assert got.groups == {"traffic light": "frequent", "aerosol_can": "common"}
    assert got.counts == {"traffic light": 800, "aerosol_can": 64}
    assert got.not_exhaustive == {"000000042": ("aerosol_can",)}  # the key that ingest gives the image


def test_training_shards_are_counted_by_image(tmp_path):
    def record(key, phrases):
        regions = tuple(Region(box=(0, 0, 5 + i, 5), phrase=p, ignore=p == "crowd") for i, p in enumerate(phrases))
        return GroundingRecord(key=key, dataset="d", kind="detection", image_size=(64, 80), regions=regions)

    records = [record("a", ["Car", "car", "dog"]), record("b", ["car", "crowd"])]
    write_tar(tmp_path / "d-0.tar", iter([(r.key, {"jpg": jpeg(0), "json": r.to_json()}) for r in records]))
    got = read_frequencies(str(tmp_path / "d-*.tar"))
    assert got.counts == {"car": 2, "dog": 1} and got.groups == {"car": "rare", "dog": "rare"}


def test_a_name_that_no_training_image_shows_is_rare_but_one_that_lvis_does_not_list_has_no_group(tmp_path):
    (tmp_path / "counts.json").write_text('{"car": 500}')
    got = read_frequencies(str(tmp_path / "counts.json"))
    assert got.groups_of(["Car", "vial of vaccine"]) == {"car": "frequent", "vial of vaccine": "rare"}
    (tmp_path / "lvis.json").write_text('{"categories": [{"id": 1, "name": "car", "frequency": "f"}]}')
    assert read_frequencies(str(tmp_path / "lvis.json")).groups_of(["car", "van"]) == {"car": "frequent"}
    assert Frequencies().groups_of(["car"]) == {}


@pytest.mark.parametrize("text", ["no json", "[1]", '{"car": "many"}', '{"categories": [{"id": 1, "name": "a"}]}'])
def test_other_files_are_told(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json: want training shards"):
        read_frequencies(str(tmp_path / "x.json"))
