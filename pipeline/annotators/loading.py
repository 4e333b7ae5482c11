"""Load network and processor of transformers' own families."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoProcessor

from pipeline.errors import InputError

PROCESSOR: Any = AutoProcessor  # its methods have no types


def load_parts(folder: str, auto: Any, device: str) -> tuple[Any, Any]:
    """(network in evaluation mode on the device, float32; processor).

    Raises:
        InputError: weights, tokenizer or image processor are missing or damaged.
    """
    try:
        network = auto.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        processor = PROCESSOR.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{folder}: cannot be loaded; want a model folder with its processor, as save_pretrained writes them "
            f"({reason})"
        ) from None
    return network.eval().to(torch.device(device)), processor
