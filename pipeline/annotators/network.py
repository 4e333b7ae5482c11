"""The part of an annotator that all families share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from model.grounding import SEPARATOR, clean_name
from pipeline.annotators.base import Batch, Prepared, RegionPredictions, TextQuery
from pipeline.annotators.oom import OomRetryBatcher
from pipeline.annotators.tokenizers import token_counts, tokenizer_words
from pipeline.annotators.windows import caption_queries, class_queries
from pipeline.config import PseudoLabelConfig
from pipeline.data.records import Span


class NetworkAnnotator(ABC):
    """An annotator by one network, whose texts are whole captions.

    ``_limit``: the text limit in tokens, of which ``_specials`` are the tokenizer's own.
    """

    _tokenizer: Any
    _limit: int
    _specials = 2

    def __init__(self, revision: str, config: PseudoLabelConfig, device: str) -> None:
        self.revision, self._config, self._device = revision, config, torch.device(device)
        self._in_halves = OomRetryBatcher(
            lambda batch: self._forward(batch),
            lambda batch: len(batch.images),
            lambda batch, part: self.collate(batch.images[part], batch.queries[part]),
            "images",
        )

    def queries(self, caption: str, spans: Sequence[Span]) -> tuple[list[TextQuery], list[int]]:
        """The caption, or windows of it."""
        return caption_queries(caption, spans, tokenizer_words(self._tokenizer, caption), self._limit, self._specials)

    def class_queries(self, names: Sequence[str]) -> list[TextQuery]:
        """ "person. traffic light", as few texts as hold all names."""
        clean = [clean_name(name).strip() for name in names]
        return list(class_queries(clean, lambda t: token_counts(self._tokenizer, [t])[0], self._limit, SEPARATOR))

    @abstractmethod
    def collate(self, images: Sequence[Prepared], queries: Sequence[TextQuery]) -> Batch:
        """One query about each image, as the network's inputs."""

    def predict(self, batch: Batch) -> list[RegionPredictions]:
        """One forward pass for all, or one a half when memory runs out."""
        return self._in_halves(batch)

    @abstractmethod
    def _forward(self, batch: Batch) -> list[Any]:
        """The regions of each query, or what :meth:`predict` makes them of."""

    def _autocast(self) -> torch.autocast:
        """bfloat16 arithmetic if the settings want it."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.precision == "bf16")
