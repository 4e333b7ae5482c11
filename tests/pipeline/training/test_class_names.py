"""Class names of detection sets: found beside their shards wherever these lie, and missed before anything is trained."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from pipeline.config import EvaluateConfig, ModelConfig
from pipeline.errors import InputError
from pipeline.evaluation.sets import EvaluationSet
from pipeline.training.build import build_model
from pipeline.training.class_names import needed_class_names, read_label_spaces
from pipeline.training.data import TrainingData
from tests.conftest import tiny_model
from tests.fixtures.training import NAMES, write_sources
from tests.pipeline.stages.test_train import CONFIG


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, list[str]]:
    return write_sources(tmp_path / "train")


@pytest.fixture
def remote(sources, tmp_path: Path) -> dict[str, list[str]]:
    """The same behind a URL."""
    fs, url = fsspec.filesystem("memory"), f"memory://{tmp_path.name}"
    fs.put(f"{tmp_path / 'train'}/", f"/{tmp_path.name}/", recursive=True)
    yield {name: [f"{url}/{Path(s).name}" for s in shards] for name, shards in sources.items()}
    fs.rm(f"/{tmp_path.name}", recursive=True)


def data(sources) -> TrainingData:
    return TrainingData(CONFIG, sources, build_model(tiny_model(ModelConfig), None)[1])


def test_sets_behind_a_url_are_trained_on_as_those_on_a_disk(sources, remote):
    assert needed_class_names(remote) == needed_class_names(sources) == {"detection": NAMES}
    here, there = data(sources), data(remote)
    captions = [[batch["captions"] for batch in each.loader(first=0)] for each in (here, there)]
    assert captions[0] == captions[1] and any("traffic light" in c for batch in captions[0] for c in batch)


def test_sets_behind_a_url_are_evaluated_on(remote):
    assert EvaluationSet.open("gold", remote["detection"], EvaluateConfig()).spec.names == NAMES


def test_a_detection_set_without_class_names_is_refused_at_once(sources, tmp_path):
    (tmp_path / "train" / "detection.dataset.json").unlink()
    with pytest.raises(InputError) as error:
        data(sources)
    assert str(error.value) == (
        f"source detection: {sources['detection'][0]}: no class names for detection set 'detection'; "
        "want its detection.dataset.json, with a label_space, beside the shards"
    )
    assert needed_class_names({"pseudo": sources["pseudo"]}) == {}


def test_a_file_that_is_no_card_is_named(sources, tmp_path):
    (tmp_path / "train" / "broken.dataset.json").write_text('{"name": "broken"}')
    with pytest.raises(InputError, match=r"broken\.dataset\.json: kind: Field required"):
        read_label_spaces(sources["pseudo"])
