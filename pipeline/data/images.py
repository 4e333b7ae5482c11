"""Decoding images: one way everywhere, so that boxes always mean the same pixels."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import ExifTags, Image, ImageOps

MAX_PIXELS = 178_956_970
"""Larger images are refused: PIL's own bound against decompression bombs, about 13,400 x 13,400."""

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
"""Members of shards that are images."""

_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-f]+>")
_LYING = {5, 6, 7, 8}
"""EXIF orientations of images that are stored on their side."""


class ImageError(Exception):
    """Bytes that do not give a whole image. ``reason`` is the snake_case word that they are counted under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns about odd EXIF and near-bombs; the bound is ours
            yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("image_too_large", str(error)) from None
    except Exception as error:  # PIL's plugins raise whatever their format made them think of
        words = _ADDRESS.sub("the data", str(error))  # notes go into reports, which must be the same bytes every time
        raise ImageError("broken_image", f"{type(error).__name__}: {words}") from None


def _open(data: bytes) -> Image.Image:
    if not data:
        raise ImageError("empty_image", "zero bytes")
    image = Image.open(io.BytesIO(data))
    if image.width * image.height > MAX_PIXELS:
        raise ImageError("image_too_large", f"{image.width} x {image.height} pixels")
    return image


def _lying(image: Image.Image) -> bool:
    return image.getexif().get(ExifTags.Base.Orientation) in _LYING


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) of the upright image, from its header alone.

    Raises:
        ImageError: as :func:`open_image`; damage behind the header is not seen.
    """
    with _named_errors():
        image = _open(data)
        return (image.width, image.height) if _lying(image) else (image.height, image.width)


def open_image(data: bytes, at_least: tuple[int, int] | None = None) -> Image.Image:
    """Encoded bytes -> a loaded RGB image, turned upright by its EXIF orientation; of an animation the first frame.

    Args:
        at_least: (height, width) that is needed of the upright image. A JPEG of twice that or more is then decoded at
            1/2, 1/4 or 1/8 of its size, never below what is needed, which is several times faster.

    Raises:
        ImageError: ``empty_image``, ``image_too_large``, or ``broken_image`` (not an image, truncated, bad data).
    """
    with _named_errors():
        image = _open(data)
        if at_least is not None:
            height, width = reversed(at_least) if _lying(image) else at_least
            image.draft(None, (width, height))
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            image.load()  # exif_transpose would copy it
        else:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            image = image.point(lambda value: value / 256).convert("L") if image.mode != "F" else image.convert("L")
        return image if image.mode == "RGB" else image.convert("RGB")
