"""What a training is, as full tensors by name: weights, optimiser, moving average. The same files for one process, DDP and FSDP2.

Under FSDP2 every process holds a slice of each tensor. All of them must call these functions together; full tensors come out, and
full tensors go in, so that a checkpoint may be resumed on another number of processes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from pipeline.errors import RunError

WEIGHTS, AVERAGE = "model/model.safetensors", "ema.safetensors"


def full(tensor: Tensor) -> Tensor:
    """The whole tensor of which this process may hold a slice."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The slice that this process holds; the tensor itself if it is not sliced."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Copy a full tensor into ``target``, or this process's slice of it."""
    if isinstance(target, DTensor):
        target.copy_(distribute_tensor(value.to(target.device), target.device_mesh, target.placements))
    else:
        target.copy_(value)


def weights(network: nn.Module) -> dict[str, Tensor]:
    """The network's state by name, whole."""
    return {name: full(value.detach()) for name, value in network.state_dict().items()}


def load_weights(network: nn.Module, file: Path) -> None:
    """Put a saved network's tensors into this one.

    Raises:
        RunError: other names than the network has.
    """
    saved, own = load_file(file), network.state_dict()
    if set(saved) != set(own):
        raise RunError(f"{file}: holds other tensors than the network, first {sorted(set(saved) ^ set(own))[0]}")
    for name, value in own.items():
        put(value, saved[name])


class Average:
    """Moving average of a network's parameters: ``decay`` times itself and the rest of them (GLIP spec 11)."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._blend = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
        self._parameters = dict(network.named_parameters())
        self.values = {name: p.detach().clone() for name, p in self._parameters.items()}
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters in; the first time they are the average."""
        mine = [local(v) for v in self.values.values()]
        now = [local(p.detach()) for p in self._parameters.values()]
        if self.updates:
            self._blend(mine, now, self.updates)
        else:
            for average, value in zip(mine, now):
                average.copy_(value)
        self.updates += 1

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """The network's state with averaged parameters, whole."""
        state = network.state_dict()
        return {name: full(self.values.get(name, v).detach()) for name, v in state.items()}

    def load(self, file: Path, updates: int) -> None:
        """Go on from a saved average after so many updates."""
        saved = load_file(file)
        for name, value in self.values.items():
            put(value, saved[name])
        self.updates = updates


def optimizer_state(optimizer: Any, network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """``exp_avg`` and so on -> parameter's name -> tensor, whole, of every parameter that has been stepped."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, parameter in network.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found.setdefault(key, {})[name] = full(value)
    return found


def save_optimizer(moments: dict[str, dict[str, Tensor]], folder: Path) -> None:
    """Write what :func:`optimizer_state` gave, a file a key: several files are hashed side by side."""
    for key, tensors in moments.items():
        save_tensors(tensors, folder / f"optimizer-{key}.safetensors")


def load_optimizer(optimizer: Any, network: nn.Module, folder: Path) -> None:
    """Put a saved optimiser's state into one that has not stepped yet."""
    parameters = dict(network.named_parameters())
    for file in sorted(folder.glob("optimizer-*.safetensors")):
        key = file.stem.removeprefix("optimizer-")
        for name, value in load_file(file).items():
            parameter = parameters[name]
            if value.dim() == 0:
                held: Tensor = value.to(local(parameter).device)
            else:
                held = torch.empty_like(
                    parameter.detach()
                )  # in the parameter's memory format, as the optimiser makes it
                put(held, value)
            optimizer.state[parameter][key] = held


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Write tensors by name as safetensors."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)
