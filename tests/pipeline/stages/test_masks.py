"""Masks from SAM 3 through the stages to COCO's segmentation, decoded by pycocotools."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from pycocotools.coco import COCO
from pycocotools.mask import decode

from pipeline.config import FilterConfig, MergeConfig, PseudoLabelConfig
from pipeline.data.records import MASK, NAMED_REGIONS, REGIONS
from pipeline.errors import InputError
from pipeline.io.tables import footer, read_table
from pipeline.stages.jobs import BuildShards, ExportLabels, FilterBoxes, MergeRegions, PseudoLabel
from tests.fixtures import teachers
from tests.fixtures.crawl import jpeg
from tests.fixtures.exports import read_records
from tests.fixtures.regions import write

SIZES = [(80, 64), (64, 80), (96, 48)]  # (width, height)
PLAIN = PseudoLabelConfig(floor=0.0, max_regions_per_phrase=4, batch_size=2)
KEEP_ALL = FilterConfig(threshold=0.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Loose images, and the regions of a SAM 3 with and without masks."""
    root = tmp_path_factory.mktemp("masks")
    (root / "photos").mkdir()
    for i, size in enumerate(SIZES):
        (root / f"photos/{i:09d}.jpg").write_bytes(jpeg(i, size))
    teacher = teachers.sam3(root / "sam3")
    for name, masks in (("regions", True), ("plain", False)):
        settings = PLAIN.model_copy(update={"masks": masks})
        PseudoLabel(
            shards=root / "photos", names="red car. tree", teacher=teacher, out=root / name, settings=settings
        ).run()
    return root


def table_in(folder):
    (path,) = folder.glob("*.parquet")
    return read_table(path, REGIONS, optional=None)


def decoded(row):
    return decode({"size": [row["height"], row["width"]], "counts": row["mask"]})


def test_the_column_is_there_only_if_wanted_and_changes_nothing_else(store):
    with_masks, plain = table_in(store / "regions"), table_in(store / "plain")
    assert with_masks.schema.remove_metadata() == NAMED_REGIONS.append(MASK) and "mask" not in plain.column_names
    assert with_masks.select(plain.column_names).equals(plain) and len(plain) >= 12
    about = [footer(table.schema) for table in (with_masks, plain)]
    assert about[0]["fingerprint"] != about[1]["fingerprint"] and "masks" not in json.loads(about[1]["config"])
    assert "masks" not in PLAIN.model_dump() and len({decoded(row).shape for row in with_masks.to_pylist()}) == 3


@pytest.mark.parametrize("source", ["labels", "shards"])
def test_coco_has_the_masks_of_the_labels_and_of_the_shards_made_of_them(store, tmp_path, source):
    FilterBoxes(regions=str(store / "regions"), out=tmp_path / "labels", settings=KEEP_ALL).run()
    rows = table_in(tmp_path / "labels").to_pylist()
    out = tmp_path / "labels"
    if source == "shards":
        BuildShards(shards=store / "photos", labels=str(out), phrases=None, out=tmp_path / "train").run()
        out = tmp_path / "train"
        assert all(region.mask for record in read_records(out).values() for region in record.regions)
    ExportLabels(dirs=[str(out)], out=tmp_path / "coco", to="coco").run()
    coco = COCO(tmp_path / "coco/pseudo.json")
    annotations = coco.loadAnns(coco.getAnnIds())
    assert len(annotations) == len(rows)
    for annotation, row in zip(annotations, rows, strict=True):
        mask = coco.annToMask(annotation)
        assert (mask == decoded(row)).all() and annotation["area"] == mask.sum()
        x, y, w, h = annotation["bbox"]
        np.testing.assert_allclose([x, y, x + w, y + h], [row[n] for n in ("x1", "y1", "x2", "y2")], atol=0.01)


@pytest.mark.parametrize("to", ["odvg", "yolo", "fiftyone"])
def test_other_formats_count_the_masks_that_they_lack(store, tmp_path, to):
    FilterBoxes(regions=str(store / "regions"), out=tmp_path / "labels", settings=KEEP_ALL).run()
    done = ExportLabels(dirs=[str(tmp_path / "labels")], out=tmp_path / "out", to=to).run()
    assert done.report.numbers["lost_mask"] == len(table_in(tmp_path / "labels"))


def test_a_merged_region_has_the_mask_of_its_best_member(store, tmp_path):
    (tmp_path / "b").mkdir()
    (path,) = (store / "plain").glob("*.parquet")
    table = read_table(path, REGIONS, optional=None)
    score = table["score"].to_numpy()
    score = np.where(np.arange(len(score)) % 2, score * 0.5, np.minimum(score * 2, 1)).astype(np.float32)
    other = table.set_column(table.column_names.index("score"), REGIONS.field("score"), pa.array(score))
    write(tmp_path / "b" / path.name, other, footer(table.schema))
    stores = (str(store / "regions"), str(tmp_path / "b"))
    MergeRegions(regions=stores, out=tmp_path / "c", settings=MergeConfig(method="agree", agree=1)).run()
    masks = {
        tuple(r[n] for n in ("key", "phrase_row", "x1", "y1")): r["mask"]
        for r in table_in(store / "regions").to_pylist()
    }
    merged = table_in(tmp_path / "c").to_pylist()
    own = [row["score"] == row["score_0"] for row in merged]
    assert 0 < sum(own) < len(own)
    for row, first in zip(merged, own, strict=True):
        assert row["mask"] == (masks[row["key"], row["phrase_row"], row["x1"], row["y1"]] if first else None)


def test_a_teacher_without_masks_is_refused_before_anything_is_written(store, teacher, tmp_path):
    with pytest.raises(
        InputError, match=r"masks: found .* of model_type glip, which predicts none; want sam3 or sam3_"
    ):
        PseudoLabel(
            shards=store / "photos", names="car", teacher=teacher, out=tmp_path / "out",
            settings=PLAIN.model_copy(update={"masks": True}),
        ).run()  # fmt: skip
    assert not (tmp_path / "out").exists()
