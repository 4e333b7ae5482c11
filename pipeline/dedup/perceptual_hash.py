"""A perceptual hash: the signs of an image's lowest frequencies, after pHash (Zauner 2010, Implementation and Benchmarking of Perceptual Image
Hash Functions).

pHash compares each coefficient with their median; here it is compared with zero, which the median is close to anyway. The mirrored image then has
the same bits but for those of odd horizontal frequencies, so that mirrored copies are found without another hash. On our photographs and
scenes the two find the same copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image
from scipy.fft import dct

SIDE = 32
"""The hash is of the image shrunk to this many pixels a side, whatever its shape."""
DECODED_SIDE = 3 * SIDE
"""What is decoded at the least: a large JPEG gives its hash at a fraction of its size. With less, the edge blocks of a reduced JPEG shift the bits."""
WORDS = 4
BITS = 64 * WORDS
BANDS = 4
BAND_BITS = 16
NOISE = 2.0
"""Coefficients below this may be rounding alone (a grey level of noise in each pixel gives 1)."""
LEAST_STEADY = 24
"""An image with fewer of its first 64 bits above the noise is flat: one colour, a plain gradient. Its bits mean nothing."""


def _places() -> np.ndarray:
    """(256, 2) vertical and horizontal frequency of each bit: rising, the constant left out.

    The first 64 are dealt out to the bands of the index in turn, so that each band has low and higher ones.
    """
    rising = [(u, total - u) for total in range(1, SIDE) for u in range(total + 1)][:BITS]
    first = [rising[i] for band in range(BANDS) for i in range(band, 64, BANDS)]
    return np.array(first + rising[64:])


_PLACES = _places()
_FREQUENCIES = int(_PLACES.max()) + 1
_BASIS = dct(np.eye(SIDE), axis=0, norm="ortho")[:_FREQUENCIES]


def _words(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits, axis=-1, bitorder="little").view("<u8")


MIRROR = _words(_PLACES[:, 1] % 2 == 1)
"""(4,) uint64: the bits that change when an image is mirrored left to right."""


@dataclass(frozen=True)
class Perceived:
    """words (4,) uint64: 256 bits, of which the first 64 are searched by and all are compared. steady: how many of
    the first 64 are above the noise."""

    words: np.ndarray
    steady: int

    @property
    def flat(self) -> bool:
        """Whether there is too little in the image to tell it from others."""
        return self.steady < LEAST_STEADY


def perceive(image: Image.Image) -> Perceived:
    """The hash of an upright RGB image. Its brightness, contrast, size and small damage hardly change it; its colours do not count."""
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    found = _BASIS @ np.asarray(grey, np.float64) @ _BASIS.T
    values = found[_PLACES[:, 0], _PLACES[:, 1]]
    # a symmetric image has coefficients of exactly nothing, whose sign is the arithmetic's own
    return Perceived(_words(values > 1e-6), int((np.abs(values[:64]) >= NOISE).sum()))


def differing(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n,) of differing bits, for (n,) or (n, words) uint64."""
    bits = np.bitwise_count(one ^ other)
    return (bits if bits.ndim == 1 else bits.sum(1)).astype(np.int64)


HASH_VERSION = 2  # 2: the image's digest


HASHES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        *(pa.field(f"hash_{i}", pa.uint64(), nullable=False) for i in range(WORDS)),
        pa.field("image", pa.uint64(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("bytes", pa.int32()),
    ]
)
"""``hash_0`` is searched by. ``image``: a digest of the encoded image, the same for all captions of one. ``offset`` and ``bytes``: where the image (or its link) lies in its shard, null for a file of its own."""
