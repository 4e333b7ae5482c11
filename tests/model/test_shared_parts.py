"""Parts of the network that take another way on a GPU, or over a long run: the answers stay the same."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from model import box_ops
from model.layers import constants
from model.layers.swin import shift_mask
from model.layers.two_stage import RegionFeatures
from tests.model.glip_reference import tiny_model


@given(st.integers(1, 60), st.integers(1, 5), st.floats(0.05, 0.95), st.integers(0, 2**31))
def test_labels_suppressed_all_at_once_are_as_one_by_one(count, kinds, threshold, seed):
    """What a GPU does in one go, and the loop over labels of a CPU."""
    make = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(count, 2, generator=make) * 40, torch.rand(count, 2, generator=make) * 40
    boxes, scores = torch.cat([corner, corner + size], 1), torch.rand(count, generator=make).round(decimals=1)
    labels = torch.randint(kinds, (count,), generator=make)
    order = scores.sort(descending=True, stable=True).indices
    kept = order[box_ops._greedy(boxes[order], threshold, labels[order])].sort().values
    assert torch.equal(kept, box_ops.nms(boxes, scores, labels, threshold))


def test_what_is_remembered_of_image_sizes_is_bounded_by_its_bytes(monkeypatch):
    monkeypatch.setattr(constants, "_CACHE", {})
    monkeypatch.setattr(constants, "_LIMIT_BYTES", 8 << 20)
    device = torch.device("cpu")
    for rows in range(2, 30):
        mask = constants.device_constant(shift_mask, rows * 7, 70, 7, 3, device=device, dtype=torch.float32)
        assert torch.equal(mask, shift_mask(rows * 7, 70, 7, 3))
        held = sum(m.numel() * m.element_size() for m in constants._CACHE.values())
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
