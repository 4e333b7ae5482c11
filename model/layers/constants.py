"""Tensors that depend on shapes only, built once for each device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_CACHE: dict[tuple, Any] = {}
_LIMIT = 512


def device_constant(make: Callable, *args: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """`make(*args)` moved to `device` (and `dtype`), remembered. `make` returns a tensor or a tuple of tensors.

    Copying such a tensor at every call would stall a GPU; rebuilding it costs a small model more than its arithmetic.
    """
    key = (make, args, device, dtype)
    if key not in _CACHE:
        if len(_CACHE) >= _LIMIT:  # image sizes vary without end: forget rather than grow
            _CACHE.clear()
        # a tensor born in inference mode could never serve a later training step
        with torch.inference_mode(False), torch.device("cpu"):
            made = make(*args)
            if isinstance(made, tuple):
                _CACHE[key] = tuple(t.to(device, dtype if t.is_floating_point() else None) for t in made)
            else:
                _CACHE[key] = made.to(device, dtype if made.is_floating_point() else None)
    return _CACHE[key]
