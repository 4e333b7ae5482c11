"""Which device a process computes on; torch is imported only when a GPU is asked for."""

from __future__ import annotations

import os
import sys

from pipeline.errors import InputError


def cores() -> int:
    """How many cores this process may use, which under Slurm or taskset are fewer than the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def is_device_lost(error: BaseException) -> bool:
    """Whether a GPU broke down, so that nothing else can go through this process. To go on would fail all that is left, quickly."""
    torch = sys.modules.get("torch")  # an error of torch's comes from where it was imported
    return (
        torch is not None
        and isinstance(error, torch.AcceleratorError)
        and not isinstance(error, torch.cuda.OutOfMemoryError)
    )


def gpus() -> int:
    """How many GPUs torch finds here.

    Raises:
        InputError: none.
    """
    import torch

    count = torch.cuda.device_count()
    if not count:
        raise InputError(
            "--device cuda: torch finds no GPU here; want --device cpu, or a driver and a CUDA build of torch"
        )
    return count


def devices_of(device: str, processes: int | None) -> list[str]:
    """The device of each process: GPUs in turn, or the CPU.

    Raises:
        InputError: no GPU for ``cuda``.
    """
    if device != "cuda":
        return [device] * (processes or 1)
    count = gpus()
    return [f"cuda:{i % count}" for i in range(processes or count)]


def limit_torch_threads(threads: int | None) -> None:
    """Set the CPU threads of torch's operators in this process; None leaves them."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
