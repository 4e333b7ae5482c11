"""Class names of detection sets: found beside their shards wherever these lie, and missed before
anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import numpy as np
import pytest

from pipeline.config import EvaluateConfig, ModelConfig
from pipeline.data.class_names import LabelSpaces, digests, needed_class_names
from pipeline.errors import InputError, RunError
from pipeline.evaluation.evaluation_set import EvaluationSet
from pipeline.training.dataset import TrainingData
from pipeline.training.model_factory import build_model
from tests.conftest import tiny_model
from tests.fixtures.training import NAMES, write_sources
from tests.pipeline.io.test_https import Server
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
    assert needed_class_names(remote) == needed_class_names(sources) == {"detection": (NAMES,)}
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
        LabelSpaces(sources["pseudo"])


def test_sets_of_one_name_in_two_folders_have_each_their_own_names(sources, tmp_path):
    """ "train" is what half of all manifests call a set."""
    there = write_sources(tmp_path / "other")
    card = tmp_path / "other" / "detection.dataset.json"
    more = json.loads(card.read_text())
    more["label_space"] += ["wheel", "sky"]
    both = {**sources, "detection": [*sources["detection"], *there["detection"]]}
    assert digests(both) == digests(sources)  # one set in two folders
    card.write_text(json.dumps(more))
    assert needed_class_names(both)["detection"] == (NAMES, (*NAMES, "wheel", "sky"))
    assert digests(both)["detection"] != digests(sources)["detection"] != digests(there)["detection"]
    here = set(sources["detection"])
    made, asked = data(both), {True: set[str](), False: set[str]()}
    records = made.sets["detection"]
    for shard, path in enumerate(records.shards):
        for row in range(records.counts[shard]):
            prompted = made._prompt(records.record(shard, row), "detection", path, np.random.default_rng(row))
            asked[path in here] |= {name.strip() for name in prompted.caption.split(". ")}
    assert not {"wheel", "sky"} & asked[True] and {"wheel", "sky"} <= asked[False]
    renamed = [str(Path(p).rename(Path(p).with_name(f"more-{Path(p).name}"))) for p in there["detection"]]
    with pytest.raises(InputError, match=r"evaluation set gold: .* detection\.dataset\.json beside its shards differ"):
        EvaluationSet.open("gold", [*sources["detection"], *renamed], EvaluateConfig())


def test_a_web_server_without_a_list_of_its_folder_has_cards_all_the_same(sources, tmp_path):
    server = Server(tmp_path / "train", ranges=True)
    remote = {name: [f"{server.url}/{Path(s).name}" for s in shards] for name, shards in sources.items()}
    assert needed_class_names(remote) == {"detection": (NAMES,)}
    assert data(remote).sample(0)["name"] == data(sources).sample(0)["name"]
    server.for_folder = 403
    assert needed_class_names(remote) == {"detection": (NAMES,)}
    (tmp_path / "train" / "detection.dataset.json").unlink()
    with pytest.raises(InputError, match=r"want its detection\.dataset\.json, with a label_space, beside the shards"):
        needed_class_names(remote)
    server.shutdown()


def test_a_record_that_the_store_refuses_is_not_replaced_by_another(sources, tmp_path):
    """Another record in its place would be another training."""
    server = Server(tmp_path / "train", ranges=True)
    made = data({name: [f"{server.url}/{Path(s).name}" for s in shards] for name, shards in sources.items()})
    server.for_shards = 403
    with pytest.raises(RunError, match=r"\.tar: refused \(ClientResponseError: 403"):
        made.sample(0)
    server.shutdown()


def test_a_shard_that_is_gone_or_shorter_than_it_was_is_told(sources):
    made = data(sources)
    for path in map(Path, (p for shards in sources.values() for p in shards)):
        path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(RunError, match=r"\.tar: \d+ bytes from byte \d+ on, want \d+; has it been replaced"):
        made.sample(0)
    for shards in sources.values():
        for path in shards:
            Path(path).unlink()
    records = made.sets["detection"]
    records.forget_open_files()
    with pytest.raises(RunError, match=r"\.tar: No such file or directory; it was there at the start"):
        records.record(0, 0)
