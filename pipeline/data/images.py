"""Image decoding, the same for all stages, so that boxes always refer to the same pixels."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import ExifTags, Image, ImageOps

from pipeline.io.paths import IMAGE_EXTENSIONS as IMAGE_EXTENSIONS

MAX_PIXELS = 178_956_970
"""Maximum image size: PIL's limit against decompression bombs, about 13,400 x 13,400."""

_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-f]+>")
_TRANSPOSED = {5, 6, 7, 8}
"""EXIF orientations of images whose height and width are stored exchanged."""


class ImageError(Exception):
    """Undecodable image. ``reason``: snake_case name under which it is counted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns of invalid EXIF, and of large images below MAX_PIXELS
            yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("image_too_large", str(error)) from None
    except Exception as error:  # PIL's plugins raise many types
        detail = _ADDRESS.sub("the data", str(error))  # it goes into reports, which must be deterministic
        raise ImageError("broken_image", f"{type(error).__name__}: {detail}") from None


def _open(data: bytes) -> Image.Image:
    if not data:
        raise ImageError("empty_image", "zero bytes")
    image = Image.open(io.BytesIO(data))
    if image.width * image.height > MAX_PIXELS:
        raise ImageError("image_too_large", f"{image.width} x {image.height} pixels")
    return image


def _is_transposed(image: Image.Image) -> bool:
    return image.getexif().get(ExifTags.Base.Orientation) in _TRANSPOSED


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) of the image after its EXIF orientation is applied, from the header only.

    Raises:
        ImageError: as :func:`open_image`; damage after the header is not detected.
    """
    with _named_errors():
        image = _open(data)
        return (image.width, image.height) if _is_transposed(image) else (image.height, image.width)


def open_image(data: bytes, at_least: tuple[int, int] | None = None) -> Image.Image:
    """Decode an image to RGB, with its EXIF orientation applied; of an animation the first frame.

    Of 16 bits a channel the higher 8 count. Transparency is dropped, as GLIP does: a pixel has the
    colour that is stored, whether it shows or not.

    Args:
        at_least: minimum (height, width) of the oriented image. A JPEG of at least twice this size
            is decoded at 1/2, 1/4 or 1/8 of its size, never below the minimum, which is several
            times faster.

    Raises:
        ImageError: ``empty_image``, ``image_too_large``, ``unknown_depth`` (floating point, or
            integers beyond 16 bits), or ``broken_image`` (not an image, truncated, bad data).
    """
    with _named_errors():
        image = _open(data)
        if at_least is not None:
            height, width = reversed(at_least) if _is_transposed(image) else at_least
            image.draft(None, (width, height))
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            image.load()  # exif_transpose would copy it
        else:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):  # I;16 and its byte orders, I, F
            from model.image_processing_glip import to_rgb  # it loads torch, which other images do not need

            try:
                return to_rgb(image)
            except ValueError as error:
                raise ImageError("unknown_depth", str(error)) from None
        return image if image.mode == "RGB" else image.convert("RGB")
