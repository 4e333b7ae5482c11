"""Image processing as in GLIP's training: its resize, BGR in 0..255, normalised, zero-padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import to_pil_image
from transformers.image_utils import (
    ChannelDimension,
    SizeDict,
    get_image_size_for_max_height_width,
    infer_channel_dimension_format,
)
from transformers.processing_utils import ImagesKwargs, Unpack

from .post_processing import detections

LONGEST_EDGE = 1333


def resized_size(width: int, height: int, shortest: int, longest: int | None) -> tuple[int, int]:
    """Compute (height, width) after GLIP's resize to `shortest`, longer side at most `longest`.

    The longer side is truncated, not rounded; `longest` None: no cap. Source: GLIP spec section 1.
    """
    short, long = min(width, height), max(width, height)
    if longest is not None and long / short * shortest > longest:
        shortest = max(1, round(longest * short / long))
    if short == shortest:
        return height, width
    other = int(shortest * long / short)
    return (other, shortest) if width < height else (shortest, other)


def to_rgb(image: Any, input_data_format: str | ChannelDimension | None = None) -> Image.Image:
    """Convert a PIL image, or an array or tensor (H, W), (H, W, C) or (C, H, W) of 1, 3 or 4 channels, to PIL RGB.

    Values are 0..255, or 0..65535 of 16-bit images, of which the high byte is used; arrays of integers
    count as 16 bits where one is 256 or more. Floats may be shares, 0..1. Transparency is dropped.
    input_data_format: "channels_first" or "channels_last", where the shape leaves it open. Raises
    TypeError for anything else; ValueError for other values or shapes.
    """
    image = _to_pil(image, input_data_format)
    if image.mode.startswith(("I", "F")):  # I;16 and its byte orders, I, F; PIL would clip them at 255
        values = np.asarray(image)
        if values.dtype.kind == "f":
            raise ValueError(
                f"found pixels of {values.dtype}, {values.min():g} to {values.max():g}; want 8 or 16 bits a channel"
            )
        image = Image.fromarray(_high_bytes(values) if image.mode.startswith("I;16") else _bytes(values))
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_pil(image: Any, input_data_format: str | ChannelDimension | None) -> Image.Image:
    if not isinstance(image, (Image.Image, np.ndarray, Tensor)):
        raise TypeError(f"image: found {type(image).__name__}; want a PIL image, or an array or tensor of 0..255")
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(f"image: found {image.size[0]} x {image.size[1]} pixels; want at least one")
        return image
    array = image.float() if isinstance(image, Tensor) and image.dtype == torch.bfloat16 else image
    array = array.detach().cpu().numpy() if isinstance(array, Tensor) else array
    if array.ndim == 2:
        array = array[..., None]
        input_data_format = ChannelDimension.LAST
    layout = None
    if array.ndim == 3 and array.size:
        if input_data_format is not None:
            layout = ChannelDimension(input_data_format)
        elif {array.shape[0], array.shape[2]} & set(_CHANNELS):
            layout = infer_channel_dimension_format(array, num_channels=_CHANNELS)
    if layout is None or array.shape[0 if layout == ChannelDimension.FIRST else 2] not in _CHANNELS:
        raise ValueError(
            f"image array: found {tuple(image.shape)}, {layout.value if layout else 'no channels'}; want (H, W), "
            "(H, W, C) or (C, H, W) of 1, 3 or 4 channels"
        )
    return to_pil_image(_bytes(array), do_rescale=False, input_data_format=layout)


_CHANNELS = (1, 3, 4)


def _bytes(values: np.ndarray) -> np.ndarray:
    """Convert pixels of any type to uint8; see `to_rgb`."""
    if values.dtype == np.uint8:
        return values
    low, high, kind = values.min(), values.max(), values.dtype.kind
    if kind in "iu" and high >= 256:
        return _high_bytes(values)
    if kind == "f" and 0 <= low <= high <= 1 + _ROUNDING and (values != values.round()).any():
        return (values * 255).round().clip(0, 255).astype(np.uint8)
    if 0 <= low <= high < 256 and (high >= 2 or (kind in "iu" and high != 1) or (kind == "f" and high == 0)):
        return (values.round() if kind == "f" else values).clip(0, 255).astype(np.uint8)
    raise ValueError(f"found pixels of {values.dtype}, {low:g} to {high:g}; want 8 or 16 bits a channel")


_ROUNDING = 0.01
"""Shares of 0..1 may exceed 1 by so much after an interpolation."""


def _high_bytes(values: np.ndarray) -> np.ndarray:
    """Convert pixels of a 16-bit image to uint8, also those of a dark one."""
    low, high = values.min(), values.max()
    if not 0 <= low <= high < 1 << 16:
        raise ValueError(f"found pixels of {values.dtype}, {low:g} to {high:g}; want 8 or 16 bits a channel")
    return (values >> 8).astype(np.uint8)


class GlipImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings of `GlipImageProcessor` beyond transformers' own.

    pad_to_multiple (`int`): the batch is padded right and bottom to a multiple of it. as_bytes
    (`bool`): `pixel_values` are RGB bytes (B, H, W, C), a quarter of the size to send to a GPU, for
    `GlipImageProcessor.normalize_bytes`.
    """

    pad_to_multiple: int
    as_bytes: bool


class GlipImageProcessor(PilBackend):
    """Image processor of GLIP (GLIP spec section 1).

    size: {"shortest_edge", "longest_edge"} in pixels, without the second no limit; an int is the
    shortest edge, with the published limit; {"height", "width"} is taken as it is. image_mean,
    image_std: in B, G, R order, for values 0..255. pad_to_multiple: the batch is padded right and
    bottom to a multiple of it; pad_size {"height", "width"} instead pads to that. do_rescale:
    multiply 0..255 by rescale_factor first, which GLIP does not. `separator_token_id`: the full
    stop of the tokenizer beside it, set by `GlipProcessor`. Raises TypeError for a setting that
    there is not, here and in calls; what else a saved folder holds becomes an attribute.
    """

    model_input_names = ["pixel_values", "image_sizes"]
    valid_kwargs = GlipImageProcessorKwargs
    do_convert_rgb = True
    do_resize = True
    size = {"shortest_edge": 800, "longest_edge": LONGEST_EDGE}
    default_to_square = False
    resample = Image.Resampling.BILINEAR
    do_rescale = False
    rescale_factor = 1.0
    do_normalize = True
    image_mean = (103.530, 116.280, 123.675)
    image_std = (57.375, 57.120, 58.395)
    do_pad = True
    pad_to_multiple = 32
    as_bytes = False
    separator_token_id: int | None = None

    def __init__(self, **kwargs: Unpack[GlipImageProcessorKwargs]):
        unknown = sorted(set(kwargs) - set(self.valid_kwargs.__annotations__))
        if unknown and "image_processor_type" not in kwargs:
            known = sorted(self.valid_kwargs.__annotations__)
            raise TypeError(f"GlipImageProcessor: found {', '.join(unknown)}; want some of {', '.join(known)}")
        super().__init__(**kwargs)

    def _standardize_kwargs(self, size: Any = None, **kwargs: Any) -> dict:  # type: ignore[override]
        if isinstance(size, int):
            size = {"shortest_edge": size, "longest_edge": LONGEST_EDGE}
        return super()._standardize_kwargs(size=size, **kwargs)

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 2:
            return [images]
        if isinstance(images, (list, tuple)) and any(
            isinstance(i, (np.ndarray, Tensor)) and i.ndim == 2 for i in images
        ):
            return list(images)
        return list(super()._prepare_images_structure(images, expected_ndims))

    def process_image(  # type: ignore[override]
        self, image: Any, do_convert_rgb: bool | None = None, input_data_format: Any = None, **_: Any
    ) -> Image.Image:
        """Convert one image to PIL; see `to_rgb` for the types. Without do_convert_rgb its channels stay."""
        return to_rgb(image, input_data_format) if do_convert_rgb else _to_pil(image, input_data_format)

    def _preprocess(  # type: ignore[override]
        self,
        images: list[Image.Image],
        do_resize: bool,
        size: SizeDict,
        resample: int,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Sequence[float] | float,
        image_std: Sequence[float] | float,
        do_pad: bool,
        pad_size: SizeDict | None,
        pad_to_multiple: int,
        do_center_crop: bool | None = None,
        data_format: Any = None,
        return_tensors: Any = None,
        as_bytes: bool = False,
        **_: Any,
    ) -> BatchFeature:
        if do_center_crop:
            raise ValueError("do_center_crop: found true; want false: GLIP sees whole images")
        if pad_to_multiple < 1:
            raise ValueError(f"pad_to_multiple: found {pad_to_multiple}; want 1 or more")
        if not images:
            raise ValueError("images: found none; want at least one")
        arrays = []
        for image in images:
            if do_resize:
                height, width = _target(image, size)
                image = image.resize((width, height), resample)
            array = np.asarray(image)
            arrays.append(array[..., None] if array.ndim == 2 else array)
        sizes = np.array([a.shape[:2] for a in arrays], dtype=np.int64)
        padded = [tuple(s) for s in sizes]
        if pad_size is not None:
            padded = [(pad_size.height, pad_size.width)] * len(arrays)
        elif do_pad:
            padded = [tuple(-(-sizes.max(0) // pad_to_multiple) * pad_to_multiple)] * len(arrays)
        pixels: Any
        if as_bytes:
            pixels = _padded_bytes(arrays, padded)
        else:
            factor, channels = rescale_factor if do_rescale else None, arrays[0].shape[2]
            values = _byte_values(channels, factor, do_normalize, image_mean, image_std).numpy()
            pixels = [_values(a, values, p) for a, p in zip(arrays, padded)]
            if data_format is not None and ChannelDimension(data_format) == ChannelDimension.LAST:
                pixels = [p.transpose(1, 2, 0) for p in pixels]
        if len(set(padded)) == 1:
            pixels = pixels if as_bytes else np.stack(pixels) if len(pixels) > 1 else pixels[0][None]
        elif return_tensors is not None:
            raise ValueError(f"do_pad: found false for images of {sorted(set(map(tuple, sizes.tolist())))}; want true")
        return BatchFeature({"pixel_values": pixels, "image_sizes": sizes}, tensor_type=return_tensors)

    def preprocess(self, images: Any, *args: Any, **kwargs: Unpack[GlipImageProcessorKwargs]) -> BatchFeature:
        """Process one image or a list, nested or not, or a batch (B, C, H, W); see `to_rgb` for the types.

        Returns `pixel_values` (B, 3, H, W) float32 and `image_sizes` (B, 2), the unpadded height
        and width. A setting that is None is the processor's own; return_tensors: "pt" where it is not
        given. Raises TypeError for other types and
        for settings that there are not, ValueError without images.
        """
        if isinstance(images, (list, tuple)) and not images:
            raise ValueError("images: found none; want at least one")
        settings = {k: v for k, v in kwargs.items() if v is not None or k == "return_tensors"}
        return super().preprocess(images, *args, **{"return_tensors": "pt", **settings})

    def normalize_bytes(self, pixels: Tensor, image_sizes: Tensor) -> Tensor:
        """Turn `pixel_values` of a call with as_bytes, on any device, into those of one without: the same bits.

        pixels (B, H, W, C) uint8, image_sizes (B, 2); returns (B, C, H, W) float32, channels-last in memory.
        """
        factor = self.rescale_factor if self.do_rescale else None
        table = _byte_values(pixels.shape[-1], factor, self.do_normalize, self.image_mean, self.image_std)
        rows = pixels.flip(-1) + 256 * torch.arange(len(table), dtype=torch.int32, device=pixels.device)
        values = table.to(pixels.device).flatten()[rows]
        height, width = (torch.arange(n, device=pixels.device) for n in pixels.shape[1:3])
        inside = (height[:, None] < image_sizes[:, 0, None, None]) & (width < image_sizes[:, 1, None, None])
        return values.masked_fill_(~inside[..., None], 0.0).permute(0, 3, 1, 2)

    def to_dict(self) -> dict[str, Any]:
        """Collect the settings of a saved folder, `as_bytes` only where it is set: it is a call's."""
        settings = super().to_dict()
        return settings if self.as_bytes else {k: v for k, v in settings.items() if k != "as_bytes"}

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.05,
        target_sizes: Tensor | list[tuple[int, int]] | None = None,
        **settings: Any,
    ) -> list[dict[str, Tensor]]:
        """Find boxes of each whole caption, but its full stops, as one phrase, for transformers' zero-shot pipeline.

        Returns per image `scores` (k,), `labels` (k,) zeros, `boxes` (k, 4) xyxy in `target_sizes`
        (height, width). `settings`: see `post_processing.detections`.
        """
        words = [mask.nonzero().flatten().tolist()[1:-1] for mask in outputs.attention_mask]
        ids = getattr(outputs, "input_ids", None)
        if ids is not None and self.separator_token_id is not None:
            rows = (ids == self.separator_token_id).tolist()
            words = [[t for t in own if not row[t]] or own for own, row in zip(words, rows, strict=True)]
        results = detections(outputs, [[w] for w in words], threshold=threshold, target_sizes=target_sizes, **settings)
        return [{k: f[k] for k in ("scores", "labels", "boxes")} for f in results]


def _target(image: Image.Image, size: SizeDict) -> tuple[int, int]:
    """Compute the (height, width) to which an image is resized."""
    given = dict(size)
    if min(given.values(), default=0) > 0:
        if size.height and size.width:
            return size.height, size.width
        if size.max_height and size.max_width:
            return get_image_size_for_max_height_width(image.size[::-1], size.max_height, size.max_width)
        if size.shortest_edge:
            return resized_size(*image.size, size.shortest_edge, size.longest_edge)
    raise ValueError(f"size: found {given}; want pixels: shortest_edge (and longest_edge), or height and width")


def _byte_values(channels: int, factor: float | None, normalize: bool, mean: Any, std: Any) -> Tensor:
    """Compute the network's value of every byte, (channels, 256)."""
    # to [0, 1] and back, as the original does: not exact
    values = torch.arange(256, dtype=torch.float32).div(255).mul(255).expand(channels, -1)
    if factor is not None:
        values = values * factor
    if normalize:
        means, stds = (torch.as_tensor(x, dtype=torch.float32).view(-1, 1) for x in (mean, std))
        if {len(means), len(stds)} - {1, channels} or not stds.all():
            raise ValueError(
                f"image_mean, image_std: found {mean}, {std}; want one or {channels} numbers, no deviation of zero"
            )
        values = (values - means) / stds
    return values


def _values(array: np.ndarray, table: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Look bytes (h, w, C) up in the network's values of every byte (C, 256): (C, *size), padded with zeros."""
    height, width, channels = _checked(array, size)
    out = np.zeros((channels, *size), dtype=np.float32)
    for c in range(channels):  # RGB to BGR
        out[c, :height, :width] = table[c][array[..., channels - 1 - c]]
    return out


def _padded_bytes(arrays: list[np.ndarray], sizes: list[tuple[int, int]]) -> np.ndarray | list[np.ndarray]:
    """Pad images (h, w, C) with zeros; of one size they are one array (B, H, W, C), written once."""
    if len(set(sizes)) > 1:
        return [_padded_bytes([a], [size])[0] for a, size in zip(arrays, sizes)]
    out = np.zeros((len(arrays), *sizes[0], arrays[0].shape[2]), dtype=np.uint8)
    for image, array in zip(out, arrays):
        height, width, _ = _checked(array, sizes[0])
        image[:height, :width] = array
    return out


def _checked(array: np.ndarray, size: tuple[int, int]) -> tuple[int, ...]:
    """Return an image's shape, which must not exceed the padded size."""
    if array.shape[0] > size[0] or array.shape[1] > size[1]:
        raise ValueError(
            f"pad_size: found {size[0]} x {size[1]}; want at least the image's {array.shape[0]} x {array.shape[1]}"
        )
    return array.shape


__all__ = ["GlipImageProcessor", "GlipImageProcessorKwargs"]
