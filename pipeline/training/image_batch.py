"""Image batches as uint8, a quarter of the size of floats, normalised only on the training device.

Normalisation is a lookup in a table that the image processor itself fills, so its values are the
processor's own, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from model import GlipImageProcessor


def stack(
    images: Sequence[Image.Image], multiple: int, allocate: Callable[[tuple[int, ...]], np.ndarray] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """RGB images -> (B, H, W, 3) uint8, padded right and bottom; and (B, 2) heights, widths.

    ``allocate`` returns an uninitialised uint8 array of a given shape; default: a new one.
    """
    height, width = (-(-max(side) // multiple) * multiple for side in zip(*[(i.height, i.width) for i in images]))
    shape = (len(images), height, width, 3)
    pixels = np.empty(shape, np.uint8) if allocate is None else allocate(shape)
    for padded, image in zip(pixels, images, strict=True):
        padded[: image.height, : image.width] = np.asarray(image)
        padded[: image.height, image.width :] = 0
        padded[image.height :] = 0
    return torch.from_numpy(pixels), torch.tensor([(image.height, image.width) for image in images])


class Normaliser:
    """Maps uint8 pixels to the values that ``processor`` would give, on the pixels' device."""

    def __init__(self, processor: GlipImageProcessor) -> None:
        ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
        values = processor(Image.fromarray(ramp), do_resize=False, return_tensors="pt")["pixel_values"]
        self._table = values[0, :, 0, :256].contiguous()  # (3, 256)

    def __call__(self, pixels: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) uint8 RGB and (B, 2) sizes -> (B, 3, H, W) float32 BGR, zero-padded."""
        batch, rows, columns, _ = pixels.shape
        values = torch.zeros((batch, 3, rows, columns), dtype=torch.float32, device=pixels.device)
        table = self._table.to(pixels.device)
        for i, (height, width) in enumerate(sizes.tolist()):
            for channel in range(3):
                values[i, channel, :height, :width] = table[channel][pixels[i, :height, :width, 2 - channel].int()]
        return values
