"""Names of the released GLIP checkpoints and of this model's parameters, one to one."""

from __future__ import annotations

import re

import torch
from transformers.initialization import no_init_weights

from .configuration_glip import GlipConfig
from .modeling_glip import GlipForObjectDetection

# Linear layers here that the released network writes as 1x1 convolutions
_CONVOLUTIONS_1X1 = ("rpn.head.bbox_pred.", "rpn.head.centerness.", "rpn.head.cls_logits.")
_BRANCHES = {"0": "upper", "1": "same", "2": "lower"}


def to_ours(name: str, config: GlipConfig) -> str | None:
    """This model's name of a released entry; None for entries that are derived, not learned.

    Derived are the anchors and the windows' position indices. Raises KeyError for a name that GLIP does not have.
    `name` has no "module." prefix.
    """
    if re.fullmatch(r"rpn\.anchor_generator\.cell_anchors\.\d+", name) or name.endswith(".relative_position_index"):
        return None
    if name.startswith("backbone.body."):
        return "backbone." + name.removeprefix("backbone.body.")
    if name.startswith("language_backbone.body.model."):
        return "text_encoder." + name.removeprefix("language_backbone.body.model.")
    first = config.fpn_in_stages[0] - 1  # the pyramid's layers are numbered by stage, from 2 for stage 3
    if m := re.fullmatch(r"backbone\.fpn\.fpn_(inner|layer)(\d+)\.(weight|bias)", name):
        kind = {"inner": "lateral", "layer": "output"}[m[1]]
        return f"neck.{kind}.{int(m[2]) - first}.{m[3]}"
    if m := re.fullmatch(r"backbone\.fpn\.top_blocks\.p(\d+)\.(weight|bias)", name):
        return f"neck.extra.{int(m[1]) - config.fpn_in_stages[-1] - 1}.{m[2]}"
    if m := re.fullmatch(r"rpn\.head\.dyhead_tower\.(\d+)\.(.+)", name):
        per_block = 3 if config.fusion else 1
        block, part = divmod(int(m[1]), per_block)
        kind = ("fusion", "text_layer", "conv")[part] if config.fusion else "conv"
        return f"head.blocks.{block}.{kind}.{_inside_block(kind, m[2], name)}"
    if name.startswith("rpn.head."):
        return "head." + name.removeprefix("rpn.head.")
    raise KeyError(name)


def _inside_block(kind: str, rest: str, name: str) -> str:
    if kind == "fusion":
        if not rest.startswith("b_attn."):
            raise KeyError(name)
        return rest.removeprefix("b_attn.")
    if kind == "text_layer":
        return rest
    if m := re.fullmatch(r"DyConv\.([012])\.(conv|bn)\.(weight|bias)", rest):
        norm = "norm." if m[2] == "bn" else ""
        return f"{_BRANCHES[m[1]]}.{norm}{m[3]}"
    if m := re.fullmatch(r"AttnConv\.1\.(weight|bias)", rest):
        return f"attention.{m[1]}"
    if rest.startswith(("offset.", "relu.fc.")):
        return rest
    raise KeyError(name)


def to_released_name(name: str, config: GlipConfig) -> str:
    """The released name of one of this model's parameters: the inverse of `to_ours`."""
    per_block = 3 if config.fusion else 1
    if m := re.fullmatch(r"head\.blocks\.(\d+)\.(fusion|text_layer|conv)\.(.+)", name):
        part = ("fusion", "text_layer", "conv").index(m[2]) if config.fusion else 0
        return f"rpn.head.dyhead_tower.{int(m[1]) * per_block + part}.{_released_inside(m[2], m[3])}"
    first = config.fpn_in_stages[0] - 1
    if m := re.fullmatch(r"neck\.(lateral|output|extra)\.(\d+)\.(weight|bias)", name):
        if m[1] == "extra":
            return f"backbone.fpn.top_blocks.p{int(m[2]) + config.fpn_in_stages[-1] + 1}.{m[3]}"
        kind = {"lateral": "inner", "output": "layer"}[m[1]]
        return f"backbone.fpn.fpn_{kind}{int(m[2]) + first}.{m[3]}"
    for ours, theirs in (
        ("backbone.", "backbone.body."), ("text_encoder.", "language_backbone.body.model."), ("head.", "rpn.head."),
    ):  # fmt: skip
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)


def _released_inside(kind: str, rest: str) -> str:
    if kind == "fusion":
        return f"b_attn.{rest}"
    if kind == "text_layer":
        return rest
    if m := re.fullmatch(r"(upper|same|lower)\.(norm\.)?(weight|bias)", rest):
        branch = {ours: theirs for theirs, ours in _BRANCHES.items()}[m[1]]
        return f"DyConv.{branch}.{'bn' if m[2] else 'conv'}.{m[3]}"
    if m := re.fullmatch(r"attention\.(weight|bias)", rest):
        return f"AttnConv.1.{m[1]}"
    return rest


def released_names(config: GlipConfig) -> dict[str, tuple[int, ...]]:
    """Every entry that a released checkpoint of this network has, with its shape; derived ones included."""
    with torch.device("meta"), no_init_weights():
        own = GlipForObjectDetection(config).state_dict()
    names = {}
    for name, tensor in own.items():
        shape = tuple(tensor.shape)
        released = to_released_name(name, config)
        if (released.startswith(_CONVOLUTIONS_1X1) and len(shape) == 2) or re.search(r"AttnConv\.1\.weight$", released):
            shape = (*shape, 1, 1)
        names[released] = shape
        if name.endswith("relative_position_bias_table"):
            window = config.backbone_config.window_size**2
            names[released.replace("bias_table", "index")] = (window, window)
    for level in range(config.num_feature_levels):
        names[f"rpn.anchor_generator.cell_anchors.{level}"] = (1, 4)
    return names
