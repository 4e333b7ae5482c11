"""The demo's recipe trains with every variant of the method, and what comes out labels images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.annotators.base import ask, load_annotator
from pipeline.config import PseudoLabelConfig
from pipeline.config.recipes import load_recipe
from pipeline.demo.config import DemoDataConfig
from pipeline.demo.generate import generate_demo
from pipeline.demo.manifest import MANIFEST
from pipeline.stages.jobs import Ingest, TrainModel
from tests.flows.tiny import SCENES

pytestmark = pytest.mark.slow

VARIANTS = {
    "as it is": [],
    "cross entropy": ["model.settings.alignment_loss=cross_entropy", "model.settings.score_aggregation=sum"],
    "many to one": ["model.settings.assigner=max_iou"],
    "one to one": ["model.settings.assigner=hungarian"],
    "fusion": ["model.settings.fusion=true", "model.settings.fusion_embed_dim=128"],
    "two stages": ["model.settings.head=two_stage"],
    "two stages, l2, cross entropy": [
        "model.settings.head=two_stage", "model.settings.box_loss=l2", "model.settings.alignment_loss=cross_entropy",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    root = tmp_path_factory.mktemp("demo")
    generate_demo(root / "data", DemoDataConfig(**{"image_size": 96, **SCENES}))
    recipe = load_recipe("demo")
    Ingest(settings=recipe.ingest, manifest=MANIFEST, out=root / "train", root=root / "data").run()
    return {name: sorted(map(str, (root / "train").glob(f"{name}-*.tar"))) for name in recipe.data.sources}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_demo_recipe_trains_with(name: str, sources: dict[str, list[str]], tmp_path: Path) -> None:
    recipe = load_recipe("demo", [*VARIANTS[name], "teacher.steps=6", "teacher.first_steps=2", "teacher.log_every=1"])
    report = TrainModel(settings=recipe.teacher, sources=sources, out=tmp_path, model=recipe.model).run()
    losses = [row["loss"] for row in report.curve]
    assert len(losses) == 6 and np.isfinite(losses).all()
    annotator = load_annotator(str(tmp_path / report.final), PseudoLabelConfig(floor=0.0001), "cpu")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8))
    (found,) = ask(annotator, [image], annotator.questions("a red fish", [(2, 10)])[0])
    assert len(found.score) > 0 and ((found.score > 0) & (found.score <= 1)).all()
    assert (found.boxes[:, 2:] >= found.boxes[:, :2]).all()
