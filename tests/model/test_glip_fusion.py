"""Deep fusion: the folded computation equals the published one, in inference and in training."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.layers.fusion import GlipFusion
from tests.model.glip_reference import tiny_model


def fusion(dropout=0.0, seed=0, embed=64, heads=4):
    torch.manual_seed(seed)
    layer = GlipFusion(32, 24, embed, heads, dropout, 0.5)
    for parameter in layer.parameters():  # biases start at zero: give every term a part
        torch.nn.init.normal_(parameter, std=0.2)
    return layer


def inputs(batch, places, tokens, real):
    v = torch.randn(batch, places, 32, requires_grad=True)
    l = torch.randn(batch, tokens, 24, requires_grad=True)
    mask = torch.zeros(batch, tokens, dtype=torch.long)
    for row, n in enumerate(real):
        mask[row, :n] = 1
    return v, l, mask


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.lists(st.integers(1, 12), min_size=1, max_size=3), st.integers(0, 99))
def test_folded_equals_literal_with_gradients(places, real, seed):
    layer = fusion(seed=seed).train()
    layer.attn._folding_pays = lambda v, l: True  # at this size it would not: the path itself is what is tested
    v, l, mask = inputs(len(real), places, 12, real)
    results = []
    for eager in (True, False):
        layer.zero_grad()
        v.grad = l.grad = None
        out = layer(v, l, mask, eager)
        (out[0].square().sum() + (out[1] * mask[..., None]).square().sum()).backward()
        gradients = [v.grad, l.grad, *(p.grad for p in layer.parameters())]
        results.append([out[0], out[1], *gradients])
    for literal, folded in zip(*results, strict=True):
        scale = literal.abs().max().clamp(min=1)
        assert ((literal - folded).abs().max() / scale) < 1e-4


def test_dropout_has_the_same_mean_on_both_paths():
    """Each path draws its own masks, of different shapes, so only expectations can be equal."""
    layer = fusion(dropout=0.4).train()
    layer.attn._folding_pays = lambda v, l: True
    v, l, mask = inputs(1, 6, 5, [4])
    with torch.no_grad():
        means = []
        for eager in (True, False):
            torch.manual_seed(1)
            draws = [layer(v, l, mask, eager) for _ in range(3000)]
            means.append([torch.stack([d[i] for d in draws]).mean(0) for i in (0, 1)])
            spread = torch.stack([d[1] for d in draws]).std(0).max() / 3000**0.5
        assert (means[0][0] - means[1][0]).abs().max() < 6 * spread + 0.02
        assert (means[0][1] - means[1][1])[mask > 0].abs().max() < 6 * spread


def pays(layer, places, tokens, width=256):
    v, l = torch.empty(1, places, width, device="meta"), torch.empty(1, tokens, 768, device="meta")
    return layer.attn._folding_pays(v, l)


def test_the_side_is_chosen_by_shape():
    """Folding: heads x tokens columns of width C per location, not three projections to E."""
    released = GlipFusion(256, 768, 2048, 8, 0.0, 1.0)  # heads x C = E: folded is never more, if locations are many
    assert all(pays(released, 22223, t) for t in (8, 20, 256))
    assert not pays(released, 20, 20)  # so few locations that folding the weights costs more than it saves
    narrow = GlipFusion(256, 768, 256, 8, 0.0, 1.0)  # heads x C = 8 E: only captions are short enough
    assert pays(narrow, 22223, 20) and not pays(narrow, 22223, 64)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_whole_network_takes_either_path(implementation):
    torch.manual_seed(3)
    pixels, ids = torch.randn(2, 3, 64, 96), torch.randint(1000, 5000, (2, 9))
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    reference = tiny_model().eval()
    other = tiny_model(attn_implementation=implementation).eval()
    with torch.inference_mode():
        a = reference(pixel_values=pixels, input_ids=ids, attention_mask=mask)
        b = other(pixel_values=pixels, input_ids=ids, attention_mask=mask)
    assert (a.logits - b.logits)[:, :, :6].abs().max() < 1e-4
    assert (a.pred_boxes - b.pred_boxes).abs().max() < 1e-3
