"""Count of a network's floating-point operations by the type they are computed in, without computing them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from model import GlipConfig
from pipeline.annotators.memory import autocast, on_fake_cpu, synthetic_inputs, without_memory

aten = torch.ops.aten
PEAKS = {
    "h100": {"bfloat16": 989e12, "float16": 989e12, "float32": 67e12},
    "h200": {"bfloat16": 989e12, "float16": 989e12, "float32": 67e12},
    "a100": {"bfloat16": 312e12, "float16": 312e12, "float32": 19.5e12},
}
"""Card -> FLOPs per second by type, without sparsity and without TF32, from NVIDIA's data sheets (SXM)."""


class FlopsByType(TorchDispatchMode):
    """While active, adds up the multiplications and additions of products, convolutions and sampled sums.

    ``by_type``: FLOPs by the type of the operation's first tensor.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_type = Counter[torch.dtype]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        operator = func._overloadpacket
        if operator in flop_registry:
            flops = flop_registry[operator](*args, **(kwargs or {}), out_val=out)
        elif operator in (aten._embedding_bag, aten._embedding_bag_forward_only):
            table, rows = args[:2]
            flops = 2 * rows.numel() * table.shape[1]
        elif str(operator) == "torchvision.deform_conv2d":  # registered when torchvision is imported
            flops = 2 * args[1].numel() * out.shape[0] * out.shape[2] * out.shape[3]
        else:
            return out
        self.by_type[next(x for x in tree_leaves(args) if isinstance(x, torch.Tensor)).dtype] += int(flops)
        return out


def labelling_flops(config: GlipConfig, size: tuple[int, int], tokens: int, precision: str) -> dict[str, int]:
    """FLOPs of one image of ``size`` (height, width) with a text of ``tokens``: "float32" or "bfloat16" -> number."""
    network = without_memory(config).eval()
    with FakeTensorMode(), FlopsByType() as flops:
        on_fake_cpu(network)
        with torch.no_grad(), autocast("cpu", precision):
            network(**synthetic_inputs(config, 1, size, "cpu", tokens))
    return {str(kind).removeprefix("torch."): count for kind, count in flops.by_type.items()}


def peaks_of(card: str) -> dict[str, float] | None:
    """PEAKS of a card by its full name, such as "NVIDIA H100 80GB HBM3"; None if they are not known."""
    return next((peaks for name, peaks in PEAKS.items() if name in card.lower()), None)


def least_seconds(flops: Mapping[str, int], peaks: Mapping[str, float]) -> float:
    """Seconds of a card that does nothing but these FLOPs, each type at its peak."""
    return sum(count / peaks[kind] for kind, count in flops.items())
