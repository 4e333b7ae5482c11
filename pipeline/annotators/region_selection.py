"""Select regions by the scores of boxes and phrases: floor, NMS per phrase, the best of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pycocotools.mask import encode
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.ops import batched_nms

from pipeline.config import PseudoLabelConfig


def corners(boxes: Tensor, width: float, height: float) -> Tensor:
    """Centre, width, height as shares of a frame (n, 4) -> xyxy in its pixels."""
    centre, half = boxes[:, :2].float(), boxes[:, 2:].float() / 2
    return torch.cat([centre - half, centre + half], -1) * boxes.new_tensor([width, height] * 2, dtype=torch.float32)


def choose(
    scores: Tensor, boxes: Tensor, size: tuple[int, int], config: PseudoLabelConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the boxes to store for each phrase: above the floor, after NMS, at most ``max_regions_per_phrase``.

    Args:
        scores: (n, phrases). boxes: (n, 4) xyxy in pixels of the stored image, whose (height, width) is ``size``.

    Returns:
        box (k,) and phrase (k,), indices, by phrase and falling score; and the boxes (n, 4) clipped to the
        image. A box wholly outside the image is never chosen.
    """
    height, width = size
    boxes = torch.stack([boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)], -1).flatten(1)
    inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    box, phrase = ((scores > config.floor) & inside[:, None]).nonzero(as_tuple=True)
    # in double: batched_nms offsets each phrase's boxes by a multiple of the largest coordinate
    kept = batched_nms(boxes[box].double(), scores[box, phrase].double(), phrase, config.nms_threshold)
    kept = kept[phrase[kept].sort(stable=True).indices]
    box, phrase = box[kept], phrase[kept]
    first = torch.searchsorted(phrase, phrase)
    best = torch.arange(len(phrase), device=phrase.device) - first < config.max_regions_per_phrase
    return box[best], phrase[best], boxes


def rle_masks(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Counts of compressed COCO RLE (k,), each a str, of masks' logits (k, h, w) at the image's (height, width).

    A pixel is of a mask if its probability, interpolated to the image's size, is above a half.
    """
    masks = np.empty(len(logits), object)
    for i, mask in enumerate(logits):  # one by one: all of an image would take more memory than the teacher
        larger = interpolate(mask.float().sigmoid()[None, None], size, mode="bilinear", align_corners=False)
        pixels = (larger[0, 0] > 0.5).to(torch.uint8).cpu().numpy()
        masks[i] = encode(np.asfortranarray(pixels))["counts"].decode()
    return masks


def token_evidence(probabilities: Tensor, tokens: Sequence[Sequence[int]], phrase: Tensor) -> dict[str, Tensor]:
    """Mean, minimum and maximum of each region's probabilities at its phrase's tokens.

    probabilities (k, T): a region's, at every token of its text. tokens: of each phrase. phrase (k,): a region's.
    """
    has = torch.zeros(len(tokens), probabilities.shape[1], dtype=torch.bool)
    for i, phrase_tokens in enumerate(tokens):
        has[i, list(phrase_tokens)] = True
    own = has.to(phrase.device)[phrase]
    return {
        "token_mean": probabilities.masked_fill(~own, 0).sum(-1) / own.sum(-1).clamp(min=1),
        "token_min": probabilities.masked_fill(~own, 1).amin(-1),
        "token_max": probabilities.masked_fill(~own, 0).amax(-1),
    }
