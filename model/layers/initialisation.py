"""Initial values by mark: a module names the rule for its linear and convolution layers.

transformers initialises the modules that own parameters, leaves first, so the mark is on the leaf.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from torch import nn
from transformers import initialization as init

M = TypeVar("M", bound=nn.Module)
NORMAL = partial(init.normal_, std=0.01)
KAIMING = partial(init.kaiming_uniform_, a=1)
XAVIER = init.xavier_uniform_


def logit(probability: float) -> float:
    """Compute the log odds, the bias that makes a layer begin at a probability."""
    return math.log(probability / (1 - probability))


def initialised(module: M, fill: Callable[..., Any] | None, bias: float = 0.0) -> M:
    """Mark the linear and convolution layers of `module`, itself included; return it.

    fill: function that fills a weight in place; biases become `bias`. None: PyTorch's default for
    both.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.glip_init, layer.glip_bias = fill, bias
    return module


def initialise(layer: nn.Linear | nn.Conv2d) -> None:
    """Fill a layer by its mark, see `initialised`; without one by PyTorch's default."""
    fill = getattr(layer, "glip_init", None)
    (fill or partial(init.kaiming_uniform_, a=5**0.5))(layer.weight)
    if layer.bias is not None:
        bound = layer.weight[0].numel() ** -0.5
        init.constant_(layer.bias, layer.glip_bias) if fill else init.uniform_(layer.bias, -bound, bound)
