"""One process, DDP or FSDP2: what differs between them, in one place.

Gradients are means over processes. The network's losses are normalised by counts that it averages over processes itself (GLIP spec 7),
so the mean is the loss of the whole batch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from pipeline.errors import InputError

PRECISIONS = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}

UNITS = ("SwinBlock", "BertLayer", "GlipFusion", "GlipTextLayer", "DynamicConv")
"""What FSDP2 gathers at a time: modules that are called as such. The head calls the parts of its blocks, never a block."""


class Processes:
    """The processes of a training, and what they do together."""

    def __init__(self, *, device: str, precision: str, tracker: str | None, folder: str) -> None:
        self.accelerator = Accelerator(
            cpu=device == "cpu", mixed_precision=PRECISIONS[precision], log_with=tracker, project_dir=folder
        )
        self.count, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.main = self.accelerator.is_main_process
        self.sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and self.count > 1
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if self.sharded and plugin is not None and plugin.fsdp_version != 2:
            raise InputError("FSDP version 1: want version 2, `accelerate launch --use_fsdp --fsdp_version 2`")
        if self.sharded and precision == "fp16":
            raise InputError("precision fp16 under FSDP2: want bf16 or float32")

    @property
    def kind(self) -> str:
        """In words, for the log."""
        if self.count == 1:
            return "1 process"
        return f"{self.count} processes, {'FSDP2' if self.sharded else 'DDP'}"

    def wrap(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """The network and optimiser as the steps use them."""
        if self.sharded and self.accelerator.distributed_type != DistributedType.FSDP:
            _shard_on_cpu(network, optimizer)  # accelerate shards on accelerators only
            return network, self.accelerator.prepare(optimizer)
        if self.sharded:
            present = {type(module).__name__ for module in network.modules()}
            self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = [n for n in UNITS if n in present]
        return self.accelerator.prepare(network, optimizer)

    @contextlib.contextmanager
    def gradients_stay_here(self, network: nn.Module, yes: bool) -> Any:
        """While ``yes``, backward adds gradients up in each process; otherwise it averages them over processes."""
        if isinstance(network, FSDPModule):
            network.set_requires_gradient_sync(not yes)
            yield
        elif yes and self.count > 1:
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
        """Means over processes of figures that all have under the same names."""
        if self.count == 1:
            return dict(values)
        vector = torch.tensor(list(values.values()), dtype=torch.float64, device=self.accelerator.device)
        return dict(zip(values, self.accelerator.reduce(vector, "mean").tolist(), strict=True))

    def total(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Sums over processes of counts by name; a name may be missing in some."""
        found: dict[str, int] = {}
        for each in self._all(dict(counts)):
            for name, n in each.items():
                found[name] = found.get(name, 0) + n
        return found

    def from_main(self, value: Any) -> Any:
        """The main process's value, in every process."""
        return self._all(value)[0]

    def _all(self, value: Any) -> list[Any]:
        return list(gather_object([value])) if self.count > 1 else [value]

    def wait(self) -> None:
        """Until every process is here."""
        self.accelerator.wait_for_everyone()

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> float:
        """Scale gradients so that their norm is ``limit`` at most; returns the norm before."""
        norm = self.accelerator.clip_grad_norm_([p for p in parameters if p.requires_grad], limit)
        whole = getattr(norm, "full_tensor", None)
        return float(norm if whole is None else whole())


def _shard_on_cpu(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """FSDP2 over all processes by UNITS, as accelerate does it on accelerators."""
    names = {id(p): n for n, p in network.named_parameters()}
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for module in [m for m in network.modules() if type(m).__name__ in UNITS]:
        fully_shard(module, mesh=mesh)
    fully_shard(network, mesh=mesh)
    sliced = dict(network.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [sliced[names[id(p)]] for p in group["params"]]
