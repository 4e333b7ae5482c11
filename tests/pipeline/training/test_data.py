"""The mixture's beginning: a curriculum of its own, and the same places as ever after it."""

import pytest

from pipeline.config import ModelConfig, TrainConfig
from pipeline.errors import InputError
from pipeline.io.tars import write_tar
from pipeline.records import GroundingRecord, Region
from pipeline.training.build import build_model
from pipeline.training.data import TrainingData
from tests.conftest import tiny_model
from tests.fixtures.crawl import jpeg


@pytest.fixture
def sources(tmp_path):
    def record(key):
        region = Region(box=(1, 1, 30, 30), phrase="car", tokens_positive=((2, 5),))
        return GroundingRecord(
            key=key, dataset="g", kind="grounding", image_size=(64, 80), caption="a car", regions=(region,)
        )

    for name in ("a", "b"):
        samples = ((f"{name}{i}", {"jpg": jpeg(i), "json": record(f"{name}{i}").to_json()}) for i in range(6))
        write_tar(tmp_path / f"{name}.tar", samples)
    return {name: [str(tmp_path / f"{name}.tar")] for name in ("a", "b")}


def data(sources, **settings):
    config = TrainConfig(
        steps=8, batch_size=3, image_sizes=(64,), max_image_size=128, mixture={"a": 1, "b": 1}, **settings
    )
    return TrainingData(config, sources, build_model(tiny_model(ModelConfig), None)[1])


def test_the_first_steps_have_their_own_mixture_and_the_rest_is_as_without(sources):
    plain, staged = data(sources), data(sources, first_steps=2, first_mixture={"b": 1})
    assert [staged.locate(place)[0] for place in range(6)] == ["b"] * 6
    assert [staged.locate(place) for place in range(6, 24)] == [plain.locate(place) for place in range(18)]
    batch = next(staged.loader(first=1))
    assert all(name.startswith("b/") for name in batch["names"])


@pytest.mark.parametrize("mixture", [{}, {"c": 1}])
def test_a_curriculum_of_unknown_sources_is_refused(sources, mixture):
    with pytest.raises(InputError, match="first_mixture"):
        data(sources, first_steps=2, first_mixture=mixture)
