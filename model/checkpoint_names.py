"""Names of the released GLIP checkpoints and of this model's parameters, one to one."""

from __future__ import annotations

import re

from .configuration_glip import GlipConfig

_BRANCHES = {"0": "upper", "1": "same", "2": "lower"}


def to_ours(name: str, config: GlipConfig) -> str | None:
    """This model's name of a released entry; None for entries that are derived, not learned.

    Derived are the anchors and the windows' position indices. Raises KeyError for a name that GLIP does not have.
    `name` has no "module." prefix.
    """
    if re.fullmatch(r"rpn\.anchor_generator\.cell_anchors\.\d+", name) or name.endswith(
        ".relative_position_index"
    ):
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
