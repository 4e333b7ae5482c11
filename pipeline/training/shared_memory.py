"""Reusable shared-memory buffers through which DataLoader workers pass images without copying them.

torch creates a shared-memory file for every tensor, which the kernel zero-fills and later unmaps:
for images that costs nearly as much as decoding them. Here a worker writes its batches into a few
buffers in turn; a buffer is free again once the last tensor on it is garbage-collected.
"""

from __future__ import annotations

import itertools
import math
import mmap
import multiprocessing
import weakref
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import get_worker_info

Shape = tuple[int, ...]
_NUMBERS = itertools.count()
_OF_THIS_PROCESS: weakref.WeakValueDictionary[int, SharedBuffers] = weakref.WeakValueDictionary()


class SharedBuffers:
    """``per_worker`` buffers of ``size`` bytes for each worker of a loader, allocated lazily."""

    def __init__(self, workers: int, per_worker: int, size: int) -> None:
        self._per_worker, self._size = per_worker, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._in_use = mmap.mmap(-1, workers * per_worker)
        self._memory = mmap.mmap(-1, workers * per_worker * self._size)
        self.number = next(_NUMBERS)
        _OF_THIS_PROCESS[self.number] = self

    def acquire(self, shape: Shape) -> BufferHandle | None:
        """In a worker: a free buffer for a uint8 array; None if all are in use or too small."""
        worker = get_worker_info()
        if worker is None or math.prod(shape) > self._size:
            return None
        for index in range(worker.id * self._per_worker, (worker.id + 1) * self._per_worker):
            if not self._in_use[index]:
                self._in_use[index] = 1
                return BufferHandle(self.number, index, shape)
        return None

    def array(self, index: int, shape: Shape) -> np.ndarray:
        """A uint8 array on a buffer, uninitialised."""
        return np.ndarray(shape, np.uint8, self._memory, index * self._size)

    def release(self, index: int) -> None:
        """Mark a buffer as free."""
        self._in_use[index] = 0


@dataclass(frozen=True)
class BufferHandle:
    """Picklable reference to an array in the SharedBuffers of a process and its workers."""

    buffers: int
    index: int
    shape: Shape

    def array(self) -> np.ndarray:
        """The array, for the worker to write to."""
        return _OF_THIS_PROCESS[self.buffers].array(self.index, self.shape)

    def tensor(self) -> torch.Tensor:
        """In the training process, once: the tensor; garbage collection releases the buffer."""
        buffers = _OF_THIS_PROCESS[self.buffers]
        array = buffers.array(self.index, self.shape)
        weakref.finalize(array, buffers.release, self.index).atexit = False
        return torch.from_numpy(array)

    def pin_memory(self) -> torch.Tensor:
        """Page-locked copy; called by the DataLoader's pin-memory thread."""
        return self.tensor().pin_memory()


def make_buffers(workers: int, per_worker: int, size: int) -> SharedBuffers | None:
    """Buffers for a loader; None without forked workers or enough address space."""
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if workers == 0 or method != "fork":
        return None
    try:
        return SharedBuffers(workers, per_worker, size)
    except (OSError, ValueError, OverflowError):  # more address space than the system grants
        return None
