"""Cache of tensors that depend on shapes only, built once per device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_CACHE: dict[tuple, tuple[torch.Tensor, ...]] = {}
# Limit per device: masks and anchors of some 25 image sizes of GLIP-T at 800 pixels, of 9 of GLIP-L
_LIMIT_BYTES = 512 << 20


def device_constant(make: Callable, *args: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """Return `make(*args)`, tensor or tuple, on `device` (in `dtype`), from a bounded cache.

    Copying such a tensor at every call would stall a GPU; rebuilding it costs a small model more
    than its arithmetic. The oldest entries of a device are dropped first.
    """
    key = (make, args, device, dtype)
    cached = _CACHE.get(key)
    if cached is None:
        # a tensor made in inference mode could not serve a later training step
        with torch.inference_mode(False), torch.device("cpu"):
            made = make(*args)
            parts = made if isinstance(made, tuple) else (made,)
            cached = _CACHE[key] = tuple(t.to(device, dtype if t.is_floating_point() else None) for t in parts)
        sizes = {k: sum(t.nbytes for t in v) for k, v in _CACHE.items() if k[2] == device}
        for old in list(sizes)[:-1]:
            if sum(sizes.values()) <= _LIMIT_BYTES:
                break
            del sizes[old]
            _CACHE.pop(old, None)
    return cached if len(cached) > 1 else cached[0]
