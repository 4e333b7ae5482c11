"""Images travel from the workers as bytes, a quarter of the floats, and become the network's values where they are needed.

The values are looked up in a table that the image processor itself fills, so they are the processor's own, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from model import GlipImageProcessor


def stack(
    images: Sequence[Image.Image], multiple: int, room: Callable[[tuple[int, ...]], np.ndarray] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """RGB images -> (B, H, W, 3) uint8, padded right and bottom to a multiple; and (B, 2) heights, widths.

    room: gives the array of a shape to write to, by default a new one.
    """
    height, width = (-(-max(side) // multiple) * multiple for side in zip(*[(i.height, i.width) for i in images]))
    shape = (len(images), height, width, 3)
    pixels = np.empty(shape, np.uint8) if room is None else room(shape)
    for place, image in zip(pixels, images, strict=True):
        place[: image.height, : image.width] = np.asarray(image)
        place[: image.height, image.width :] = 0
        place[image.height :] = 0
    return torch.from_numpy(pixels), torch.tensor([(image.height, image.width) for image in images])


class Normaliser:
    """Bytes -> the values that ``processor`` would have made, on the bytes' device."""

    def __init__(self, processor: GlipImageProcessor) -> None:
        every = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
        made = processor(Image.fromarray(every), do_resize=False, return_tensors="pt")["pixel_values"]
        self._table = made[0, :, 0, :256].contiguous()  # (3, 256)

    def __call__(self, pixels: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """pixels (B, H, W, 3) uint8 RGB and sizes (B, 2) -> (B, 3, H, W) float32 in B, G, R order; padding is zero."""
        batch, rows, columns, _ = pixels.shape
        values = torch.zeros((batch, 3, rows, columns), dtype=torch.float32, device=pixels.device)
        table = self._table.to(pixels.device)
        for i, (height, width) in enumerate(sizes.tolist()):
            for channel in range(3):
                values[i, channel, :height, :width] = table[channel][pixels[i, :height, :width, 2 - channel].int()]
        return values
