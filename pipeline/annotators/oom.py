"""Retry of a forward pass that ran out of memory, on halves of its batch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

In = TypeVar("In")
Out = TypeVar("Out")

log = logging.getLogger("glip_self_train")


def out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of a GPU's or the machine's memory."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


class OomRetryBatcher(Generic[In, Out]):
    """Runs a forward pass on a batch, or on its halves if it does not fit.

    ``most``: the number of its ``unit`` that did fit; None: no limit was met.
    """

    def __init__(
        self, forward: Callable[[In], list[Out]], count: Callable[[In], int], part: Callable[[In, slice], In], unit: str
    ) -> None:
        self._forward, self._count, self._part, self._unit = forward, count, part, unit
        self.most: int | None = None

    def __call__(self, batch: In) -> list[Out]:
        """The forward pass's results for the batch, or for its parts in order.

        Raises:
            Exception: of the forward pass, when a single one does not fit.
        """
        count = self._count(batch)
        if self.most is None or count <= self.most:
            try:
                return self._forward(batch)
            except Exception as error:
                if count == 1 or not out_of_memory(error):
                    raise
            self.most = max(1, count // 2)  # outside the handler: the error holds the failed pass's memory
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            log.warning("out of memory with %d %s in a batch: continuing with %d", count, self._unit, self.most)
        results: list[Out] = []
        step = self.most  # a part may not fit either, and lower it
        for start in range(0, count, step):
            results += self(self._part(batch, slice(start, start + step)))
        return results
