"""Load of saved networks that does not fill gaps with random numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError


def load_complete(kind: Any, folder: str | Path, *, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """Load a network of a class, or Auto class, of transformers; see its `from_pretrained`.

    Raises ValueError for a damaged file, weights of other shapes, and entries that are missing,
    which transformers initialises with a warning.
    """
    try:
        network, info = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True, **settings)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder}: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{folder}: found no {missing[0]} in its weights ({len(missing)} missing); want all entries")
    return network
