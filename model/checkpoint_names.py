"""Names of the released GLIP checkpoints' entries and of this model's parameters, one to one."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from transformers.initialization import no_init_weights

from .configuration_glip import GlipConfig
from .modeling_glip import GlipForObjectDetection

# Linear layers here that are 1x1 convolutions in the released network
_CONVOLUTIONS_1X1 = re.compile(r"\.(bbox_pred|centerness|cls_logits|AttnConv\.1)\.weight$")
TUNED_PROMPT = "rpn.tunable_linear.weight"  # only in prompt-tuned files (GLIP spec section 11)
_IN_DYNAMIC_CONV = {
    "": "", "attention.": "AttnConv.1.",
    "upper.": "DyConv.0.conv.", "same.": "DyConv.1.conv.", "lower.": "DyConv.2.conv.",
    "upper.norm.": "DyConv.0.bn.", "same.norm.": "DyConv.1.bn.", "lower.norm.": "DyConv.2.bn.",
}  # fmt: skip


class Entry(NamedTuple):
    """Shape of a released entry, and this model's parameter of it; None: derived, not learned."""

    shape: tuple[int, ...]
    ours: str | None = None
    our_shape: tuple[int, ...] = ()


def released_entries(config: GlipConfig) -> dict[str, Entry]:
    """List every entry of a released checkpoint of this network by its name, without "module.".

    Derived are the anchors and the windows' position indices. Source: GLIP spec section 14.
    """
    with torch.device("meta"), no_init_weights():
        own = GlipForObjectDetection(config).state_dict()
    prefixes, entries = _prefixes(config), {}
    for name, tensor in own.items():
        prefix = max((p for p in prefixes if name.startswith(p)), key=len)
        released, shape = prefixes[prefix] + name.removeprefix(prefix), tuple(tensor.shape)
        entries[released] = Entry((*shape, 1, 1) if _CONVOLUTIONS_1X1.search(released) else shape, name, shape)
        if name.endswith("relative_position_bias_table"):
            entries[released.replace("bias_table", "index")] = Entry((config.backbone_config.window_size**2,) * 2)
    for level in range(config.num_feature_levels):
        entries[f"rpn.anchor_generator.cell_anchors.{level}"] = Entry((1, 4))
    return entries


def _prefixes(config: GlipConfig) -> dict[str, str]:
    """Map prefixes of this model's names to released ones; the longest that fits a name counts."""
    table = {
        "tuned_prompt": TUNED_PROMPT,
        "backbone.": "backbone.body.",
        "text_encoder.": "language_backbone.body.model.",
        "head.": "rpn.head.",
    }
    for i, stage in enumerate(config.fpn_in_stages):  # the released pyramid numbers its layers from 2, for stage 3
        table[f"neck.lateral.{i}."] = f"backbone.fpn.fpn_inner{stage - 1}."
        table[f"neck.output.{i}."] = f"backbone.fpn.fpn_layer{stage - 1}."
    for i in range(config.num_feature_levels - len(config.fpn_in_stages)):
        table[f"neck.extra.{i}."] = f"backbone.fpn.top_blocks.p{config.fpn_in_stages[-1] + 1 + i}."
    parts = ("fusion", "text_layer", "conv") if config.fusion else ("conv",)
    for i in range(config.num_blocks * len(parts)):
        part = parts[i % len(parts)]
        inside = {"fusion": {"": "b_attn."}, "conv": _IN_DYNAMIC_CONV}.get(part, {"": ""})
        for ours, theirs in inside.items():
            table[f"head.blocks.{i // len(parts)}.{part}.{ours}"] = f"rpn.head.dyhead_tower.{i}.{theirs}"
    return table
