"""Tensors that depend on shapes only, built once for each device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_CACHE: dict[tuple, Any] = {}
_LIMIT_BYTES = 512 << 20
"""Of one device: the masks and anchors of some 25 image sizes of GLIP-T at 800 pixels, of 9 of GLIP-L. Sizes vary without end."""


def device_constant(make: Callable, *args: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """`make(*args)` moved to `device` (and `dtype`), remembered. `make` returns a tensor or a tuple of tensors.

    Copying such a tensor at every call would stall a GPU; rebuilding it costs a small model more than its arithmetic.
    """
    key = (make, args, device, dtype)
    if key not in _CACHE:
        # a tensor born in inference mode could never serve a later training step
        with torch.inference_mode(False), torch.device("cpu"):
            made = make(*args)
            if isinstance(made, tuple):
                _CACHE[key] = tuple(t.to(device, dtype if t.is_floating_point() else None) for t in made)
            else:
                _CACHE[key] = made.to(device, dtype if made.is_floating_point() else None)
        return _forgetting(key)
    return _CACHE[key]


def _forgetting(newest: tuple) -> Any:
    """What is remembered as ``newest``, once the oldest of its device are forgotten that go beyond the limit."""
    made = _CACHE[newest]
    sizes = {key: _bytes(value) for key, value in _CACHE.items() if key[2] == newest[2]}
    for key in list(sizes)[:-1]:
        if sum(sizes.values()) <= _LIMIT_BYTES:
            break
        del sizes[key]
        _CACHE.pop(key, None)
    return made


def _bytes(value: Any) -> int:
    tensors = value if isinstance(value, tuple) else (value,)
    return sum(t.numel() * t.element_size() for t in tensors)
