"""Assignment of CPU cores and GPUs to processes. Imports torch only when a GPU is requested."""

from __future__ import annotations

import os
import sys

from pipeline.errors import InputError

MAX_DECODERS = 8
"""Upper bound of the default number of image-decoding threads per process."""


def cores() -> int:
    """Number of cores available to this process; under Slurm or taskset fewer than the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def is_device_lost(error: BaseException) -> bool:
    """Whether the GPU has failed; the process must exit, as every further shard would fail."""
    torch = sys.modules.get("torch")  # the error is torch's only if torch is imported
    return (
        torch is not None
        and isinstance(error, torch.AcceleratorError)
        and not isinstance(error, torch.cuda.OutOfMemoryError)
    )


def gpus() -> int:
    """Number of GPUs visible to torch.

    Raises:
        InputError: no GPU is visible.
    """
    import torch

    count = torch.cuda.device_count()
    if not count:
        raise InputError(
            "--device cuda: torch finds no GPU here; want --device cpu, or a driver and a CUDA build of torch"
        )
    return count


def devices_of(device: str, processes: int | None) -> list[str]:
    """Device of each process, GPUs round-robin. Default: a process per GPU, or one on the CPU.

    Raises:
        InputError: ``device`` is "cuda" and no GPU is visible.
    """
    if device != "cuda":
        return [device] * (processes or 1)
    count = gpus()
    return [f"cuda:{i % count}" for i in range(processes or count)]


def resolved_precision(precision: str, device: str) -> str:
    """Return ``precision`` or, of "auto", bf16 on a GPU that computes in it and float32 elsewhere."""
    if precision != "auto":
        return precision
    if device == "cpu":
        return "float32"
    import torch

    native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "float32"


def limit_torch_threads(threads: int | None) -> None:
    """Set the CPU threads of torch's operators in this process; None leaves them."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
