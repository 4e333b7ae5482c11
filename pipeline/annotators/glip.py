"""GLIP as a teacher: a released checkpoint that was converted, or a model that this project trained."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from model import GlipConfig
from model.grounding import phrase_tokens
from model.image_processing_glip import resized_size
from model.outputs import GlipObjectDetectionOutput
from model.post_processing import detections
from pipeline.annotators.base import Batch, Prepared, RegionPredictions, TextQuery
from pipeline.annotators.flops import labelling_flops, least_seconds, peaks_of
from pipeline.annotators.loading import load_glip
from pipeline.annotators.memory import check_cpu_memory
from pipeline.annotators.network import NetworkAnnotator
from pipeline.annotators.oom import OomRetryBatcher
from pipeline.annotators.padded_shapes import PaddedShapes
from pipeline.annotators.tokenizers import tokenizer_lock
from pipeline.config import PseudoLabelConfig
from pipeline.system.compiling import compiled

log = logging.getLogger("glip_self_train")

SENT = "sent"
"""Name, among a batch's inputs on a GPU, of the event after which they are there."""
EVIDENCE = ("token_mean", "token_min", "token_max", "centerness")


def exclusive_ends(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Boxes (k, 4) with exclusive x2, y2 from GLIP's inclusive ones, clipped to size (height, width).

    GLIP's are inclusive in training (x2 = x + w - 1, GLIP spec 9.3) and in COCO's protocol
    (w = x2 - x1 + 1, spec 13).
    """
    height, width = size
    end = torch.minimum(boxes[:, 2:] + 1, boxes.new_tensor([width, height]))
    return torch.cat([boxes[:, :2], end], 1)


@dataclass(frozen=True)
class _Launched:
    """A batch whose outputs are, or will be, computed: after the event ``computed``, on a GPU."""

    outputs: GlipObjectDetectionOutput
    batch: Batch
    computed: Any

    def part(self, rows: slice) -> _Launched:
        """Some of the batch's queries."""
        outputs = {n: v[rows] for n, v in self.outputs.items()}
        offsets = self.batch.inputs["offset_mapping"][rows]
        batch = Batch({"offset_mapping": offsets}, self.batch.images[rows], self.batch.queries[rows])
        return replace(self, outputs=GlipObjectDetectionOutput(**outputs), batch=batch)


def _filled(value: torch.Tensor, rows: int) -> torch.Tensor:
    """A tensor with its last row repeated ``rows`` times more."""
    return torch.cat([value, value[-1:].expand(rows, *value.shape[1:])]) if rows > 0 else value


class GlipAnnotator(NetworkAnnotator):
    """An annotator (:class:`pipeline.annotators.base.Annotator`)."""

    name = "glip"

    def __init__(self, folder: str, revision: str, config: PseudoLabelConfig, device: str) -> None:
        super().__init__(revision, config, device)
        network, self._processor = load_glip(folder, device)
        self._model: torch.nn.Module = network
        self._tokenizer, self._limit = self._processor.tokenizer, self._processor.max_text_length
        # for the copies of inputs, and for the selection of boxes, beside the network
        self._streams = (
            tuple(torch.cuda.Stream(self._device) for _ in range(2)) if self._device.type == "cuda" else None
        )
        self._regions_in_halves = OomRetryBatcher(
            self._regions, lambda launched: len(launched.batch.queries), _Launched.part, "images' boxes"
        )
        self.as_bytes = self._device.type != "cpu"  # a quarter of the bytes to send, normalised there
        self._size = dict(self._processor.image_processor.size)
        if config.image_size is not None:
            self._size["shortest_edge"] = config.image_size
        if config.max_image_size is not None:
            self._size["longest_edge"] = config.max_image_size
        longest = self._size.get("longest_edge")
        self._peaks = peaks_of(torch.cuda.get_device_name(self._device)) if self._device.type == "cuda" else None
        self._computed = Counter[tuple[int, int, int] | None]()  # padded height, width, tokens -> images
        self._compiles = config.compile != "off"
        self.shapes = None  # on a CPU, where fewer padded pixels count for more than fewer shapes
        if longest is not None and (self._compiles or self._device.type != "cpu"):
            self.shapes = PaddedShapes.of(self._size["shortest_edge"], longest, self._limit)
        if self._device.type == "cpu":  # on a GPU a batch that does not fit is halved
            self._check_memory(network.config)
        what = "a teacher's network"
        self._network = compiled(network, config.compile, what, dynamic=False)
        self._encode_text = network.encode_text
        self._encode_image = compiled(network.encode_image, config.compile, what, dynamic=False)
        if self._compiles:
            self._warm_up()

    def _warm_up(self) -> None:
        """Compile for a common shape, so that a compiler that does not work is seen before the first shard."""
        log.info("compiling the teacher's network; other shapes follow when they occur")
        self.predict(
            self.collate([self.prepare(Image.new("RGB", (640, 480)), (480, 640))], self.class_queries(["dog"]))
        )

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
        """Padded to the largest image and the longest text of the batch, or to one of ``shapes``."""
        inputs: dict[str, Any] = {}
        shape = self._padded(images, queries)
        settings = {} if shape is None else {"pad_size": {"height": shape[0], "width": shape[1]}}
        pictures = [image.pixels for image in images]
        inputs.update(self._processor.image_processor(pictures, do_resize=False, as_bytes=self.as_bytes, **settings))
        return Batch(self._sent(inputs | self._tokens(queries, shape)), tuple(images), tuple(queries))

    def collate_again(self, batch: Batch, queries: Sequence[TextQuery]) -> Batch:
        """The batch's image inputs with other texts; the network's image part is computed once for all."""
        of_images = {n: batch.inputs[n] for n in ("pixel_values", "image_sizes", SENT) if n in batch.inputs}
        shape, length = self._padded(batch.images, queries), int(batch.inputs["input_ids"].shape[1])
        if shape is not None and max(q.tokens for q in queries) <= length:
            shape = (*shape[:2], length)
        texts = self._sent(self._tokens(queries, shape))
        return Batch(of_images | texts, batch.images, tuple(queries), batch.of_images)

    def _padded(self, images: Sequence[Prepared], queries: Sequence[TextQuery]) -> tuple[int, int, int] | None:
        if self.shapes is None:
            return None
        sizes = [(image.pixels.height, image.pixels.width) for image in images]
        height, width = map(max, zip(*sizes, strict=True))
        return self.shapes.holding(height, width, min(self._limit, max(q.tokens for q in queries)))

    def _tokens(self, queries: Sequence[TextQuery], shape: tuple[int, int, int] | None) -> dict[str, Any]:
        settings: dict[str, Any] = {} if shape is None else {"padding": "max_length", "max_length": shape[2]}
        with tokenizer_lock(self._tokenizer):
            return dict(self._processor.tokenize([q.text for q in queries], **settings))

    def _sent(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs on the GPU, but the sizes and offsets, copied while the network computes; on a CPU as they are."""
        if self._streams is None:
            return inputs
        here: dict[str, Any] = {n: inputs.pop(n) for n in ("image_sizes", "offset_mapping") if n in inputs}
        with torch.cuda.stream(self._streams[0]):
            sent = {n: v.pin_memory().to(self._device, non_blocking=True) for n, v in inputs.items()}
            return {**sent, **here, SENT: self._streams[0].record_event()}

    def predict(self, batch: Batch) -> list[RegionPredictions]:
        """One forward pass for all, or one a half when memory runs out."""
        return self.start(batch)()

    def start(self, batch: Batch) -> Callable[[], list[RegionPredictions]]:
        """Begin :meth:`predict`; the result is a function for any thread that returns the regions."""
        launched: list[_Launched] = self._in_halves(batch)
        return lambda: [regions for part in launched for regions in self._regions_in_halves(part)]

    def least_seconds(self) -> float | None:
        """Seconds that the card needs at its peak for the FLOPs since the last call.

        None: not known, for other devices and where an image's part was computed once for several texts.
        """
        computed, self._computed = self._computed, Counter()
        if (peaks := self._peaks) is None or None in computed:
            return None
        config: Any = self._model.config
        return sum(
            images * least_seconds(labelling_flops(config, shape[:2], shape[2], self._config.precision), peaks)
            for shape, images in computed.items()
            if shape is not None
        )

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> list[_Launched]:
        inputs = {n: v for n, v in batch.inputs.items() if n not in (SENT, "offset_mapping")}
        if self._streams is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(batch.inputs[SENT])
            for value in inputs.values():
                if value.is_cuda:  # its memory may be used again when this stream is past it
                    value.record_stream(current)
        of_images = batch.of_images
        height, width = batch.inputs["pixel_values"].shape[1:3] if self.as_bytes else inputs["pixel_values"].shape[2:]
        shape = (height, width, inputs["input_ids"].shape[1]) if of_images is None else None
        self._computed[shape] += len(batch.queries)
        if of_images:
            del inputs["pixel_values"]
        elif self.as_bytes:
            sizes = inputs["image_sizes"].to(self._device, non_blocking=True)
            inputs["pixel_values"] = self._processor.image_processor.normalize_bytes(inputs["pixel_values"], sizes)
        if self._compiles:  # a batch of fewer is filled up, so that its size is no further shape
            fill = (self._in_halves.most or self._config.batch_size) - len(batch.queries)
            inputs = {n: _filled(v, fill) for n, v in inputs.items()}
        elif self._device.type != "cpu" and len({q.text for q in batch.queries}) == len(batch.queries):
            with self._autocast():  # the network would look for equal texts itself, and wait for the GPU
                inputs["text_features"] = self._encode_text(inputs["input_ids"], inputs["attention_mask"])
        with self._autocast():
            if of_images == {}:
                # cloned, as compiled with "max" its outputs are overwritten by the next batch's
                of_images["image_features"] = [m.clone() for m in self._encode_image(inputs.pop("pixel_values"))]
            outputs = self._network(**inputs, **(of_images or {}))
        if self._compiles:
            known = {n: v[: len(batch.queries)].clone() for n, v in outputs.items()}
            outputs = GlipObjectDetectionOutput(**known)
        computed = None if self._streams is None else torch.cuda.current_stream(self._device).record_event()
        return [_Launched(outputs, batch, computed)]

    @torch.inference_mode()
    def _regions(self, launched: _Launched) -> list[RegionPredictions]:
        """Select the boxes on the device, all images at once, and fetch them in one copy."""
        batch, config = launched.batch, self._config
        offsets = batch.inputs["offset_mapping"]
        with nullcontext() if self._streams is None else torch.cuda.stream(self._streams[1]):
            if launched.computed is not None:
                torch.cuda.current_stream(self._device).wait_event(launched.computed)
            found = detections(
                launched.outputs,
                [phrase_tokens(offsets[i], [[span] for span in q.spans])[0] for i, q in enumerate(batch.queries)],
                threshold=config.floor,
                target_sizes=[image.size for image in batch.images],
                nms_threshold=config.nms_threshold,
                score_agg=config.score_agg,
                # a bound of the store, not of the method: each phrase is cut to its own best later
                max_detections=config.max_regions_per_phrase * max((len(q.spans) for q in batch.queries), default=1),
            )
            columns = [torch.stack([f[name].float() for name in ("scores", *EVIDENCE, "labels")], 1) for f in found]
            rows = torch.cat([torch.cat([f["boxes"].float(), c], 1) for f, c in zip(found, columns, strict=True)]).cpu()
        regions = []
        for query, image, own in zip(batch.queries, batch.images, rows.split([len(c) for c in columns]), strict=True):
            score, *evidence, label = own[:, 4:].T.contiguous().numpy()
            regions.append(
                RegionPredictions(
                    phrase=np.asarray(query.phrases, np.int64)[label.astype(np.int64)],
                    boxes=exclusive_ends(own[:, :4], image.size).numpy(),
                    score=score,
                    **dict(zip(EVIDENCE, evidence, strict=True)),
                )
            )
        return regions
