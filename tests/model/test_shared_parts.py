"""Parts of the network with several code paths, by device, size or length of the run."""

from fractions import Fraction
from unittest import mock

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from model import box_ops
from model.layers import constants
from model.layers.swin import shift_mask
from model.layers.two_stage import RegionFeatures
from tests.model.glip_reference import tiny_model


def plain_nms(boxes, scores, labels, threshold):
    """The rule in exact arithmetic: best first, +1 sides, of equal scores the earlier box."""
    boxes = [[Fraction(x) for x in box] for box in boxes.tolist()]
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i].item(), i)):
        x1, y1, x2, y2 = boxes[i]
        for j in kept:
            if labels[j] != labels[i]:
                continue
            u1, v1, u2, v2 = boxes[j]
            inter = max(min(x2, u2) - max(x1, u1) + 1, 0) * max(min(y2, v2) - max(y1, v1) + 1, 0)
            areas = (x2 - x1 + 1) * (y2 - y1 + 1) + (u2 - u1 + 1) * (v2 - v1 + 1)
            if float(inter / (areas - inter)) > threshold:
                break
        else:
            kept.append(i)
    return sorted(kept)


@pytest.mark.parametrize("way", ["_batched_nms_coordinate_trick", "_batched_nms_vanilla"])
@given(
    st.integers(0, 40), st.integers(1, 5), st.sampled_from([1, 300, 10**6]), st.sampled_from([10, 100, 10**4]),
    st.booleans(), st.floats(0.05, 0.95), st.integers(0, 2**31),
)  # fmt: skip
def test_suppression_follows_the_plain_rule(way, count, kinds, step, side, whole, threshold, seed):
    """Ties, touching boxes, far labels and large coordinates, on both of torchvision's paths."""
    make = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(count, 2, generator=make) * side, torch.rand(count, 2, generator=make) * side
    boxes, scores = torch.cat([corner, corner + size], 1), torch.rand(count, generator=make).round(decimals=1)
    boxes = boxes.round() if whole else boxes  # whole numbers: many boxes touch or share an edge
    labels = torch.randint(kinds, (count,), generator=make) * step
    with mock.patch("torchvision.ops.boxes._batched_nms_coordinate_trick", getattr(torchvision.ops.boxes, way)):
        kept = box_ops.nms(boxes, scores, labels, threshold)
    assert kept.tolist() == plain_nms(boxes, scores, labels, threshold)


@pytest.mark.parametrize("label", [0, 1202, 10**6])
def test_one_pixel_decides_far_from_the_origin(label):
    """Boxes of 10 x 10 pixels: shifted by 2 they overlap by 80/120, by 3 by 70/130."""
    boxes = torch.tensor([[0.0, 0, 9, 9], [2, 0, 11, 9], [3, 0, 12, 9], [10, 0, 19, 9], [0, 0, 20000, 9]]) + 8000
    scores, labels = torch.tensor([0.9, 0.8, 0.8, 0.8, 0.1]), torch.full((5,), label)
    assert box_ops.nms(boxes, scores, labels, 0.6).tolist() == [0, 2, 3, 4]
    assert box_ops.nms(boxes, scores, labels, 80 / 120).tolist() == [0, 1, 3, 4]  # not above: it stays


def test_what_is_remembered_of_image_sizes_is_bounded_by_its_bytes(monkeypatch):
    monkeypatch.setattr(constants, "_CACHE", {})
    monkeypatch.setattr(constants, "_LIMIT_BYTES", 8 << 20)
    device = torch.device("cpu")
    for rows in range(2, 30):
        mask = constants.device_constant(shift_mask, rows * 7, 70, 7, 3, device=device, dtype=torch.float32)
        assert torch.equal(mask, shift_mask(rows * 7, 70, 7, 3))
        held = sum(m.nbytes for masks in constants._CACHE.values() for m in masks)
        assert held <= 8 << 20 or len(constants._CACHE) == 1
    assert len(constants._CACHE) > 1
    assert constants.device_constant(shift_mask, 29 * 7, 70, 7, 3, device=device, dtype=torch.float32) is mask


def test_regions_of_maps_in_half_precision_are_not_rounded():
    """Far from the origin bfloat16 has steps of 8 pixels: both boxes would be the same."""
    network = tiny_model(head="two_stage", fusion=False)
    regions = next(m for m in network.modules() if isinstance(m, RegionFeatures)).eval()
    make = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(1, network.config.hidden_size, 1600 // s, 1600 // s, generator=make).bfloat16()
        for s in network.config.feature_strides
    ]
    boxes = torch.tensor([[[1201.0, 1201, 1301, 1301], [1203.0, 1201, 1303, 1301]]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        one, other = regions(maps, boxes)[0]
    assert not torch.equal(one, other)


def test_giou_adds_eps_to_union_and_enclosing_area():
    """By boxes whose areas are of the size of eps; the formula is GLIP spec section 7, in double precision."""
    a = torch.tensor([[0.0, 0.0, 2e-4, 3e-4], [0.0, 0.0, 4.0, 4.0]], dtype=torch.float64)
    b = torch.tensor([[1e-4, 1e-4, 4e-4, 3e-4], [2.0, 2.0, 6.0, 5.0]], dtype=torch.float64)
    inter, union, hull = torch.tensor([2e-8, 4.0]), torch.tensor([10e-8, 24.0]), torch.tensor([12e-8, 30.0])
    want = inter / (union + 1e-7) - (hull - union) / (hull + 1e-7)
    torch.testing.assert_close(box_ops.paired_giou(a, b).float(), want, rtol=1e-6, atol=1e-6)
