"""Draws predictions beside targets for a training batch's first images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from model import GlipProcessor
from pipeline.data.records import GroundingRecord, Region, Span
from pipeline.drawing.boxes import draw_regions

WIDTH = 480
BOXES = 10
"""Highest-scoring boxes drawn of an image."""


@torch.no_grad()
def predictions_beside_targets(
    network: nn.Module, processor: GlipProcessor, batch: dict[str, Any], images: int = 2
) -> list[Image.Image]:
    """The first ``images`` of a batch: predictions on the left, targets on the right.

    Draws no random number and restores the network's mode. Under FSDP2 all processes must call it.
    """
    images = min(images, len(batch["captions"]))
    was_training = network.training
    network.eval()
    try:
        names = ("pixel_values", "image_sizes", "input_ids", "attention_mask")
        inputs = {n: batch[n][:images] for n in names}
        outputs = network(**inputs)
    finally:
        network.train(was_training)
    captions = batch["captions"][:images]
    offsets = processor.tokenize(captions)["offset_mapping"]
    phrases = [list(dict.fromkeys(tuple(map(tuple, spans)) for spans in batch["spans"][i])) for i in range(images)]
    detections = processor.post_process_grounded_object_detection(
        outputs, phrases=phrases, threshold=0.0, offset_mapping=offsets, max_detections=BOXES
    )
    drawn = []
    for i in range(images):
        height, width = inputs["image_sizes"][i].tolist()
        image = _image(inputs["pixel_values"][i, :, :height, :width], processor)
        labels = list(zip(batch["labels"][i]["boxes"].tolist(), batch["spans"][i], strict=True))
        predicted = [
            (box, phrases[i][label])
            for box, label in zip(detections[i]["boxes"].tolist(), detections[i]["labels"].tolist(), strict=True)
        ]
        pair = [np.asarray(_draw(image, captions[i], boxes)) for boxes in (predicted, labels)]
        drawn.append(Image.fromarray(np.hstack(pair)))
    return drawn


def _image(pixels: torch.Tensor, processor: GlipProcessor) -> Image.Image:
    settings = processor.image_processor
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (settings.image_mean, settings.image_std))
    values = (pixels.float().cpu() * std + mean).flip(0).clamp(0, 255)  # the network's channels are BGR
    return Image.fromarray(values.permute(1, 2, 0).round().to(torch.uint8).numpy())


def _draw(image: Image.Image, caption: str, boxes: Sequence[tuple[list[float], Sequence[Span]]]) -> Image.Image:
    regions = tuple(
        Region(box=tuple(box), phrase=" ".join(caption[s:e] for s, e in spans), tokens_positive=tuple(spans))
        for box, spans in boxes
        if box[2] > box[0] and box[3] > box[1]
    )
    record = GroundingRecord(
        key="batch", dataset="batch", kind="grounding", image_size=(image.height, image.width),
        caption=caption or " ", regions=regions,
    )  # fmt: skip
    return draw_regions(image, record, width=WIDTH)
