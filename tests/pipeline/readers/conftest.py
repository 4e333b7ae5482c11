"""The tokenizer of the demo, which is BERT's."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """BERT's lower-cased word pieces, as the packaged text encoder has them."""
    from transformers import AutoTokenizer

    from pipeline.io.model_folder import MINILM_PACKAGE

    return AutoTokenizer.from_pretrained(Path(str(resources.files(MINILM_PACKAGE).joinpath("model"))))
