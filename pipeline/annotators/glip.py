"""GLIP as a teacher: a released checkpoint that was converted, or a model that this project trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from model import GlipForObjectDetection, GlipProcessor
from model.grounding import SEPARATOR, clean_name
from model.image_processing_glip import resized_size
from pipeline.annotators.base import Batch, Prepared, RegionPredictions, TextQuery
from pipeline.annotators.oom import retry_in_halves
from pipeline.annotators.tokenizers import token_counts, tokenizer_lock, tokenizer_words
from pipeline.annotators.windows import caption_queries, class_queries
from pipeline.config import PseudoLabelConfig
from pipeline.data.records import Span
from pipeline.io.model_folder import check_glip_folder


def behind_the_end(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """GLIP's boxes (k, 4), which name the last pixel that they cover, as all of ours, which end behind it; size: (height, width).

    So GLIP is trained (x2 = x + w - 1, GLIP spec 9.3) and so COCO's protocol takes its boxes (w = x2 - x1 + 1, spec 13).
    """
    height, width = size
    end = torch.minimum(boxes[:, 2:] + 1, boxes.new_tensor([width, height]))
    return torch.cat([boxes[:, :2], end], 1)


class GlipAnnotator:
    """See :class:`pipeline.annotators.base.Annotator`."""

    name = "glip"

    def __init__(self, folder: str, revision: str, config: PseudoLabelConfig, device: str) -> None:
        check_glip_folder(folder)
        self.revision = revision
        self._config = config
        self._device = torch.device(device)
        self._model = GlipForObjectDetection.from_pretrained(folder).eval().to(self._device)
        self._processor = GlipProcessor.from_pretrained(folder)
        self._size = dict(self._processor.image_processor.size)
        if config.image_size is not None:
            self._size["shortest_edge"] = config.image_size
        if config.max_image_size is not None:
            self._size["longest_edge"] = config.max_image_size
        self._run_batch = retry_in_halves(self, self._forward)

    def queries(self, caption: str, spans: Sequence[Span]) -> tuple[list[TextQuery], list[int]]:
        """The caption, or windows of it."""
        words = tokenizer_words(self._processor.tokenizer, caption)
        return caption_queries(caption, spans, words, self._processor.max_text_length)

    def class_queries(self, names: Sequence[str]) -> list[TextQuery]:
        """ "person. traffic light", as few texts as hold all names."""
        clean = [clean_name(name).strip() for name in names]
        return list(class_queries(clean, self._token_count, self._processor.max_text_length, SEPARATOR))

    def _token_count(self, text: str) -> int:
        return token_counts(self._processor.tokenizer, [text])[0]

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """GLIP's own resize (GLIP spec section 1)."""
        return resized_size(width, height, self._size["shortest_edge"], self._size.get("longest_edge"))

    def prepare(self, image: Image.Image, size: tuple[int, int]) -> Prepared:
        """Resized to :meth:`shape` of the stored size."""
        height, width = self.shape(size[1], size[0])
        return Prepared(image.resize((width, height), Image.Resampling.BILINEAR), size)

    def collate(self, images: Sequence[Prepared], queries: Sequence[TextQuery]) -> Batch:
        """Padded to the largest image and the longest text of the batch."""
        inputs = self._processor(images=[image.pixels for image in images], do_resize=False)
        with tokenizer_lock(self._processor.tokenizer):
            inputs.update(self._processor.tokenize([q.text for q in queries]))
        return Batch(inputs, tuple(images), tuple(queries))

    def predict(self, batch: Batch) -> list[RegionPredictions]:
        """One forward pass for all, or one a half when memory runs out."""
        return self._run_batch(batch)

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> list[RegionPredictions]:
        half = self._config.precision == "bf16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            # not batch.inputs.to(...), which would hold these on the GPU while the halves of a batch that did not fit are tried
            outputs = self._model(**{n: v.to(self._device) for n, v in batch.inputs.items() if n != "offset_mapping"})
        found = self._processor.post_process_grounded_object_detection(
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
        for one, image in zip(found, batch.images, strict=True):
            one["boxes"] = behind_the_end(one["boxes"], image.size)
        names = {"boxes": "boxes", "score": "scores"} | {
            n: n for n in ("token_mean", "token_min", "token_max", "centerness")
        }
        return [
            RegionPredictions(
                phrase=np.asarray(q.phrases, np.int64)[f["labels"].cpu().numpy()],
                **{ours: f[theirs].float().cpu().numpy() for ours, theirs in names.items()},
            )
            for q, f in zip(batch.queries, found, strict=True)
        ]
