"""Memory that a GLIP network takes for a batch, found without allocating it.

The network runs on fake tensors, which have shapes and no values; the storages that are alive at a
time are summed up.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from model import GlipConfig, GlipForObjectDetection
from model.losses import focal_terms
from pipeline.annotators.oom import out_of_memory
from pipeline.errors import InputError
from pipeline.system.memory import available_memory

log = logging.getLogger("glip_self_train")
GIB = 2**30
BASE = 768 << 20
"""Bytes of a process with torch and the libraries, without a network."""
MARGIN = 1.1
"""Factor of the activations: the backward pass takes a little more than is alive before it."""
SCREEN = 4.0
"""An estimate takes seconds, so none is made where even SCREEN times a rough one fits. The rough
one: sqrt(parameters) bytes a pixel, which is about GLIP-T's."""
WARN_SHARE = 0.8
"""Share of the available memory from which a warning is logged."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes for a batch. fixed: of any size, with gradients, which are there while more are accumulated;
    per_image: of the forward pass.
    """

    fixed: int
    per_image: int

    def of(self, images: int) -> int:
        """Bytes for a batch of ``images``."""
        return self.fixed + math.ceil(MARGIN * images * self.per_image)

    def most(self, available: int) -> int:
        """Number of images in the largest batch that fits; may be 0."""
        return max(0, int((available - self.fixed) / (MARGIN * self.per_image)))


class _Live(TorchDispatchMode):
    """Bytes of the storages that are alive, and the most that were at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._count, result)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known[storage._cdata] = storage
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, size: int) -> None:
        self.now -= size


def estimate(
    config: GlipConfig,
    size: tuple[int, int],
    *,
    training: bool,
    precision: str,
    checkpointing: bool = False,
    averaged: bool = False,
) -> MemoryNeed:
    """Memory on a CPU for images of ``size`` (height, width) with texts of full length.

    checkpointing: of gradients; averaged: the training keeps an average of the weights.
    """
    network = without_memory(config)
    weights = _bytes(network)
    with FakeTensorMode(), _Live() as live:
        on_fake_cpu(network)
        network.train(training)
        if checkpointing:
            network.gradient_checkpointing_enable({"use_reentrant": False})
        before = live.now
        with torch.set_grad_enabled(training), autocast("cpu", precision):
            output = network(**synthetic_inputs(config, 1, size, "cpu"))
            if training:
                _loss(output)
        per_image = live.peak - before
    copies = 1 + (3 + averaged) * training  # gradients and AdamW's moments
    return MemoryNeed(BASE + copies * weights, per_image)


def without_memory(config: GlipConfig) -> GlipForObjectDetection:
    """Build a network without values, on torch's device "meta"."""
    with torch.device("meta"):
        return GlipForObjectDetection(config)


def on_fake_cpu(network: GlipForObjectDetection) -> None:
    """Move a network of :func:`without_memory` to the CPU of the active FakeTensorMode."""
    network._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device="cpu"))


def _bytes(network: GlipForObjectDetection) -> int:
    return 4 * sum(parameter.numel() for parameter in network.parameters())


def synthetic_inputs(
    config: GlipConfig, images: int, size: tuple[int, int], device: str, tokens: int | None = None
) -> dict[str, torch.Tensor]:
    """Inputs of the network without content, with texts of ``tokens``; None: of full length."""
    ids = torch.ones(images, tokens or config.max_text_length, dtype=torch.long, device=device)
    return {
        "pixel_values": torch.zeros(images, 3, *size, device=device),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "image_sizes": torch.tensor([size] * images, device=device),
    }


def autocast(device: str, precision: str) -> torch.autocast:
    """The context in which a network computes at a precision of the settings."""
    kind = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device, kind, enabled=precision != "float32")


def _loss(output: Any) -> torch.Tensor:
    """A loss of the size of GLIP's, without labels and without sums over processes."""
    logits = output.logits.float()
    terms = focal_terms(logits, torch.zeros_like(logits), 0.25, 2.0).sum()
    loss: torch.Tensor = terms + output.box_deltas.float().sum()
    return loss if output.centerness is None else loss + output.centerness.float().sum()


def check_cpu_memory(
    config: GlipConfig,
    size: tuple[int, int],
    images: int,
    *,
    advice: Callable[[int], str],
    processes: int = 1,
    available: int | None = None,
    loaded: int = 0,
    **settings: Any,
) -> None:
    """Refuse a batch that the machine's memory cannot hold, before the kernel kills the process.

    Args:
        images: in the batch of each of ``processes`` on this machine.
        advice: called with the number of images that would fit; returns the options to set.
        available: bytes; default: :func:`pipeline.system.memory.available_memory`.
        loaded: bytes of the weights, if they are in memory already.
        settings: of :func:`estimate`.

    Raises:
        InputError: the estimate is beyond what is available.
    """
    available = available_memory() if available is None else available
    if available is None:
        return
    if config.head != "dynamic":
        return  # a two-stage head's proposals depend on the content, which an estimate has not
    weights, share = _bytes(without_memory(config)), available // processes + loaded
    rough = 4 * weights + images * size[0] * size[1] * math.sqrt(weights / 4)
    if SCREEN * rough < share:
        return
    need = estimate(config, size, **settings)
    text = (
        f"{images} images of {size[0]}x{size[1]} in a batch need about {need.of(images) / GIB:.1f} GiB of memory"
        f"{' in each process' if processes > 1 else ''}; found {share / GIB:.1f} GiB available"
    )
    if need.of(images) > share:
        raise InputError(f"{text}; want {advice(need.most(share))}")
    if need.of(images) > WARN_SHARE * share:
        log.warning("%s", text)


def dry_step(network: GlipForObjectDetection, size: tuple[int, int], images: int, precision: str) -> bool:
    """Whether two forward and backward passes of a batch fit beside the moments of AdamW.

    Two, as gradients are there while more are accumulated.

    Run on the network's device, before it is wrapped for several processes. Leaves no gradient.
    """
    device = next(network.parameters()).device.type
    config: Any = network.config
    trained = [p for p in network.parameters() if p.requires_grad]
    fits, was_training = True, network.training
    network.train()  # gradients are checkpointed in training only
    try:
        moments = [torch.empty_like(p) for p in trained for _ in range(2)]
        for _ in range(2):
            with autocast(device, precision):
                output = network(**synthetic_inputs(config, images, size, device))
            _loss(output).backward()
        del moments, output
    except Exception as error:
        if not out_of_memory(error):
            raise
        fits = False  # outside the handler the error, which holds the failed pass's memory, is gone
    network.train(was_training)
    network.zero_grad(set_to_none=True)
    if device == "cuda":
        torch.cuda.empty_cache()
    return fits
