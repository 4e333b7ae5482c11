"""Pixels of every mode and depth that pictures come in: one rule for all stages."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images import ImageError, open_image

SIZE = (3, 4)  # height, width
DEEP = np.array([[0, 255, 256, 65535], [1000, 30000, 40000, 257], [128, 511, 512, 60000]], np.uint16)


def stored(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values, byte_order="<"):
    """An uncompressed TIFF of one channel, as PIL does not write all of these."""
    values = values.astype(values.dtype.newbyteorder(byte_order))
    data, kind = values.tobytes(), {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    entries = [(256, SIZE[1]), (257, SIZE[0]), (258, values.itemsize * 8), (259, 1), (262, 1), (273, 8)]
    entries += [(277, 1), (278, SIZE[0]), (279, len(data)), (339, kind)]
    head = (b"II" if byte_order == "<" else b"MM") + struct.pack(byte_order + "HI", 42, 8 + len(data))
    fields = b"".join(struct.pack(byte_order + "HHII", tag, 4, 1, value) for tag, value in entries)
    return head + data + struct.pack(byte_order + "H", len(entries)) + fields + bytes(4)


def png(values, colour):
    """A PNG of 16 bits a channel."""
    rows = values.astype(">u2").reshape(SIZE[0], -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def pgm(values):
    return f"P5 {SIZE[1]} {SIZE[0]} 65535\n".encode() + values.astype(">u2").tobytes()


@pytest.mark.parametrize(
    "data",
    [
        png(DEEP, 0),
        png(np.repeat(DEEP[..., None], 3, -1), 2),  # RGB
        png(np.stack([DEEP, DEEP // 2], -1), 4),  # grey and alpha
        png(np.dstack([DEEP, DEEP, DEEP, DEEP // 2]), 6),  # RGB and alpha
        tiff(DEEP),
        tiff(DEEP, ">"),
        tiff(DEEP.astype(np.int32)),
        tiff(DEEP.astype(np.int32), ">"),
        pgm(DEEP),
    ],
    ids=["png", "png rgb", "png la", "png rgba", "tiff", "tiff >", "tiff 32", "tiff 32 >", "pgm"],
)
def test_the_higher_eight_of_sixteen_bits_count(data):
    """Of a dark image too, as of its neighbours in a sequence."""
    for dark in (png(DEEP // 512, 0), tiff(DEEP // 512)):
        assert np.asarray(open_image(dark)).max() == 0
    image = open_image(data)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.repeat((DEEP >> 8)[..., None], 3, -1))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.linspace(0, 1, 12, dtype=np.float32), "float32, 0 to 1"),
        (np.linspace(0, 255, 12, dtype=np.float32), "float32, 0 to 255"),
        (np.linspace(0, 70000, 12).astype(np.int32), "int32, 0 to 70000"),
        (np.linspace(-5, 255, 12).astype(np.int32), "int32, -5 to 255"),
    ],
)
def test_other_depths_are_named(values, found):
    with pytest.raises(ImageError, match=f"unknown_depth: found pixels of {found}; want 8 or 16 bits") as error:
        open_image(tiff(values.reshape(SIZE)))
    assert error.value.reason == "unknown_depth"


def test_transparency_does_not_change_colours():
    colours = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    alpha = np.zeros((*SIZE, 1), np.uint8)
    alpha[0] = 255
    rgba = Image.fromarray(np.concatenate([colours, alpha], -1))
    np.testing.assert_array_equal(np.asarray(open_image(stored(rgba, "PNG"))), colours)
    grey = Image.fromarray(np.concatenate([colours[..., :1], alpha], -1))
    np.testing.assert_array_equal(np.asarray(open_image(stored(grey, "PNG"))), np.repeat(colours[..., :1], 3, -1))
    palette = Image.fromarray(colours).quantize(12)
    expected = np.asarray(palette.convert("RGB"))
    transparencies = 3, bytes(range(12))
    for transparency in transparencies:
        data = stored(palette, "PNG", transparency=transparency)
        np.testing.assert_array_equal(np.asarray(open_image(data)), expected)
    np.testing.assert_array_equal(np.asarray(open_image(stored(palette, "GIF", transparency=3))), expected)


def test_modes_without_depth_are_as_pil_converts_them():
    for mode, kind in (("1", "PNG"), ("L", "PNG"), ("CMYK", "TIFF"), ("CMYK", "JPEG"), ("YCbCr", "JPEG")):
        image = Image.linear_gradient("L").resize((8, 8)).convert("RGB").convert(mode)
        data = stored(image, kind)
        np.testing.assert_array_equal(
            np.asarray(open_image(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        )
