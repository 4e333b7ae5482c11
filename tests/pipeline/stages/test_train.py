"""Training on real shards with a small real network: resumable to the byte, every loss counted, errors named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.config import EvaluateConfig, ModelConfig, PromptConfig, TrainConfig
from pipeline.data.records import GroundingRecord, Region
from pipeline.errors import InputError
from pipeline.execution.progress import Silent
from pipeline.io.hashing import digest_file
from pipeline.io.tars import write_tar
from pipeline.stages.jobs import Evaluate, TrainModel
from tests.conftest import tiny_model
from tests.fixtures.training import write_sources

CONFIG = TrainConfig(
    steps=5, batch_size=2, learning_rate=1e-3, warmup_steps=2, image_sizes=(64,), max_image_size=128, flip=0.5,
    mixture={"detection": 1, "pseudo": 1}, prompt=PromptConfig(max_negatives=2), save_every=2, log_every=1,
)  # fmt: skip


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, list[str]]:
    return write_sources(tmp_path / "train")


def run(sources, out, config=CONFIG, **options):
    return TrainModel(settings=config, sources=sources, out=out, model=tiny_model(ModelConfig), **options).run()


def files(folder: Path) -> dict[str, str]:
    return {p.name: digest_file(p) for p in sorted(folder.iterdir())}


class Killed(Exception):
    pass


class KillAt(Silent):
    """A progress that ends the run in the middle of a step's bookkeeping, as a signal would."""

    def __init__(self, step: int) -> None:
        self.left = step

    def advance(self, n: int, unit: str = "samples") -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Sources, and the report and the folder of a training on them that nothing disturbed; not to be changed."""
    root = tmp_path_factory.mktemp("undisturbed")
    sources = write_sources(root / "train")
    return sources, run(sources, root / "whole"), root / "whole"


def test_a_killed_training_ends_as_an_undisturbed_one(undisturbed, tmp_path):
    sources, whole, folder = undisturbed
    with pytest.raises(Killed):
        run(sources, tmp_path / "killed", progress=KillAt(3))
    assert sorted(p.name for p in (tmp_path / "killed").glob("step-*")) == ["step-00000002"]
    again = run(sources, tmp_path / "killed")
    assert again == whole and len(whole.curve) == 5
    assert files(tmp_path / "killed" / "final") == files(folder / "final")
    assert not list(folder.glob("step-*"))


def test_a_damaged_checkpoint_is_left_aside(undisturbed, tmp_path):
    sources, whole, folder = undisturbed
    with pytest.raises(Killed):
        run(sources, tmp_path / "killed", progress=KillAt(4))
    newest = tmp_path / "killed" / "step-00000004" if (tmp_path / "killed" / "step-00000004").exists() else None
    newest = newest or tmp_path / "killed" / "step-00000002"
    model = next(newest.rglob("*.safetensors"))
    model.write_bytes(model.read_bytes()[:-10])
    assert run(sources, tmp_path / "killed") == whole
    assert files(tmp_path / "killed" / "final") == files(folder / "final")


def test_done_is_done_and_other_settings_train_anew(sources, tmp_path):
    run(sources, tmp_path / "a")
    before = (tmp_path / "a" / "final" / "model.safetensors").stat().st_mtime_ns
    run(sources, tmp_path / "a")
    assert (tmp_path / "a" / "final" / "model.safetensors").stat().st_mtime_ns == before
    run(sources, tmp_path / "a", CONFIG.model_copy(update={"seed": 1}))
    assert (tmp_path / "a" / "final" / "model.safetensors").stat().st_mtime_ns > before


def test_training_moves_the_weights_that_are_free_and_no_others(sources, tmp_path, teacher):
    from safetensors.torch import load_file

    config = CONFIG.model_copy(update={"freeze_text_layers": 1, "ema": 0.5})
    TrainModel(settings=config, sources=sources, out=tmp_path / "s", init=str(teacher)).run()
    before, after = load_file(teacher / "model.safetensors"), load_file(tmp_path / "s" / "final" / "model.safetensors")
    averaged = load_file(tmp_path / "s" / "final_ema" / "model.safetensors")
    same = {n for n in before if before[n].equal(after[n])}
    assert all(n in same for n in before if n.startswith("text_encoder."))
    head = "head.dot_product_projection_text.weight"
    assert head not in same and not averaged[head].equal(after[head]) and not averaged[head].equal(before[head])


def test_records_that_cannot_be_used_are_counted(sources, tmp_path):
    record = GroundingRecord(
        key="x", dataset="pseudo", kind="grounding", image_size=(64, 80), caption="a cat",
        regions=(Region(box=(1, 1, 9, 9), phrase="cat", tokens_positive=((2, 5),)),),
    )  # fmt: skip
    shard = tmp_path / "train" / "pseudo-000001.tar"
    write_tar(shard, iter([("x", {"jpg": b"no picture", "json": record.to_json()})]))
    report = run({**sources, "pseudo": [*sources["pseudo"], str(shard)]}, tmp_path / "out")
    assert report.lost["unusable_record"] >= 1 and report.records == {"detection": 5, "pseudo": 5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixture": {"detection": 1}}, r"mixture names \['detection'\], but the sources are"),
        ({"mixture": {"detection": 1, "pseudo": 0}}, "must be above 0"),
    ],
)
def test_wrong_mixtures_are_named(sources, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(sources, tmp_path / "out", CONFIG.model_copy(update=changes))


def test_a_damaged_training_shard_is_told_at_once(sources, tmp_path):
    shard = Path(sources["pseudo"][0])
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(InputError, match="pseudo-000000"):
        run(sources, tmp_path / "out")


def test_evaluation_writes_what_it_returns_and_does_it_once(sources, tmp_path, teacher):
    sets = {"val": sources["detection"]}
    got = Evaluate(settings=EvaluateConfig(batch_size=3), model=str(teacher), sets=sets, out=tmp_path / "e").run()
    assert got["val"]["images"] == 5 and got["val"]["queries"] == 10
    assert 0 <= got["val"]["recall_at_1"] <= got["val"]["recall_at_10"] <= 100
    saved = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert saved["sets"] == got
    predictions = json.loads((tmp_path / "e" / "predictions-val.json").read_text())
    assert {p["category_id"] for p in predictions} <= {1, 2, 3, 4} and {p["image_id"] for p in predictions} <= {
        f"d{i}" for i in range(5)
    }
    before = (tmp_path / "e" / "metrics.json").stat().st_mtime_ns
    assert (
        Evaluate(settings=EvaluateConfig(batch_size=3), model=str(teacher), sets=sets, out=tmp_path / "e").run() == got
    )
    assert (tmp_path / "e" / "metrics.json").stat().st_mtime_ns == before


def test_a_training_does_not_write_over_what_it_starts_from(sources, tmp_path):
    run(sources, tmp_path / "a")
    before = files(tmp_path / "a" / "final")
    for init in (tmp_path / "a" / "final", tmp_path / "a" / ".." / "a" / "final"):
        with pytest.raises(
            InputError,
            match=r"a/final: the training would write over the model it starts from; want an --out beside it",
        ):
            run(sources, tmp_path / "a", init=str(init))
    assert files(tmp_path / "a" / "final") == before
    run(sources, tmp_path / "b", init=str(tmp_path / "a" / "final"))


def test_a_model_that_no_training_made_is_not_replaced(sources, tmp_path, teacher):
    shutil.copytree(teacher, tmp_path / "out" / "final")
    (tmp_path / "out" / "final" / "notes.txt").write_text("mine")
    with pytest.raises(
        InputError, match=r"out/final: found a model folder of another origin; want another --out, or move it away"
    ):
        run(sources, tmp_path / "out")
    assert (tmp_path / "out" / "final" / "notes.txt").read_text() == "mine"
