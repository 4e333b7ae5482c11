"""The licence of a teacher's weights: from its folder or the option, through the store, to the exports."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from pipeline.config import FilterConfig, PseudoLabelConfig
from pipeline.data.dataset_cards import labelled_by
from pipeline.io.model_folder import model_revision, stated_licence
from pipeline.io.tables import footer, open_parquet
from pipeline.stages import BuildShards, ExportLabels, FilterBoxes, ParsePhrases, PseudoLabel
from tests.fixtures.crawl import write_crawl


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [vision]\n---\n# A model\n---\nlicense: mit\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: sam-license\n---\n", "sam-license"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense: [mit, cc-by-4.0]\n---\n", "mit, cc-by-4.0"),
        ("---\ntags: [vision]\n---\n", None),
        ("---\n- a list\n---\n", None),
        ("---\nlicense: [mit\n---\n", None),
        ("# license: mit\n---\nlicense: mit\n---\n", None),
        ("", None),
    ],
)
def test_a_model_cards_licence(tmp_path, text, licence):
    assert stated_licence(tmp_path) is None
    (tmp_path / "README.md").write_text(text)
    assert stated_licence(tmp_path) == licence


def test_store_and_exports_name_the_teacher_and_its_licence(tmp_path, teacher):
    folder = tmp_path / "teacher"
    shutil.copytree(teacher, folder)
    revision = model_revision(folder)
    crawl = write_crawl(tmp_path / "crawl")
    ParsePhrases(shards=crawl, out=tmp_path / "phrases").run()

    def label(out: str, **options) -> list[str]:
        regions, labels = tmp_path / out / "regions", tmp_path / out / "labels"
        settings = PseudoLabelConfig(floor=0.01, batch_size=4, max_regions_per_phrase=4)
        PseudoLabel(
            shards=crawl, out=regions, phrases=tmp_path / "phrases", teacher=folder, settings=settings, **options
        ).run()
        FilterBoxes(regions=regions, out=labels, settings=FilterConfig(threshold=0.1, best_per_phrase=1)).run()
        return [str(path) for path in sorted(labels.glob("*.parquet"))]

    without = label("without")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    stated, given = label("stated"), label("given", licence="SAM License")
    notes = [footer(open_parquet(files[0]).schema_arrow) for files in (without, stated, given)]
    assert [note.get("teacher_licence") for note in notes] == [None, "mit", "SAM License"]
    prints = [
        json.loads((tmp_path / out / "regions" / "00000.report.json").read_text())["fingerprint"]
        for out in ("without", "stated", "given")
    ]
    assert len(set(prints)) == 1 and model_revision(folder) == revision  # a note: nothing is labelled again for it
    wanted = f"glip@{revision} (licence of the weights: mit)"
    assert labelled_by(without) is None and labelled_by(stated) == wanted
    assert labelled_by([*given, *stated]) == f"glip@{revision} (licence of the weights: SAM License); {wanted}"

    folders = {"phrases": tmp_path / "phrases", "labels": tmp_path / "stated/labels"}
    BuildShards(shards=crawl, out=tmp_path / "train", **folders).run()
    ExportLabels(
        dirs=[tmp_path / "stated/labels"], phrases=tmp_path / "phrases", out=tmp_path / "coco", to="coco"
    ).run()
    ExportLabels(dirs=[tmp_path / "train"], out=tmp_path / "yolo", to="yolo").run()
    ExportLabels(dirs=[tmp_path / "without/labels"], phrases=tmp_path / "phrases", out=tmp_path / "no", to="coco").run()
    assert json.loads((tmp_path / "coco/pseudo.json").read_text())["info"]["labelled_by"] == wanted
    assert yaml.safe_load((tmp_path / "coco/manifest.yaml").read_text())["sets"]["pseudo"]["note"] == wanted
    assert yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())["labelled_by"] == wanted
    assert "labelled_by" not in json.loads((tmp_path / "no/pseudo.json").read_text())["info"]
