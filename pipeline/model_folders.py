"""What a GLIP model folder must hold, asked before transformers is: it would look for what is missing on the internet."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import InputError

WANTED = (
    ("config.json",),
    ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
    ("processor_config.json", "preprocessor_config.json"),
    ("tokenizer.json", "vocab.txt"),
)
"""One of each."""


def check_glip_folder(folder: str | Path) -> None:
    """See that network and processor are there.

    Raises:
        InputError: a file is missing; names it.
    """
    for names in WANTED:
        if not any((Path(folder) / name).is_file() for name in names):
            raise InputError(
                f"{folder}: no {' or '.join(names)} in it; want a model folder with its processor, such as a run's "
                "checkpoints/teacher/final or what convert-checkpoint wrote"
            )
