"""What several tests of the training's data need."""

import pytest

from pipeline.data.records import GroundingRecord, Region
from pipeline.io.tars import write_tar
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
