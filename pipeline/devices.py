"""Which device a process computes on; torch is imported only when a GPU is asked for."""

from __future__ import annotations

from pipeline.errors import InputError


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
