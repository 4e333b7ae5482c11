"""A batch's labels in one place: concatenated, checked, cut or padded to the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Targets:
    """Labels of B images with G boxes in all, over T tokens.

    boxes (G, 4) xyxy pixels; image_index (G,); positive_map (G, T) 0/1; weights (G,); regress (G,) bool;
    token_keep (B, T) 1 where an absent token is taught as absent, or None: everywhere;
    ignore_boxes: per image (m, 4) or None.
    """

    boxes: Tensor
    image_index: Tensor
    positive_map: Tensor
    weights: Tensor
    regress: Tensor
    token_keep: Tensor | None
    ignore_boxes: list[Tensor | None]


def collect_targets(labels: list[dict[str, Any]], tokens: int, device: torch.device) -> Targets:
    """Labels of a batch (see `GlipForObjectDetection.forward`) -> Targets.

    Raises ValueError that names the image when shapes within a label disagree.
    """
    boxes, maps, weights, regress, keeps, ignore = [], [], [], [], [], []
    for i, label in enumerate(labels):
        box = torch.as_tensor(label["boxes"], dtype=torch.float32, device=device).reshape(-1, 4)
        n = box.shape[0]
        positive = torch.as_tensor(label["positive_map"], device=device)
        if positive.dim() != 2 or positive.shape[0] != n:
            raise ValueError(f"labels[{i}]: positive_map {tuple(positive.shape)} has not one row for each of {n} boxes")
        weight, teach = _optional(label, "weights", device), _optional(label, "regress", device)
        weight = torch.ones(n, device=device) if weight is None else weight.float()
        teach = torch.ones(n, dtype=torch.bool, device=device) if teach is None else teach.bool()
        if weight.shape != (n,) or teach.shape != (n,):
            raise ValueError(
                f"labels[{i}]: weights {tuple(weight.shape)} and regress {tuple(teach.shape)} must be ({n},)"
            )
        skip, area = _optional(label, "token_ignore", device), _optional(label, "ignore_boxes", device)
        boxes.append(box)
        maps.append(_fit(positive > 0, tokens))
        weights.append(weight)
        regress.append(teach)
        keeps.append(None if skip is None else ~_fit(skip.bool()[None], tokens)[0])
        ignore.append(None if area is None or area.numel() == 0 else area.float().reshape(-1, 4))
    keep = None
    if any(k is not None for k in keeps):
        everything = torch.ones(tokens, dtype=torch.bool, device=device)
        keep = torch.stack([everything if k is None else k for k in keeps]).float()
    counts = torch.tensor([b.shape[0] for b in boxes])
    image_index = torch.repeat_interleave(torch.arange(len(labels)), counts).to(device)
    return Targets(
        torch.cat(boxes),
        image_index,
        torch.cat(maps).float(),
        torch.cat(weights),
        torch.cat(regress),
        keep,
        ignore,
    )


def _optional(label: dict[str, Any], key: str, device: torch.device) -> Tensor | None:
    value = label.get(key)
    return None if value is None else torch.as_tensor(value, device=device)


def _fit(x: Tensor, tokens: int) -> Tensor:
    return x[:, :tokens] if x.shape[1] >= tokens else F.pad(x, (0, tokens - x.shape[1]))
