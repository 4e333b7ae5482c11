"""Image processing as in GLIP's training: its resize, BGR in 0..255, normalised, zero-padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from .post_processing import all_words, detections


def resized_size(width: int, height: int, shortest: int, longest: int | None) -> tuple[int, int]:
    """Compute (height, width) after GLIP's resize to `shortest`, longer side at most `longest`.

    The longer side is truncated, not rounded; `longest` None: no cap. Source: GLIP spec section 1.
    """
    short, long = min(width, height), max(width, height)
    if longest is not None and long / short * shortest > longest:
        shortest = max(1, round(longest * short / long))
    if short == shortest:
        return height, width
    other = int(shortest * long / short)
    return (other, shortest) if width < height else (shortest, other)


def to_rgb(image: Any) -> Image.Image:
    """Convert a PIL image, (H, W, 3) uint8 array or (3, H, W) uint8 tensor to PIL RGB.

    Raises TypeError for anything else.
    """
    if isinstance(image, Tensor):
        image = (image.movedim(0, -1) if image.dim() == 3 and image.shape[0] == 3 else image).cpu().numpy()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise TypeError(f"image array of {image.dtype}: give uint8 values 0..255")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise TypeError(f"not an image: {type(image).__name__}; give PIL images, uint8 arrays (H, W, 3) or tensors")
    return image if image.mode == "RGB" else image.convert("RGB")


class GlipImageProcessor(BaseImageProcessor):
    """Image processor of GLIP (GLIP spec section 1).

    size: {"shortest_edge", "longest_edge"} in pixels. image_mean, image_std: in B, G, R order, for
    values 0..255. pad_to_multiple: the batch is padded right and bottom to a multiple of it.
    """

    model_input_names = ["pixel_values", "image_sizes"]

    def __init__(
        self,
        do_resize: bool = True,
        size: dict[str, int | None] | None = None,
        do_normalize: bool = True,
        image_mean: Sequence[float] = (103.530, 116.280, 123.675),
        image_std: Sequence[float] = (57.375, 57.120, 58.395),
        pad_to_multiple: int = 32,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.do_resize = do_resize
        self.size = dict(size) if size is not None else {"shortest_edge": 800, "longest_edge": 1333}
        self.do_normalize = do_normalize
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.pad_to_multiple = pad_to_multiple

    def _table(self, normalise: bool) -> np.ndarray:
        """Compute the network's value of every byte: (3, 256) float32, channels B, G, R."""
        # to [0, 1] and back, as the original does: not exact
        values = torch.arange(256, dtype=torch.float32).div(255).mul(255)[None].repeat(3, 1)
        if normalise:
            values = (values - torch.tensor(self.image_mean)[:, None]) / torch.tensor(self.image_std)[:, None]
        return values.numpy()

    def preprocess(
        self,
        images: Any,
        do_resize: bool | None = None,
        size: dict[str, int | None] | None = None,
        do_normalize: bool | None = None,
        return_tensors: str | None = "pt",
        **_: Any,
    ) -> BatchFeature:
        """Process one image or a list; see `to_rgb` for the types.

        Returns `pixel_values` (B, 3, H, W) float32 and `image_sizes` (B, 2), the unpadded height
        and width. Raises TypeError for other types.
        """
        do_resize = self.do_resize if do_resize is None else do_resize
        size = self.size if size is None else size
        table = self._table(self.do_normalize if do_normalize is None else do_normalize)
        arrays = []
        for image in images if isinstance(images, (list, tuple)) else [images]:
            rgb = to_rgb(image)
            if do_resize:
                height, width = resized_size(*rgb.size, size["shortest_edge"], size.get("longest_edge"))
                rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
            arrays.append(np.asarray(rgb))
        sizes = np.array([a.shape[:2] for a in arrays], dtype=np.int64)
        height, width = -(-sizes.max(0) // self.pad_to_multiple) * self.pad_to_multiple
        pixels = np.zeros((len(arrays), 3, height, width), dtype=np.float32)
        for i, array in enumerate(arrays):
            for c in range(3):
                pixels[i, c, : array.shape[0], : array.shape[1]] = table[c][array[..., 2 - c]]
        return BatchFeature({"pixel_values": pixels, "image_sizes": sizes}, tensor_type=return_tensors)

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.05,
        target_sizes: Tensor | list[tuple[int, int]] | None = None,
        **settings: Any,
    ) -> list[dict[str, Tensor]]:
        """Find boxes of each whole caption as one phrase, for transformers' zero-shot pipeline.

        Returns per image `scores` (k,), `labels` (k,) zeros, `boxes` (k, 4) xyxy in `target_sizes`
        (height, width). `settings`: see `post_processing.detections`.
        """
        words = all_words(outputs.attention_mask)
        results = detections(outputs, [[w] for w in words], threshold=threshold, target_sizes=target_sizes, **settings)
        return [{k: f[k] for k in ("scores", "labels", "boxes")} for f in results]


__all__ = ["GlipImageProcessor"]
