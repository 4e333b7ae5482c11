"""Check of a GLIP model folder before transformers loads it, and its revision.

transformers would look up missing files on the Hugging Face Hub.
"""

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
"""Groups of alternative file names; a model folder has one of each group."""


def _refuse_file(path: str | Path) -> None:
    """Raise InputError for a file, such as a released checkpoint, in place of a model folder."""
    if Path(path).is_file():
        raise InputError(
            f"{path}: found a file; want a model folder. Of a released GLIP checkpoint one is made by: "
            f"convert-checkpoint {path} --variant glip-t --out FOLDER (variants: glip-a, glip-t, glip-l)"
        )


def check_glip_folder(folder: str | Path) -> None:
    """Check that a folder has a model, its processor and its tokenizer.

    Raises:
        InputError: a file is missing, or ``folder`` is a file.
    """
    _refuse_file(folder)
    for names in WANTED:
        if not any((Path(folder) / name).is_file() for name in names):
            raise InputError(
                f"{folder}: no {' or '.join(names)} in it; want a model folder with its processor, such as a run's "
                "checkpoints/teacher/final or what convert-checkpoint wrote"
            )


def model_revision(folder: str | Path) -> str:
    """Digest, twelve hex digits, of the weights and configuration files of a model folder.

    Raises:
        InputError: ``folder`` has no config.json, or is a file.
    """
    _refuse_file(folder)
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json in it; want a model folder as save_pretrained writes it")
    names = sorted(
        p.name
        for p in folder.iterdir()
        if p.suffix in {".json", ".safetensors", ".txt", ".bin"} and p.name not in {"training_state.json"}
    )
    return digest_json({name: digest_file(folder / name) for name in names})[:12]
