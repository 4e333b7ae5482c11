"""Compiled, channels-last, bf16, torchvision's operator: one network gives the same boxes."""

import shutil

import pytest
import torch

from model import GlipBackboneConfig
from pipeline.annotators.memory import autocast
from tests.model.glip_reference import processor, tiny_model
from tests.model.golden.seeded import seeded_image

CAPTION, PHRASES = "a dog. a red kite", [[(0, 5)], [(7, 17)]]


def batch():
    made = processor()
    return made, made(images=[seeded_image(96, 128, s) for s in (1, 2)], text=[CAPTION] * 2)


def boxes(made, outputs):
    return made.post_process_grounded_object_detection(outputs, phrases=[PHRASES] * 2, threshold=0.2)


def assert_same_boxes(found, want, atol):
    for a, b in zip(found, want, strict=True):
        assert len(a["boxes"]) == len(b["boxes"]) > 0
        near = (a["boxes"][:, None] - b["boxes"][None]).abs().amax(-1) < atol
        near &= a["labels"][:, None] == b["labels"][None]
        assert near.any(0).all() and near.any(1).all()


@pytest.fixture(scope="module")
def network():
    return tiny_model(prior_probability=0.3).eval()


@pytest.fixture(scope="module")
def expected(network):
    _, inputs = batch()
    with torch.inference_mode():
        return network(**inputs)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend):
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler")
    made, inputs = batch()
    small = GlipBackboneConfig(embed_dim=16, depths=(1, 1), num_heads=(2, 2), window_size=4, mlp_ratio=2.0)
    network = tiny_model(prior_probability=0.3, backbone_config=small, num_blocks=1, num_feature_levels=2).eval()
    with torch.inference_mode():
        expected = network(**inputs)
        outputs = torch.compile(network, backend=backend)(**inputs)
    assert (outputs.logits - expected.logits).abs().max() < 1e-4
    assert_same_boxes(boxes(made, outputs), boxes(made, expected), 0.01)


def test_channels_last(network, expected):
    made, inputs = batch()
    inputs["pixel_values"] = inputs["pixel_values"].to(memory_format=torch.channels_last)
    with torch.inference_mode():
        outputs = network(**inputs)
    assert_same_boxes(boxes(made, outputs), boxes(made, expected), 0.01)


def test_torchvisions_operator(expected):
    made, inputs = batch()
    other = tiny_model(prior_probability=0.3, deform_implementation="torchvision").eval()
    with torch.inference_mode():
        outputs = other(**inputs)
    assert (outputs.logits - expected.logits).abs().max() < 1e-4
    assert_same_boxes(boxes(made, outputs), boxes(made, expected), 0.01)


def test_bf16_autocast_stays_near(network, expected):
    _, inputs = batch()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        outputs = network(**inputs)
    assert outputs.pred_boxes.dtype == torch.float32  # boxes lose pixels in half precision
    difference = (outputs.logits.float().sigmoid() - expected.logits.sigmoid()).abs()
    assert difference.mean() < 0.01 and difference.max() < 0.1
    assert (outputs.pred_boxes - expected.pred_boxes).abs().mean() < 1.0


def test_bf16_gradients_of_sampled_convolutions_stay_near(network):
    _, inputs = batch()

    def gradients(precision: str) -> dict[str, torch.Tensor]:
        training = tiny_model(prior_probability=0.3).eval()
        with autocast("cpu", precision):
            outputs = training(**inputs)
        (outputs.logits.float().sigmoid().mean() + outputs.box_deltas.float().square().mean()).backward()
        return {
            n: p.grad for n, p in training.named_parameters() if p.grad is not None and (".same." in n or "offset" in n)
        }

    exact, near = gradients("float32"), gradients("bf16")
    assert exact and exact.keys() == near.keys()
    for name, gradient in near.items():
        assert gradient.dtype == torch.float32
        assert torch.cosine_similarity(gradient.flatten(), exact[name].flatten(), 0) > 0.97, name
