"""Every teacher that is no GLIP, once as a folder, and images to ask them about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.annotators.base import Annotator, load_annotator
from pipeline.config import PseudoLabelConfig
from tests.fixtures import teachers

CAPTION = "A red car next to a small green tree."
SPANS = [(2, 9), (20, 36)]
ALL = PseudoLabelConfig(floor=0.0, nms_threshold=1.0, max_regions_per_phrase=1000)
"""Every box for every phrase: nothing is left to chance by thresholds."""

MAKERS: dict[str, Callable[[Path], Path]] = {
    "grounding-dino": teachers.grounding_dino,
    "mm-grounding-dino": lambda folder: teachers.grounding_dino(folder, mm=True),
    "owlv2": teachers.owl,
    "owlvit": lambda folder: teachers.owl(folder, v2=False),
    "omdet-turbo": teachers.omdet_turbo,
    "florence2": teachers.florence2,
    "sam3": teachers.sam3,
    "sam3_video": lambda folder: teachers.sam3(folder, video=True),
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> dict[str, Path]:
    """model_type -> folder, GLIP's among them."""
    root = tmp_path_factory.mktemp("teachers")
    return {"glip": teacher} | {name: make(root / name) for name, make in MAKERS.items()}


@pytest.fixture
def load(folders: dict[str, Path]) -> Callable[..., Annotator]:
    """A teacher by its model_type."""
    return lambda name, config=ALL: load_annotator(folders[name], config)


def picture(seed: int, size: tuple[int, int] = (90, 60)) -> Image.Image:
    """Coloured blocks, (width, height)."""
    blocks = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)
