"""GLIP as a teacher: a released checkpoint that was converted, or a model that this project trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from model import GlipConfig
from model.image_processing_glip import resized_size
from pipeline.annotators.base import Batch, Prepared, RegionPredictions, TextQuery
from pipeline.annotators.loading import load_glip
from pipeline.annotators.memory import check_cpu_memory
from pipeline.annotators.network import NetworkAnnotator
from pipeline.annotators.tokenizers import tokenizer_lock
from pipeline.config import PseudoLabelConfig

EVIDENCE = ("token_mean", "token_min", "token_max", "centerness")


def exclusive_ends(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Boxes (k, 4) with exclusive x2, y2 from GLIP's inclusive ones, clipped to size (height, width).

    GLIP's are inclusive in training (x2 = x + w - 1, GLIP spec 9.3) and in COCO's protocol
    (w = x2 - x1 + 1, spec 13).
    """
    height, width = size
    end = torch.minimum(boxes[:, 2:] + 1, boxes.new_tensor([width, height]))
    return torch.cat([boxes[:, :2], end], 1)


class GlipAnnotator(NetworkAnnotator):
    """An annotator (:class:`pipeline.annotators.base.Annotator`)."""

    name = "glip"

    def __init__(self, folder: str, revision: str, config: PseudoLabelConfig, device: str) -> None:
        super().__init__(revision, config, device)
        network, self._processor = load_glip(folder, device)
        self._model: torch.nn.Module = network
        self._tokenizer, self._limit = self._processor.tokenizer, self._processor.max_text_length
        self.as_bytes = self._device.type != "cpu"  # a quarter of the bytes to send, normalised there
        self._size = dict(self._processor.image_processor.size)
        if config.image_size is not None:
            self._size["shortest_edge"] = config.image_size
        if config.max_image_size is not None:
            self._size["longest_edge"] = config.max_image_size
        if self._device.type == "cpu":  # on a GPU a batch that does not fit is halved
            self._check_memory(network.config)

    def _check_memory(self, config: GlipConfig) -> None:
        shortest = self._size["shortest_edge"]
        longest = self._size.get("longest_edge") or 2 * shortest
        check_cpu_memory(
            config, (min(shortest, longest), longest), self._config.batch_size,
            advice=lambda fits: f"--set batch_size={fits}" if fits else "a smaller image_size, or more memory",
            training=False, precision=self._config.precision,
            loaded=4 * sum(p.numel() for p in self._model.parameters()),
        )  # fmt: skip

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """GLIP's own resize (GLIP spec section 1)."""
        return resized_size(width, height, self._size["shortest_edge"], self._size.get("longest_edge"))

    def prepare(self, image: Image.Image, size: tuple[int, int]) -> Prepared:
        """Resized to :meth:`shape` of the stored size."""
        height, width = self.shape(size[1], size[0])
        return Prepared(image.resize((width, height), Image.Resampling.BILINEAR), size)

    def collate(self, images: Sequence[Prepared], queries: Sequence[TextQuery]) -> Batch:
        """Padded to the largest image and the longest text of the batch."""
        inputs = self._processor(images=[image.pixels for image in images], do_resize=False, as_bytes=self.as_bytes)
        with tokenizer_lock(self._tokenizer):
            inputs.update(self._processor.tokenize([q.text for q in queries]))
        if self._device.type == "cuda":  # sent without waiting, and without a copy by the driver
            inputs["pixel_values"] = inputs["pixel_values"].pin_memory()
        return Batch(inputs, tuple(images), tuple(queries))

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> list[RegionPredictions]:
        # batch.inputs.to(...) would hold these on the GPU while the halves of a batch that did not fit are tried
        sent = batch.inputs.items()
        inputs = {n: v.to(self._device, non_blocking=True) for n, v in sent if n != "offset_mapping"}
        if self.as_bytes:
            images = self._processor.image_processor
            inputs["pixel_values"] = images.normalize_bytes(inputs["pixel_values"], inputs["image_sizes"])
        with self._autocast():
            outputs = self._model(**inputs)
        results = self._processor.post_process_grounded_object_detection(
            outputs,
            phrases=[[[span] for span in q.spans] for q in batch.queries],
            threshold=self._config.floor,
            target_sizes=[image.size for image in batch.images],
            nms_threshold=self._config.nms_threshold,
            score_agg=self._config.score_agg,
            # a bound of the store, not of the method: each phrase is cut to its own best later
            max_detections=self._config.max_regions_per_phrase * max((len(q.spans) for q in batch.queries), default=1),
            offset_mapping=batch.inputs["offset_mapping"],
        )
        return [
            RegionPredictions(
                phrase=np.asarray(query.phrases, np.int64)[regions["labels"].cpu().numpy()],
                boxes=exclusive_ends(regions["boxes"], image.size).float().cpu().numpy(),
                score=regions["scores"].float().cpu().numpy(),
                **{name: regions[name].float().cpu().numpy() for name in EVIDENCE},
            )
            for query, image, regions in zip(batch.queries, batch.images, results, strict=True)
        ]
