"""A batch that does not fit the memory is halved, and larger ones of its kind are not tried again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from pipeline.annotators.base import Annotations, Annotator, Batch

log = logging.getLogger("glip_self_train")


def out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of a GPU's or the machine's memory."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


class Halving:
    """Runs a forward pass on a batch, or on its halves if it does not fit; remembers how many images did."""

    def __init__(self, annotator: Annotator, forward: Callable[[Batch], list[Annotations]]) -> None:
        self._annotator, self._forward = annotator, forward
        self._most: int | None = None

    def __call__(self, batch: Batch) -> list[Annotations]:
        """The regions of every question of the batch.

        Raises:
            what the forward pass raises when a single image does not fit.
        """
        count = len(batch.images)
        if self._most is None or count <= self._most:
            try:
                return self._forward(batch)
            except Exception as error:
                if count == 1 or not out_of_memory(error):
                    raise
            self._most = max(1, count // 2)  # outside the handler: the error holds the failed pass's memory
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            log.warning("out of memory with %d images in a batch: going on with %d", count, self._most)
        found: list[Annotations] = []
        step = self._most  # a part may not fit either, and lower it
        for start in range(0, count, step):
            part = slice(start, start + step)
            found += self(self._part(batch, part))
        return found

    def _part(self, batch: Batch, part: slice) -> Batch:
        images: Sequence = batch.images[part]
        return self._annotator.collate(images, batch.questions[part])
