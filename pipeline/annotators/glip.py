"""GLIP as a teacher: a released checkpoint that was converted, or a model that this project trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from model import GlipForObjectDetection, GlipProcessor
from pipeline.annotators.base import Annotations
from pipeline.config import PseudoLabelConfig
from pipeline.records import Span


class GlipAnnotator:
    """See :class:`pipeline.annotators.base.Annotator`."""

    name = "glip"

    def __init__(self, folder: str, revision: str, config: PseudoLabelConfig, device: str) -> None:
        self.revision = revision
        self._config = config
        self._device = torch.device(device)
        self._model = GlipForObjectDetection.from_pretrained(folder).eval().to(self._device)
        self._processor = GlipProcessor.from_pretrained(folder)
        self.max_tokens = int(self._processor.max_text_length)
        self._size = dict(self._processor.image_processor.size)
        if config.image_size is not None:
            self._size["shortest_edge"] = config.image_size
        if config.max_image_size is not None:
            self._size["longest_edge"] = config.max_image_size

    def token_count(self, text: str) -> int:
        """Word pieces of a text, without [CLS] and [SEP]."""
        return len(self._processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def annotate(
        self,
        images: Sequence[Image.Image],
        captions: Sequence[str],
        spans: Sequence[Sequence[Sequence[Span]]],
    ) -> list[Annotations]:
        """One forward pass for all pairs. Out of GPU memory, the batch is halved until it fits."""
        try:
            return self._annotate(images, captions, spans)
        except torch.cuda.OutOfMemoryError:
            if len(images) == 1:
                raise
            torch.cuda.empty_cache()
            half = len(images) // 2
            return self.annotate(images[:half], captions[:half], spans[:half]) + self.annotate(
                images[half:], captions[half:], spans[half:]
            )

    @torch.inference_mode()
    def _annotate(
        self,
        images: Sequence[Image.Image],
        captions: Sequence[str],
        spans: Sequence[Sequence[Sequence[Span]]],
    ) -> list[Annotations]:
        inputs = self._processor(images=list(images), text=list(captions), size=self._size)
        half = self._config.precision == "bf16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            outputs = self._model(**inputs.to(self._device))
        found = self._processor.post_process_grounded_object_detection(
            outputs,
            phrases=[list(s) for s in spans],
            threshold=self._config.floor,
            target_sizes=[(image.height, image.width) for image in images],
            nms_threshold=self._config.nms_threshold,
            score_agg=self._config.score_agg,
            # a bound of the store, not of the method: each phrase is cut to its own best later
            max_detections=self._config.max_regions_per_phrase * max((len(s) for s in spans), default=1),
            offset_mapping=inputs["offset_mapping"],
        )
        return [
            Annotations(
                phrase=f["labels"].cpu().numpy(),
                boxes=f["boxes"].float().cpu().numpy(),
                score=f["scores"].float().cpu().numpy(),
                token_mean=f["token_mean"].float().cpu().numpy(),
                token_min=f["token_min"].float().cpu().numpy(),
                token_max=f["token_max"].float().cpu().numpy(),
                centerness=f["centerness"].float().cpu().numpy(),
                missing=list(f["missing_phrases"]),
            )
            for f in found
        ]
