"""Load network and processor of transformers' own families."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoProcessor

from model import GlipForObjectDetection, GlipProcessor
from model.loading import load_complete
from pipeline.errors import InputError
from pipeline.io.model_folder import check_glip_folder

PROCESSOR: Any = AutoProcessor  # its methods have no types


def load_parts(
    folder: str, auto: Any, device: str, processor_kind: Any = PROCESSOR, dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """(network in evaluation mode on the device; processor).

    Raises:
        InputError: weights, tokenizer or image processor are missing or damaged.
    """
    try:
        network = load_complete(auto, folder, dtype=dtype, local_files_only=True)
        processor = processor_kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{folder}: cannot be loaded; want a model folder with its processor, as save_pretrained writes them "
            f"({reason})"
        ) from None
    return network.eval().to(torch.device(device)), processor


def load_glip(folder: str, device: str = "cpu") -> tuple[GlipForObjectDetection, GlipProcessor]:
    """:func:`load_parts` of a GLIP folder."""
    check_glip_folder(folder)
    network, processor = load_parts(folder, GlipForObjectDetection, device, GlipProcessor)
    processor.tokenizer.init_kwargs["local_files_only"] = False  # how it was loaded is saved with it otherwise
    return network, processor
