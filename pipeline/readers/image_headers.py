"""Image size and EXIF orientation from headers, and boxes of the upright image."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from dataclasses import dataclass

from PIL import ExifTags, Image

from pipeline.data.images import MAX_PIXELS, ImageError, image_size, open_image
from pipeline.data.records import Box, Region
from pipeline.data.resizing import WHOLE, padded_part, shown_part
from pipeline.readers.base import LabelledImage
from pipeline.readers.boxes import clipped

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "GIF": "gif"}
"""PIL format -> file extension in shards; other formats are refused."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Stored height and width in pixels, EXIF orientation (1 to 8), and file extension in shards."""

    height: int
    width: int
    orientation: int
    extension: str

    @property
    def stored(self) -> tuple[int, int]:
        """(height, width) as stored."""
        return self.height, self.width

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) after the EXIF orientation is applied."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_header(data: bytes) -> ImageHeader:
    """Read the header of an encoded image; damage after the header is not detected.

    Raises:
        ImageError: as :func:`pipeline.data.images.open_image`, or ``other_format`` if the format is
            not in EXTENSIONS.
    """
    size = _plain_jpeg(data)
    if size is not None:
        return ImageHeader(*size, 1, "jpg")
    height, width = image_size(data)
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
    """(height, width) of a JPEG without EXIF, several times faster than PIL; None if PIL has to
    read it.

    That is any JPEG with an APP1 segment (EXIF or XMP), which may state an orientation, or an
    unusual one.
    """
    if data[:3] != b"\xff\xd8\xff":
        return None
    start, last, size = 2, len(data) - 9, None
    while start < last:
        if data[start] != 0xFF:
            return None
        marker = data[start + 1]
        if marker == 0xDA:
            return size if start + 2 + (data[start + 2] << 8 | data[start + 3]) <= len(data) else None
        if marker == 0xE1 or marker < 0xC0 or 0xD0 <= marker <= 0xD9 or marker == 0xFF or marker == 0xE2:
            return None
        if marker in _FRAMES:
            size = data[start + 5] << 8 | data[start + 6], data[start + 7] << 8 | data[start + 8]
            pixels = size[0] * size[1]
            if data[start + 4] != 8 or not 0 < pixels <= MAX_PIXELS or data[start + 9] not in (1, 3, 4):
                return None
        start += 2 + (data[start + 2] << 8 | data[start + 3])
    return None


_FRAMES = {0xC0, 0xC1, 0xC2}
"""Start-of-frame markers: baseline, extended and progressive."""


def to_upright(box: Box, header: ImageHeader) -> Box:
    """Transform a box on the stored image to the upright image."""
    x1, y1, x2, y2 = box
    w, h = float(header.width), float(header.height)
    if header.orientation in (2, 3, 7, 8):
        x1, x2 = w - x2, w - x1
    if header.orientation in (3, 4, 6, 7):
        y1, y2 = h - y2, h - y1
    return (y1, x1, y2, x2) if header.orientation >= 5 else (x1, y1, x2, y2)


def on_stored_image(item: LabelledImage, header: ImageHeader, data: bytes) -> LabelledImage:
    """The item with boxes that are fractions of the stored image, where a crawler padded the original.

    Raises:
        ImageError: ``cropped_image``, ``reshaped_image``; ``padded_image``: it is padded, and its
            original size is not stated.
    """
    original = item.original_size
    changed = header.height == header.width if original is None else padded_part(header.upright, original) is not None
    if not changed or not item.regions:
        return item
    part = shown_part(open_image(data), header.upright, original)
    if original is None and part != WHOLE:
        raise ImageError(
            "padded_image", "white margins make it a square, and no original_width and original_height say which part "
            "its boxes are shares of"
        )  # fmt: skip
    left, top, width, height = part[0], part[1], part[2] - part[0], part[3] - part[1]
    regions = [
        region.model_copy(update={"box": (left + x1 * width, top + y1 * height, left + x2 * width, top + y2 * height)})
        for region in item.regions
        for x1, y1, x2, y2 in (region.box,)
    ]
    return item if part == WHOLE else item._replace(regions=tuple(regions))


def upright_regions(
    item: LabelledImage, header: ImageHeader, orientation: str, lost: Counter[str]
) -> tuple[list[Region], list[Region]]:
    """(regions clipped to the upright image, regions outside it).

    Args:
        orientation: "upright" or "stored": the image that boxes refer to if the size stated in the
            annotations fits both. Otherwise the stated size decides.
        lost: counts regions outside the image, and cut ones, as readers do.

    Raises:
        ImageError: ``size_differs``: the stated size is that of another image.
    """
    on_stored = orientation == "stored" and header.orientation != 1
    if item.size is not None and item.size != header.upright:
        if item.size != header.stored:
            raise ImageError(
                "size_differs",
                f"the image is {header.upright[0]}x{header.upright[1]}, its labels state {item.size[0]}x{item.size[1]}",
            )
        on_stored = True
    elif item.size is not None and header.stored != header.upright:
        on_stored = False
    elif item.size is not None and not item.relative and not on_stored:
        return list(item.regions), []  # already clipped to this size by the reader
    height, width = header.stored if on_stored else header.upright
    kept, outside = [], []
    for region in item.regions:
        x1, y1, x2, y2 = region.box
        if item.relative:
            x1, y1, x2, y2 = x1 * width, y1 * height, x2 * width, y2 * height
        box = clipped((x1, y1, x2, y2), (height, width), lost)
        if box is not None:
            box = to_upright(box, header) if on_stored else box
            kept.append(region if box == region.box else region.model_copy(update={"box": box}))
        else:
            outside.append(region)
    return kept, outside
