"""Differences between training in one process, with DDP and with FSDP2.

Gradients are averaged over processes. The network normalises its losses by counts that it averages
over processes itself (GLIP spec 7), so the mean is the loss of the whole batch.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator, ParallelismConfig
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, gather_object
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from pipeline.errors import InputError
from pipeline.system.compiling import CompileMode, compiled
from pipeline.system.devices import gpus
from pipeline.training.state_dict import full

PRECISIONS = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}

UNITS = ("SwinBlock", "BertLayer", "GlipFusion", "GlipTextLayer", "DynamicConv")
"""Modules that FSDP2 gathers as units. None is a block of the head: only its parts are called."""


COMPILED = ("BertLayer", "GlipFusion", "GlipTextLayer", "SwinMlp")
"""Modules that a compiled training computes compiled: those that need one variant for all sizes."""


def compile_units(network: nn.Module, mode: CompileMode) -> None:
    """Have a network's COMPILED modules computed by torch.compile; its parameters keep their names."""
    for module in network.modules() if mode != "off" else ():
        if type(module).__name__ in COMPILED:
            module.forward = compiled(module.forward, mode, "training", dynamic=True)


class Processes:
    """The processes of a training and their collective operations.

    Raises:
        InputError: FSDP version 1, or fp16 under FSDP2.
    """

    def __init__(self, *, device: str, precision: str, tracker: str | None, folder: str) -> None:
        plugin = _sharding(precision)
        self.accelerator = Accelerator(
            cpu=device == "cpu", mixed_precision=PRECISIONS[precision], log_with=tracker, project_dir=folder,
            fsdp_plugin=plugin,
        )  # fmt: skip
        self.count, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.main = self.accelerator.is_main_process
        self.sharded, self.precision = plugin is not None and self.count > 1, precision
        if plugin is not None and self.sharded and self.accelerator.distributed_type != DistributedType.FSDP:
            # accelerate enables FSDP2 on GPUs only, but its parts work on CPUs too
            state = self.accelerator.state
            state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
            if precision != "float32":
                plugin.set_mixed_precision(PRECISIONS[precision])
            # explicit, or the weights would be moved to GPUs if the machine has any
            state.parallelism_config = ParallelismConfig(dp_shard_size=self.count)
            state.device_mesh = state.parallelism_config.get_device_mesh("cpu")

    @property
    def description(self) -> str:
        """Number and kind of processes, device and precision, for the log."""
        processes = "1 process"
        if self.count > 1:
            processes = f"{self.count} processes, {'FSDP2' if self.sharded else 'DDP'}"
        return f"{processes}, {self.accelerator.device.type}, {self.precision}"

    def wrap(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """The network and optimiser prepared by accelerate for training steps."""
        if self.sharded:
            present = {type(module).__name__ for module in network.modules()}
            self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = [n for n in UNITS if n in present]
        model, prepared = self.accelerator.prepare(network, optimizer)
        return model, prepared

    def forward(self, network: nn.Module, **inputs: Any) -> Any:
        """The network's output at the training's precision, under FSDP2 too."""
        with self.accelerator.autocast() if self.sharded else contextlib.nullcontext():
            return network(**inputs)

    @contextlib.contextmanager
    def gradient_sync(self, network: nn.Module, sync: bool) -> Iterator[None]:
        """Average gradients over processes in backward if ``sync``; else accumulate locally."""
        if isinstance(network, FSDPModule):
            network.set_requires_gradient_sync(sync)
            yield
        elif not sync and self.count > 1:
            with self.accelerator.no_sync(network):
                yield
        else:
            yield

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum") > 0)

    def means(self, values: Mapping[str, float]) -> dict[str, float]:
        """Means over processes of values by name; all processes must have the same names."""
        if self.count == 1:
            return dict(values)
        vector = torch.tensor(list(values.values()), dtype=torch.float64, device=self.accelerator.device)
        return dict(zip(values, self.accelerator.reduce(vector, "mean").tolist(), strict=True))

    def total(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Sums over processes of counts by name; a name may be missing in some processes."""
        sums = Counter[str]()
        for process_counts in gather_object([dict(counts)]):
            sums.update(process_counts)
        return sums

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> float:
        """Scale gradients so that their norm is at most ``limit``; returns the norm before."""
        return float(full(self.accelerator.clip_grad_norm_([p for p in parameters if p.requires_grad], limit)))


def check_device(device: str, precision: str) -> None:
    """Check for what accelerate would replace silently.

    Raises:
        InputError: ``--device cuda`` with fewer GPUs than processes; fp16 on a CPU, as losses are
            scaled on GPUs only.
    """
    if device == "cuda":
        count, rank = gpus(), int(os.environ.get("LOCAL_RANK", "0"))
        if rank >= count:
            raise InputError(f"--device cuda: process {rank + 1} of this machine has no GPU, torch finds {count} here")
    elif precision == "fp16":
        raise InputError("precision fp16 on a CPU: want bf16 or float32, or --device cuda")


def _sharding(precision: str) -> FullyShardedDataParallelPlugin | None:
    """FSDP2 as set by the launcher's environment; None if it is not enabled.

    Weights, gradients and their sums stay float32, as under DDP; autocast alone computes in bf16.
    accelerate's own policy would also round the inputs, boxes included, and lacks the autocast that
    keeps sensitive operations in float32.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # nothing to shard, and on a GPU accelerate would try to
        del os.environ["ACCELERATE_USE_FSDP"]
        return None
    # full weights in every process at first: otherwise transformers loads meta tensors, which cannot be copied
    plugin = FullyShardedDataParallelPlugin(auto_wrap_policy="TRANSFORMER_BASED_WRAP", cpu_ram_efficient_loading=False)
    if plugin.fsdp_version != 2:
        raise InputError("FSDP version 1: want version 2, `accelerate launch --use_fsdp --fsdp_version 2`")
    if precision == "fp16":
        raise InputError("precision fp16 under FSDP2: want bf16 or float32")
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return plugin
