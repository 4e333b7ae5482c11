"""Initial values by mark: a module names the rule for its linear and convolution layers.

transformers initialises the modules that own parameters, leaves first, so the mark is on the leaf.
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from transformers import initialization as init

M = TypeVar("M", bound=nn.Module)


def initialised(module: M, rule: str, std: float = 0.02) -> M:
    """Mark the linear and convolution layers of `module`, itself included, with `rule`; return it.

    rule: "trunc_normal" with `std`, "normal" 0.01, "xavier", "kaiming" (a = 1) or "default"
    (PyTorch's).
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.glip_init, layer.glip_init_std = rule, std
    return module


def initialise(layer: nn.Linear | nn.Conv2d) -> None:
    """Fill a layer by its mark, see `initialised`; without a mark by PyTorch's default."""
    rule = getattr(layer, "glip_init", "default")
    if rule == "trunc_normal":
        init.trunc_normal_(layer.weight, std=layer.glip_init_std)
    elif rule == "normal":
        init.normal_(layer.weight, std=0.01)
    elif rule == "xavier":
        init.xavier_uniform_(layer.weight)
    elif rule == "kaiming":
        init.kaiming_uniform_(layer.weight, a=1)
    elif rule == "default":
        init.kaiming_uniform_(layer.weight, a=5**0.5)
    else:
        raise ValueError(f"unknown initialisation rule {rule!r}")
    if layer.bias is not None:
        if rule == "default":
            bound = layer.weight[0].numel() ** -0.5
            init.uniform_(layer.bias, -bound, bound)
        else:
            init.zeros_(layer.bias)
