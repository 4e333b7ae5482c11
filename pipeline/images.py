"""Decoding images: one way everywhere, so that boxes always mean the same pixels."""

from __future__ import annotations

import io
import re
import warnings

from PIL import Image, ImageOps

MAX_PIXELS = 178_956_970
"""Larger images are refused: PIL's own bound against decompression bombs, about 13,400 x 13,400."""

_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-f]+>")


class ImageError(Exception):
    """Bytes that do not give a whole image. ``reason`` is the snake_case word that they are counted under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def open_image(data: bytes) -> Image.Image:
    """Encoded bytes -> a loaded RGB image, turned upright by its EXIF orientation; of an animation the first frame.

    Raises:
        ImageError: ``empty_image``, ``image_too_large``, or ``broken_image`` (not an image, truncated, bad data).
    """
    if not data:
        raise ImageError("empty_image", "zero bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns about odd EXIF and near-bombs; the bound is ours
            image: Image.Image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise ImageError("image_too_large", f"{image.width} x {image.height} pixels")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I") or image.mode == "F":
                image = image.point(lambda value: value / 256).convert("L") if image.mode != "F" else image.convert("L")
            return image if image.mode == "RGB" else image.convert("RGB")
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("image_too_large", str(error)) from None
    except Exception as error:  # PIL's plugins raise whatever their format made them think of
        words = _ADDRESS.sub("the data", str(error))  # notes go into reports, which must be the same bytes every time
        raise ImageError("broken_image", f"{type(error).__name__}: {words}") from None
