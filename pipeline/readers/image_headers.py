"""An image's size and EXIF orientation from its header, and boxes turned as the image is when it is set upright."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from dataclasses import dataclass

from PIL import ExifTags, Image

from pipeline.data.images import MAX_PIXELS, ImageError, image_size
from pipeline.data.records import Box, Region
from pipeline.readers.base import Labelled, clipped

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif"}
"""What a shard calls images of PIL's formats; others are not for shards."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Stored height and width in pixels, the EXIF orientation (1 to 8), and what a shard calls its format."""

    height: int
    width: int
    orientation: int
    extension: str

    @property
    def stored(self) -> tuple[int, int]:
        """(height, width) of the pixels as they are stored."""
        return self.height, self.width

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) as everyone sees it."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_header(data: bytes) -> ImageHeader:
    """Of encoded bytes; damage behind the header is not seen.

    Raises:
        ImageError: as :func:`pipeline.data.images.open_image`, or ``other_format`` for one that shards do not take.
    """
    size = _plain_jpeg(data)
    if size is not None:
        return ImageHeader(*size, 1, "jpg")
    height, width = image_size(data)  # with all its checks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        extension = EXTENSIONS.get(image.format or "")
        if extension is None:
            raise ImageError("other_format", f"{image.format}; want one of {sorted(EXTENSIONS)}")
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    orientation = orientation if orientation in range(1, 9) else 1
    return ImageHeader(*((width, height) if orientation >= 5 else (height, width)), orientation, extension)


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG without anything special, several times faster than PIL; None: ask PIL.

    APP1 holds EXIF or XMP, either of which may turn the image; a JPEG that has one is PIL's.
    """
    if data[:3] != b"\xff\xd8\xff":
        return None
    at, end, size = 2, len(data) - 9, None
    while at < end:
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xDA:
            return size if at + 2 + (data[at + 2] << 8 | data[at + 3]) <= len(data) else None
        if marker == 0xE1 or marker < 0xC0 or 0xD0 <= marker <= 0xD9 or marker == 0xFF or marker == 0xE2:
            return None
        if marker in _FRAMES:
            size = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            pixels = size[0] * size[1]
            if data[at + 4] != 8 or not 0 < pixels <= MAX_PIXELS or data[at + 9] not in (1, 3, 4):
                return None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


_FRAMES = {0xC0, 0xC1, 0xC2}
"""Baseline, extended and progressive."""


def turned(box: Box, header: ImageHeader) -> Box:
    """A box on the stored pixels -> the same on the upright image."""
    x1, y1, x2, y2 = box
    w, h = float(header.width), float(header.height)
    match header.orientation:
        case 2:
            return w - x2, y1, w - x1, y2
        case 3:
            return w - x2, h - y2, w - x1, h - y1
        case 4:
            return x1, h - y2, x2, h - y1
        case 5:
            return y1, x1, y2, x2
        case 6:
            return h - y2, x1, h - y1, x2
        case 7:
            return h - y2, w - x2, h - y1, w - x1
        case 8:
            return y1, w - x2, y2, w - x1
    return box


def upright(
    item: Labelled, header: ImageHeader, orientation: str, lost: Counter[str]
) -> tuple[list[Region], list[Region]]:
    """The regions on the upright image, clipped to it, and those of which nothing is in it; counted in ``lost`` as readers do.

    Which way up the labels were drawn is told by the size that they state, where it differs lying and standing; else by
    the set's ``orientation``.

    Raises:
        ImageError: ``size_differs``: the labels were drawn on another image.
    """
    on_stored = orientation == "stored" and header.orientation != 1
    if item.size is not None and item.size != header.upright:
        if item.size != header.stored:
            raise ImageError(
                "size_differs",
                f"the image is {header.upright[0]}x{header.upright[1]}, its labels say {item.size[0]}x{item.size[1]}",
            )
        on_stored = True
    elif item.size is not None and header.stored != header.upright:
        on_stored = False
    elif item.size is not None and not item.relative and not on_stored:
        return list(item.regions), []  # clipped to that size by the reader
    height, width = header.stored if on_stored else header.upright
    kept, gone = [], []
    for region in item.regions:
        x1, y1, x2, y2 = region.box
        if item.relative:
            x1, y1, x2, y2 = x1 * width, y1 * height, x2 * width, y2 * height
        box = clipped((x1, y1, x2, y2), (height, width), lost)
        if box is not None:
            box = turned(box, header) if on_stored else box
            kept.append(region if box == region.box else region.model_copy(update={"box": box}))
        else:
            gone.append(region)
    return kept, gone
