"""Counted operations, against hand counts, and what half precision leaves in float32."""

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops

from model import GlipConfig
from pipeline.annotators.flops import FlopsByType, labelling_flops


def test_products_convolutions_and_sampled_sums_are_counted():
    with FlopsByType() as flops:
        torch.ones(3, 4) @ torch.ones(4, 5)
        F.conv2d(torch.ones(1, 2, 8, 8), torch.ones(6, 2, 3, 3), padding=1)
        F.embedding_bag(
            torch.zeros(7, 4, dtype=torch.long), torch.ones(9, 16), mode="sum", per_sample_weights=torch.ones(7, 4)
        )
        torchvision.ops.deform_conv2d(
            torch.ones(1, 2, 8, 8), torch.zeros(1, 18, 8, 8), torch.ones(6, 2, 3, 3), padding=1
        )
    convolution = 2 * 6 * 2 * 9 * 64
    assert flops.by_type == {torch.float32: 2 * 3 * 4 * 5 + 2 * convolution + 2 * 7 * 4 * 16}


@pytest.mark.parametrize(("precision", "most"), [("float32", 1.0), ("bf16", 0.001)])
def test_half_precision_leaves_next_to_nothing_in_float32(precision, most):
    config = GlipConfig.variant("glip-t", num_blocks=1)
    flops = labelling_flops(config, (224, 320), 20, precision)
    share = flops.get("float32", 0) / sum(flops.values())
    assert share <= most and (share == 1.0) == (precision == "float32")
