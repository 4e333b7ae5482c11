"""Parts of training that a released network's goldens do not show: frozen parts, priors, matching costs."""

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from model.assigners import hungarian
from model.losses import assign
from model.targets import collect_targets
from tests.model.glip_reference import processor, tiny_config, tiny_model
from tests.model.golden.seeded import seeded_image


def test_frozen_parts_drop_nothing():
    network = tiny_model()
    network.freeze(text_layers=1, backbone_stages=3)
    for _ in range(2):
        frozen = [network.backbone.patch_embed, *network.backbone.layers, network.text_encoder.embeddings]
        frozen.append(network.text_encoder.encoder.layer[0])
        dropping = (nn.Dropout, StochasticDepth)
        inside = [m for part in frozen for m in part.modules() if isinstance(m, dropping)]
        assert inside and not any(m.training for m in inside)
        assert network.training and network.head.training and network.neck.training
        network.eval()
        assert not any(m.training for m in network.modules())
        network.train()
    inputs = processor()(images=seeded_image(96, 128, 1), text="a dog")
    first, second = (network.backbone(inputs["pixel_values"])[-2] for _ in range(2))
    assert torch.equal(first, second)  # drop path of the last stage would make them differ
    network.freeze()
    network.train()
    assert all(m.training for m in network.modules())


def test_the_two_stage_heads_objectness_begins_at_the_prior():
    network = tiny_model(head="two_stage")
    bias = network.head.proposals.objectness.bias
    assert bias.item() == pytest.approx(-4.59512, abs=1e-4)  # -log 99 (GLIP spec 0.11)
    inputs = processor()(images=seeded_image(96, 128, 1), text="a dog")
    tokens = torch.eye(inputs["input_ids"].shape[1])[1:2]
    label = {"boxes": torch.tensor([[10.0, 10.0, 60.0, 60.0]]), "positive_map": tokens}
    # nearly all anchors are negatives: without the prior they would weigh hundreds of times more
    assert network(**inputs, labels=[label]).loss_dict["loss_objectness"] < 10


def test_what_is_no_longer_frozen_learns_again():
    network = tiny_model()
    network.freeze(text_layers=1, backbone_stages=2)
    network.freeze(backbone_stages=1)
    frozen = {n for n, p in network.named_parameters() if not p.requires_grad} - {
        n for n, p in tiny_model().named_parameters() if not p.requires_grad
    }
    assert frozen == {n for n, _ in network.named_parameters() if n.startswith("backbone.patch_embed.")}
    assert network.text_encoder.embeddings.training and not network.backbone.patch_embed.training


def matching(config, logits, no_object):
    """The anchor that a box of token 0 is matched with, of two with equal boxes."""
    anchors = torch.tensor([[10.0, 10.0, 60.0, 60.0]] * 2)
    label = {"boxes": anchors[:1], "positive_map": torch.tensor([[1, 0]])}
    targets = collect_targets([label], 2, anchors.device)
    mask = torch.ones(1, 2, dtype=torch.long)
    matched = assign(config, anchors, [2], targets, logits, torch.zeros(1, 2, 4), no_object, mask)
    return (matched[0] >= 0).nonzero().flatten().tolist()


def test_matching_costs_are_of_the_losses_kind():
    """The first anchor's score is higher, but its other token's much more: under softmax it is no match."""
    logits, no_object = torch.tensor([[[2.0, 9.0], [1.0, -5.0]]]), torch.tensor([[0.0, 0.0]])
    exclusive = tiny_config(assigner="hungarian", alignment_loss="cross_entropy")
    assert matching(exclusive, logits, no_object) == [1]
    assert matching(tiny_config(assigner="hungarian"), logits, None) == [0]


def test_masked_tokens_take_no_probability_in_the_matching():
    config = tiny_config(assigner="hungarian", alignment_loss="cross_entropy")
    anchors = torch.tensor([[10.0, 10.0, 60.0, 60.0]] * 2)
    targets = collect_targets([{"boxes": anchors[:1], "positive_map": torch.tensor([[1, 0]])}], 2, anchors.device)
    logits, no_object = torch.tensor([[[2.0, 9.0], [1.0, -5.0]]]), torch.zeros(1, 2)
    mask = torch.tensor([[1, 0]])
    matched = assign(config, anchors, [2], targets, logits, torch.zeros(1, 2, 4), no_object, mask)
    assert (matched[0] >= 0).tolist() == [True, False]


def test_one_to_one_matching_takes_the_cheapest_pairs():
    predicted = torch.tensor([[[0.0, 0, 10, 10], [50.0, 50, 90, 90], [0, 0, 11, 10]]])
    boxes = torch.tensor([[50.0, 50, 90, 90], [0, 0, 10, 10]])
    targets = collect_targets([{"boxes": boxes, "positive_map": torch.eye(2)}], 2, boxes.device)
    matched = hungarian(torch.full((1, 3, 2), 0.5), False, predicted, targets)
    assert matched.tolist() == [[1, 0, -1]]
