"""Builds a network and its processor, from a model folder or from a recipe's settings."""

from __future__ import annotations

from dataclasses import fields

from transformers import AutoConfig, AutoTokenizer

from model import GlipBackboneConfig, GlipConfig, GlipForObjectDetection, GlipImageProcessor, GlipProcessor
from pipeline.annotators.loading import load_glip
from pipeline.config import ModelConfig
from pipeline.errors import InputError
from pipeline.io.model_folder import check_backbone, check_glip_folder, text_encoder_folder


def model_config(model: ModelConfig, init: str | None) -> GlipConfig:
    """The configuration of the network that :func:`build_model` makes, without its weights.

    Raises:
        InputError: as :func:`build_model`.
    """
    if init is not None:
        check_glip_folder(init)
        config: GlipConfig = GlipConfig.from_pretrained(init)
        return config
    folder = text_encoder_folder(model.text_encoder)
    check_backbone(model.backbone)
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
        return GlipConfig(text_config=text, backbone_config=backbone, **settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"model.settings: {error}") from None


def build_model(model: ModelConfig, init: str | None) -> tuple[GlipForObjectDetection, GlipProcessor]:
    """Load the model of ``init``, or build one from ``model`` with a pretrained text encoder.

    Raises:
        InputError: ``init`` is not a GLIP folder, or a setting is invalid.
    """
    if init is not None:
        return load_glip(init)
    config = model_config(model, None)
    folder = text_encoder_folder(model.text_encoder)
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
