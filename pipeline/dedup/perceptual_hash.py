"""Perceptual hash: signs of an image's lowest DCT frequencies, after pHash (Zauner 2010,
Implementation and Benchmarking of Perceptual Image Hash Functions).

pHash compares each coefficient with their median, here they are compared with zero, which is close
to the median. Mirroring an image then inverts exactly the bits of odd horizontal frequencies, so
that mirrored copies are found without a second hash. On the test photographs and scenes both
variants find the same copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image
from scipy.fft import dct

SIDE = 32
"""The image is resized to this height and width, regardless of its aspect ratio."""
DECODED_SIDE = 3 * SIDE
"""Minimum side of the decoded image; large JPEGs are decoded at a fraction of their size. With
smaller sizes, the edge blocks of a reduced JPEG change the bits.
"""
WORDS = 4
BITS = 64 * WORDS
BANDS = 4
BAND_BITS = 16
NOISE = 2.0
"""Coefficients below this may be due to rounding (noise of one grey level per pixel gives 1)."""
MIN_STEADY_BITS = 24
"""An image with fewer of its first 64 bits above the noise is flat (one colour or a gradient), and
its hash is random.
"""


def _frequencies_of_bits() -> np.ndarray:
    """(256, 2) vertical and horizontal frequency of each bit, ascending, without the constant.

    The first 64 are distributed over the bands of the index in turn, so that each band has low and
    higher frequencies.
    """
    rising = [(u, total - u) for total in range(1, SIDE) for u in range(total + 1)][:BITS]
    first = [rising[i] for band in range(BANDS) for i in range(band, 64, BANDS)]
    return np.array(first + rising[64:])


_FREQUENCIES_OF_BITS = _frequencies_of_bits()
_FREQUENCIES = int(_FREQUENCIES_OF_BITS.max()) + 1
_BASIS = dct(np.eye(SIDE), axis=0, norm="ortho")[:_FREQUENCIES]


def _words(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits, axis=-1, bitorder="little").view("<u8")


MIRROR = _words(_FREQUENCIES_OF_BITS[:, 1] % 2 == 1)
"""(4,) uint64: bits that are inverted when the image is mirrored horizontally."""


@dataclass(frozen=True)
class ImageHash:
    """Hash of an image.

    words: (4,) uint64, 256 bits; the first 64 are indexed, all are compared. steady: number of the
    first 64 bits whose coefficient is above the noise.
    """

    words: np.ndarray
    steady: int

    @property
    def flat(self) -> bool:
        """Whether the image has too little structure to be compared."""
        return self.steady < MIN_STEADY_BITS


def hash_image(image: Image.Image) -> ImageHash:
    """Hash an upright RGB image. It is robust to changes of brightness, contrast and size, and
    ignores colour.
    """
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    coefficients = _BASIS @ np.asarray(grey, np.float64) @ _BASIS.T
    values = coefficients[_FREQUENCIES_OF_BITS[:, 0], _FREQUENCIES_OF_BITS[:, 1]]
    # a symmetric image has coefficients of zero, whose sign is due to rounding
    return ImageHash(_words(values > 1e-6), int((np.abs(values[:64]) >= NOISE).sum()))


def hamming(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Hamming distances (n,) of hashes (n,) or (n, words) uint64."""
    bits = np.bitwise_count(one ^ other)
    distances: np.ndarray = (bits if bits.ndim == 1 else bits.sum(1)).astype(np.int64)
    return distances


HASH_VERSION = 3  # 2: the image's digest; 3: without the padding of a crawler


HASHES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        *(pa.field(f"hash_{i}", pa.uint64(), nullable=False) for i in range(WORDS)),
        pa.field("image", pa.uint64(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("bytes", pa.int32()),
    ]
)
"""``hash_0``: the indexed bits. ``image``: digest of the encoded image, equal for all captions of
one image. ``offset``, ``bytes``: byte range of the image, or of its link, in the shard; null for an
image file.
"""
