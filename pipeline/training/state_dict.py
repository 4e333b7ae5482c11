"""Weights, optimiser state and moving average as full tensors, for one process, DDP and FSDP2.

Under FSDP2 every process holds a shard of each tensor, and all processes must call these functions
together. They return and take full tensors, so that a checkpoint can be resumed on another number
of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from pipeline.errors import RunError

WEIGHTS, AVERAGE = "model/model.safetensors", "ema.safetensors"


def full(tensor: Tensor) -> Tensor:
    """The full tensor, gathered if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's shard of the tensor; the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_full(target: Tensor, value: Tensor) -> None:
    """Copy a full tensor into ``target``, or this process's shard of it."""
    if isinstance(target, DTensor):
        target.copy_(distribute_tensor(value.to(target.device), target.device_mesh, target.placements))
    else:
        target.copy_(value)


def weights(network: nn.Module, average: Mapping[str, Tensor] = MappingProxyType({})) -> dict[str, Tensor]:
    """The network's state as full tensors by name, with the parameters of ``average`` if given."""
    return {name: full(average.get(name, value).detach()) for name, value in network.state_dict().items()}


def load_weights(network: nn.Module, file: Path) -> None:
    """Load a saved network's tensors into this one.

    Raises:
        RunError: the names differ from the network's.
    """
    saved, own = load_file(file), network.state_dict()
    if set(saved) != set(own):
        raise RunError(f"{file}: holds other tensors than the network, first {sorted(set(saved) ^ set(own))[0]}")
    for name, value in own.items():
        copy_full(value, saved[name])


class Average:
    """Exponential moving average of a network's parameters (GLIP spec 11)."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._blend = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
        self._parameters = dict(network.named_parameters())
        self.values = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the present parameters; the first update copies them."""
        averages = [local(v) for v in self.values.values()]
        parameters = [local(p.detach()) for p in self._parameters.values()]
        if self.updates:
            self._blend(averages, parameters, self.updates)
        else:
            for average, value in zip(averages, parameters):
                average.copy_(value)
        self.updates += 1

    def load(self, file: Path, updates: int) -> None:
        """Restore a saved average and its number of updates."""
        saved = load_file(file)
        for name, value in self.values.items():
            copy_full(value, saved[name])
        self.updates = updates


def optimizer_state(optimizer: Any, network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """State key ("exp_avg", ...) -> parameter name -> full tensor, of stepped parameters."""
    state: dict[str, dict[str, Tensor]] = {}
    for name, parameter in network.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            state.setdefault(key, {})[name] = full(value)
    return state


def save_optimizer(moments: dict[str, dict[str, Tensor]], folder: Path) -> None:
    """Write the state of :func:`optimizer_state`, a file for each key, to hash them in parallel."""
    for key, tensors in moments.items():
        save_tensors(tensors, folder / f"optimizer-{key}.safetensors")


def load_optimizer(optimizer: Any, network: nn.Module, folder: Path) -> None:
    """Load a saved optimiser state into an optimiser that has not stepped yet."""
    parameters = dict(network.named_parameters())
    for file in sorted(folder.glob("optimizer-*.safetensors")):
        key = file.stem.removeprefix("optimizer-")
        for name, value in load_file(file).items():
            parameter = parameters[name]
            if value.dim() == 0:
                restored: Tensor = value.to(local(parameter).device)
            else:  # in the parameter's memory format, as the optimiser allocates it
                restored = torch.empty_like(parameter.detach())
                copy_full(restored, value)
            optimizer.state[parameter][key] = restored


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Write tensors by name as safetensors."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)
