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
from accelerate import Accelerator, ParallelismConfig
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, gather_object
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from pipeline.errors import InputError
from pipeline.system.devices import gpus

PRECISIONS = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}

UNITS = ("SwinBlock", "BertLayer", "GlipFusion", "GlipTextLayer", "DynamicConv")
"""What FSDP2 gathers at a time: modules that are called as such. The head calls the parts of its blocks, never a block."""


class Processes:
    """The processes of a training, and what they do together.

    Raises:
        InputError: FSDP in another version, or at a precision that it does not have.
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
            # accelerate offers FSDP2 on accelerators only, but all of its parts work on CPUs: so they run there as they do on GPUs
            held = self.accelerator.state
            held.distributed_type, held.fsdp_plugin = DistributedType.FSDP, plugin
            if precision != "float32":
                plugin.set_mixed_precision(PRECISIONS[precision])
            # said in full, or the weights of a machine with GPUs would go there
            held.parallelism_config = ParallelismConfig(dp_shard_size=self.count)
            held.device_mesh = held.parallelism_config.get_device_mesh("cpu")

    @property
    def kind(self) -> str:
        """In words, for the log."""
        how = "1 process"
        if self.count > 1:
            how = f"{self.count} processes, {'FSDP2' if self.sharded else 'DDP'}"
        return f"{how}, {self.accelerator.device.type}, {self.precision}"

    def wrap(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """The network and optimiser as the steps use them."""
        if self.sharded:
            present = {type(module).__name__ for module in network.modules()}
            self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = [n for n in UNITS if n in present]
        return self.accelerator.prepare(network, optimizer)

    def forward(self, network: nn.Module, **inputs: Any) -> Any:
        """The network's output at the training's precision. accelerate wraps a network so itself, but not under FSDP2."""
        with self.accelerator.autocast() if self.sharded else contextlib.nullcontext():
            return network(**inputs)

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


def check_device(device: str, precision: str) -> None:
    """Refuse what accelerate would replace in silence.

    Raises:
        InputError: no GPU for ``--device cuda``, or fewer than processes; fp16, whose losses are scaled on GPUs only, on a CPU.
    """
    if device == "cuda":
        count, place = gpus(), int(os.environ.get("LOCAL_RANK", "0"))
        if place >= count:
            raise InputError(f"--device cuda: process {place + 1} of this machine has no GPU, torch finds {count} here")
    elif precision == "fp16":
        raise InputError("precision fp16 on a CPU: want bf16 or float32, or --device cuda")


def _sharding(precision: str) -> FullyShardedDataParallelPlugin | None:
    """What the launcher's options say about FSDP2, None if nothing.

    Weights, gradients and sums of gradients stay float32, as under DDP; autocast alone makes the computation bf16. accelerate's own policy
    would also round the inputs, boxes among them, and lacks the autocast that keeps the sensitive parts in float32.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # nothing to share out, and on a GPU accelerate would try to
        del os.environ["ACCELERATE_USE_FSDP"]
        return None
    # whole weights in every process at first: what transformers' readers give the others otherwise cannot be copied from
    plugin = FullyShardedDataParallelPlugin(auto_wrap_policy="TRANSFORMER_BASED_WRAP", cpu_ram_efficient_loading=False)
    if plugin.fsdp_version != 2:
        raise InputError("FSDP version 1: want version 2, `accelerate launch --use_fsdp --fsdp_version 2`")
    if precision == "fp16":
        raise InputError("precision fp16 under FSDP2: want bf16 or float32")
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return plugin
