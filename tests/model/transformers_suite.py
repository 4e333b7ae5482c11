"""transformers' own common tests on our classes; `test_transformers_common.py` fetches and runs them.

Each override says why the test as it stands cannot apply.
"""

import copy
import unittest

import numpy as np
import torch
from PIL import Image
from transformers import BertConfig
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from transformers_tests.test_processing_common import ProcessorTesterMixin

from model import GlipBackboneConfig, GlipConfig, GlipForObjectDetection, GlipImageProcessor, GlipProcessor
from model.image_processing_glip import resized_size
from tests.model.glip_reference import tokenizer


class GlipModelTester:
    """Inputs of the tests, for a network of two blocks."""

    batch_size, seq_length, image_size, num_hidden_layers, hidden_size = 2, 7, 32, 2, 32
    encoder_seq_length = 8 * 8 + 4 * 4 + 2 * 2  # hidden states are those of the locations
    is_training = True

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return GlipConfig(
            backbone_config=GlipBackboneConfig(
                embed_dim=16, depths=(1, 1), num_heads=(2, 2), window_size=2, mlp_ratio=2.0, drop_path_rate=0.0
            ),
            text_config=BertConfig(
                vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=37,
                max_position_embeddings=256, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            ),
            hidden_size=32, group_norm_groups=8, fpn_in_stages=(2, 3), num_feature_levels=3, num_blocks=2,
            fusion_embed_dim=64, fusion_num_heads=2, fusion_dropout=0.0, drop_block_prob=0.0, num_class_logits=0,
            anchor_scale=4.0,
        )  # fmt: skip

    def prepare_config_and_inputs_for_common(self):
        ids = ids_tensor([self.batch_size, self.seq_length], 98) + 1
        size = [self.batch_size, 3, self.image_size, self.image_size]
        return self.get_config(), {
            "pixel_values": floats_tensor(size), "input_ids": ids, "attention_mask": torch.ones_like(ids)
        }  # fmt: skip


class GlipModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (GlipForObjectDetection,)
    has_attentions = False
    test_resize_embeddings = False  # the text encoder's words are BERT's, as GroundingDINO's test has it

    def setUp(self):
        self.model_tester = GlipModelTester(self)
        self.config_tester = ConfigTester(
            self, config_class=GlipConfig, has_text_modality=False, common_properties=["hidden_size"]
        )

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs_dict = copy.deepcopy(inputs_dict)
        if return_labels:
            label = {"boxes": torch.tensor([[4.0, 4.0, 20.0, 24.0]]), "positive_map": torch.eye(7)[1:2]}
            inputs_dict["labels"] = [label] * self.model_tester.batch_size
        return inputs_dict

    @unittest.skip("It asks for attention maps where the text encoder could give them; GLIP refuses them by name")
    def test_capture_outputs_decorator(self):
        pass

    def test_config(self):
        self.config_tester.run_common_tests()


class GlipImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"shortest_edge": 18, "longest_edge": 64})
        kwargs.setdefault("pad_to_multiple", 1)
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        return {"pil": GlipImageProcessor, "torchvision": GlipImageProcessor}

    def expected_output_image_shape(self, images):
        """The longer side is truncated, not rounded (GLIP spec section 1)."""
        sizes = []
        for image in images:
            height, width = image.size[::-1] if isinstance(image, Image.Image) else image.shape[:2]
            if isinstance(image, torch.Tensor):
                height, width = image.shape[1:]
            sizes.append(resized_size(width, height, self.size["shortest_edge"], self.size["longest_edge"]))
        return self.num_channels, max(h for h, _ in sizes), max(w for _, w in sizes)


class GlipImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = GlipImageProcessingTester


class GlipProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = GlipProcessor

    @classmethod
    def _setup_tokenizer(cls):
        return tokenizer()

    @classmethod
    def _setup_image_processor(cls):
        return GlipImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})

    @classmethod
    def _get_component_class_from_processor(cls, attribute, use_fast=True):
        return GlipImageProcessor if attribute == "image_processor" else type(tokenizer())

    def prepare_images_inputs(self, batch_size=None, nested=False):
        image = Image.fromarray(np.random.RandomState(0).randint(0, 255, (30, 40, 3), dtype=np.uint8))
        if batch_size is None:
            return image
        return [[image]] * batch_size if nested else [image] * batch_size
