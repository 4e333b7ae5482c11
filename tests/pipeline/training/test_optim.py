"""Rates, decay and schedule of the released recipe (GLIP spec 11)."""

import pytest
import torch
from torch import nn

from pipeline.config import TrainConfig
from pipeline.training.optim import make_optimizer, parameter_groups, rate_factor, set_rates


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(3))
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)


def test_groups_by_name():
    config = TrainConfig(learning_rate=1e-4, text_learning_rate=1e-5, weight_decay=0.05)
    net = Net()
    found = {id(p): (g["lr"], g["weight_decay"]) for g in parameter_groups(net, config) for p in g["params"]}
    assert found[id(net.text_encoder.weight)] == (1e-5, 0.05)
    assert found[id(net.text_encoder.bias)] == (2e-5, 0.0)
    assert found[id(net.head.weight)] == (1e-4, 0.05)
    assert found[id(net.head.bias)] == found[id(net.relative_position_bias_table)] == (2e-4, 0.0)
    assert id(net.frozen) not in found


def test_step_schedule_with_warm_up():
    config = TrainConfig(steps=1000, warmup_steps=100)
    assert rate_factor(0, config) == pytest.approx(0.001)
    assert rate_factor(50, config) == pytest.approx(0.5005)
    assert rate_factor(100, config) == rate_factor(669, config) == 1.0
    assert rate_factor(670, config) == pytest.approx(0.1)
    assert rate_factor(890, config) == pytest.approx(0.01)


def test_cosine_ends_at_nothing_and_rates_follow():
    config = TrainConfig(steps=100, warmup_steps=0, schedule="cosine")
    assert rate_factor(0, config) == 1.0 and rate_factor(50, config) == pytest.approx(0.5)
    optimizer = make_optimizer(Net(), config)
    set_rates(optimizer, 50, config)
    assert sorted(g["lr"] for g in optimizer.param_groups) == pytest.approx([5e-6, 1e-5, 5e-5, 1e-4])
