"""What a GLIP model folder must hold, asked before transformers is: it would look for what is missing on the internet."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import InputError
from pipeline.io.hashing import digest_file, digest_json

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


def model_revision(folder: str | Path) -> str:
    """Twelve hex digits that change whenever a weight or the configuration of a model folder changes.

    Raises:
        InputError: ``folder`` has no config.json, so it is no model folder.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json in it; want a model folder as save_pretrained writes it")
    names = sorted(
        p.name
        for p in folder.iterdir()
        if p.suffix in {".json", ".safetensors", ".txt", ".bin"} and p.name not in {"training_state.json"}
    )
    return digest_json({name: digest_file(folder / name) for name in names})[:12]
