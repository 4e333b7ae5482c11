"""Loading of a network that training or labelling begins from."""

import pytest
import torch

from model import GlipForObjectDetection, GlipProcessor
from pipeline.annotators.glip import GlipAnnotator
from pipeline.config import ModelConfig, PseudoLabelConfig
from pipeline.errors import InputError
from pipeline.training.model_factory import build_model
from tests.model.glip_reference import processor, tiny_model


def test_a_folder_in_half_precision_is_computed_in_float32(tmp_path):
    tiny_model().half().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    assert GlipForObjectDetection.from_pretrained(tmp_path).dtype == torch.float16
    network, made = build_model(ModelConfig(), str(tmp_path))
    assert {p.dtype for p in network.parameters()} == {torch.float32} and isinstance(made, GlipProcessor)
    annotator = GlipAnnotator(str(tmp_path), "revision", PseudoLabelConfig(), "cpu")
    assert {p.dtype for p in annotator._model.parameters()} == {torch.float32}


@pytest.mark.parametrize("settings", [{"fusoin": False}, {"backbone_config": {"fusoin": 3}}])
def test_a_misspelt_setting_is_told(settings):
    with pytest.raises(InputError, match=r"model\.settings: found fusoin; want some of "):
        build_model(ModelConfig(text_encoder="minilm", settings=settings), None)
