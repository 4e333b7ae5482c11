"""Cache of tensors that depend on shapes only, built once per device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._guards import active_fake_mode

_CACHE: dict[tuple, tuple[torch.Tensor, ...]] = {}
# Limit per device: masks and anchors of some 25 image sizes of GLIP-T at 800 pixels, of 9 of GLIP-L
_LIMIT_BYTES = 512 << 20


def without_values() -> bool:
    """Tell whether tensors are made for a trace: in `torch.export`, or fake ones outside a compiler."""
    if torch.compiler.is_exporting():
        return True
    return not torch.compiler.is_compiling() and active_fake_mode() is not None


def device_constant(make: Callable, *args: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """Return `make(*args)`, tensor or tuple, on `device` (in `dtype`), from a bounded cache.

    Copying such a tensor at every call would stall a GPU; rebuilding it costs a small model more
    than its arithmetic. The oldest entries of a device are dropped first. Export, and whatever else
    runs the network on tensors without values, neither reads nor fills the cache.
    """
    key = (make, args, device, dtype)
    found = None if without_values() else _CACHE.get(key)
    if found is None:
        # a tensor made in inference mode could not serve a later training step
        with torch.inference_mode(False), torch.device("cpu"):
            made = make(*args)
            parts = made if isinstance(made, tuple) else (made,)
            found = tuple(t.to(device, dtype if t.is_floating_point() else None) for t in parts)
        if without_values():
            return found if len(found) > 1 else found[0]
        _CACHE[key] = found
        sizes = {k: sum(t.nbytes for t in v) for k, v in _CACHE.items() if k[2] == device}
        for old in list(sizes)[:-1]:
            if sum(sizes.values()) <= _LIMIT_BYTES:
                break
            del sizes[old]
            _CACHE.pop(old, None)
    return found if len(found) > 1 else found[0]
