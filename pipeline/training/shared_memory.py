"""Memory shared with the loader's workers, in which a batch's images reach the training without being copied.

torch sends every tensor in a file of shared memory of its own, which the kernel makes, fills with zeros and takes apart again: for
images that costs nearly as much as decoding them. Here a worker has a few places that it writes its batches into, one after the other;
a place is free again when the last tensor on it is gone.
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
    """``each`` places of ``size`` bytes for every worker of one loader; only what is written to takes memory."""

    def __init__(self, workers: int, each: int, size: int) -> None:
        self._each, self._size = each, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._taken = mmap.mmap(-1, workers * each)
        self._memory = mmap.mmap(-1, workers * each * self._size)
        self.number = next(_NUMBERS)
        _OF_THIS_PROCESS[self.number] = self

    def take(self, shape: Shape) -> Filled | None:
        """In a worker: a free place for bytes of that shape; None if there is none, or none so large."""
        worker = get_worker_info()
        if worker is None or math.prod(shape) > self._size:
            return None
        for place in range(worker.id * self._each, (worker.id + 1) * self._each):
            if not self._taken[place]:
                self._taken[place] = 1
                return Filled(self.number, place, shape)
        return None

    def array(self, place: int, shape: Shape) -> np.ndarray:
        """The bytes at a place, whatever they are."""
        return np.ndarray(shape, np.uint8, self._memory, place * self._size)

    def give_back(self, place: int) -> None:
        """Let the worker have a place again."""
        self._taken[place] = 0


@dataclass(frozen=True)
class Filled:
    """Bytes at a place, as they are named between processes."""

    slots: int
    place: int
    shape: Shape

    def array(self) -> np.ndarray:
        """In the worker, to write to."""
        return _OF_THIS_PROCESS[self.slots].array(self.place, self.shape)

    def tensor(self) -> torch.Tensor:
        """In the process that trains, once: the place is given back with the last tensor that lies on it."""
        slots = _OF_THIS_PROCESS[self.slots]
        array = slots.array(self.place, self.shape)
        weakref.finalize(array, slots.give_back, self.place).atexit = False
        return torch.from_numpy(array)

    def pin_memory(self) -> torch.Tensor:
        """What the loader's thread for page-locked memory asks of a type that it does not know."""
        return self.tensor().pin_memory()


def slots_for(workers: int, each: int, size: int) -> SharedBuffers | None:
    """Places for a loader, or None where memory cannot be shared so: without workers, or with such that are not forked."""
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if workers == 0 or method != "fork":
        return None
    try:
        return SharedBuffers(workers, each, size)
    except (OSError, ValueError, OverflowError):  # more than this machine promises to anyone
        return None
