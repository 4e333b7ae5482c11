"""A released checkpoint on its way into a run: converted once, by the file's digest."""

import os

import pytest
import torch
from pydantic import ValidationError

from model import GlipConfig
from model.checkpoint_names import released_entries
from model.convert_checkpoint import derived_entry
from pipeline.config import TrainConfig
from pipeline.config.recipes import load_recipe
from pipeline.errors import InputError
from pipeline.io.model_folder import check_glip_folder, model_revision
from pipeline.stages.jobs import ConvertCheckpoint, TrainModel


def release(variant, value=0.0):
    """Entries of a released variant with one value each, which cost nothing on disk."""
    config = GlipConfig.variant(variant)
    return {
        "module." + name: derived_entry(name, config)
        if entry.ours is None
        else torch.full((1,), value).expand(entry.shape)
        for name, entry in released_entries(config).items()
    }


@pytest.mark.slow
def test_a_released_file_is_converted_once_without_being_told_its_variant(tmp_path):
    file = tmp_path / "x.pth"
    torch.save({"model": release("glip-a")}, file)
    job = ConvertCheckpoint(checkpoint=file, out=tmp_path / "converted")
    assert job.finished() is None
    model = job.run()["model"]
    check_glip_folder(model)
    assert GlipConfig.from_pretrained(model).fusion is False
    revision, written = model_revision(model), os.stat(f"{model}/model.safetensors").st_mtime_ns
    assert job.run() == job.finished() == {"model": model, "sha256": job.run()["sha256"]}
    assert os.stat(f"{model}/model.safetensors").st_mtime_ns == written
    torch.save({"model": release("glip-a", 0.5)}, file)
    assert job.finished() is None
    job.run()
    assert model_revision(model) != revision


def test_a_file_that_is_no_release_is_refused_and_nothing_left(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"x\.pth: no released variant; of glip-.*missing"):
        ConvertCheckpoint(checkpoint=tmp_path / "x.pth", out=tmp_path / "converted").run()
    assert not (tmp_path / "converted" / "final").exists()


def test_a_recipes_teacher_trains_by_its_own_settings_without_its_model():
    """The model is the training's initial one, and counts by its weights, not by its path."""
    given = load_recipe("demo", ["teacher.init=somewhere"]).teacher
    job = TrainModel(sources={"a": "a.tar"}, out="out", settings=given, init="somewhere")
    assert job.settings == load_recipe("demo").teacher.training() and type(job.settings) is TrainConfig
    with pytest.raises(ValidationError, match="found steps 0, a teacher as it is"):
        TrainModel(sources={"a": "a.tar"}, out="out", settings=given.model_copy(update={"steps": 0}))
