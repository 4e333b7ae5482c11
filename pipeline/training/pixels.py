"""Images travel from the workers as bytes, a quarter of the floats, and become the network's values where they are needed.

The values are looked up in a table that the image processor itself fills, so they are the processor's own, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from model import GlipImageProcessor


def stack(images: Sequence[Image.Image], multiple: int) -> tuple[torch.Tensor, torch.Tensor]:
    """RGB images -> (B, 3, H, W) uint8 in B, G, R order, padded right and bottom to a multiple; and (B, 2) heights, widths."""
    sizes = torch.tensor([(image.height, image.width) for image in images])
    height, width = (-(-int(n) // multiple) * multiple for n in sizes.amax(0))
    pixels = np.zeros((len(images), 3, height, width), np.uint8)
    for place, image in zip(pixels, images, strict=True):
        for channel, band in enumerate(reversed(image.split())):
            place[channel, : image.height, : image.width] = np.asarray(band)
    return torch.from_numpy(pixels), sizes


class Normaliser:
    """Bytes -> the values that ``processor`` would have made, on the bytes' device."""

    def __init__(self, processor: GlipImageProcessor) -> None:
        every = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
        made = processor(Image.fromarray(every), do_resize=False, return_tensors="pt")["pixel_values"]
        self._table = made[0, :, 0, :256].contiguous()  # (3, 256)

    def __call__(self, pixels: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """pixels (B, 3, H, W) uint8 and sizes (B, 2) -> (B, 3, H, W) float32; padding is zero."""
        values = torch.zeros(pixels.shape, dtype=torch.float32, device=pixels.device)
        table = self._table.to(pixels.device)
        for i, (height, width) in enumerate(sizes.tolist()):
            for channel in range(3):
                values[i, channel, :height, :width] = table[channel][pixels[i, channel, :height, :width].int()]
        return values
