"""Labels of a batch as tensors: concatenated, checked, cut or padded to the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

KEYS = ("boxes", "positive_map", "weights", "regress", "token_ignore", "ignore_boxes")


@dataclass
class Targets:
    """Labels of B images with G boxes in all, over T tokens.

    boxes (G, 4) xyxy pixels; image_index (G,); positive_map (G, T) 0/1; weights (G,); regress (G,)
    bool; token_keep (B, T) 1 where an absent token is a negative, None: everywhere; ignore_boxes:
    per image (m, 4) or None.
    """

    boxes: Tensor
    image_index: Tensor
    positive_map: Tensor
    weights: Tensor
    regress: Tensor
    token_keep: Tensor | None
    ignore_boxes: list[Tensor | None]

    def rows(self, image: int) -> Tensor:
        """Indices of the boxes of one image."""
        return (self.image_index == image).nonzero().flatten()


def collect_targets(labels: list[dict[str, Any]], tokens: int, device: torch.device) -> Targets:
    """Collect a batch's labels (see `GlipForObjectDetection.forward`) over T = `tokens` tokens.

    Raises ValueError that names the image when shapes within a label disagree.
    """
    boxes, maps, weights, regress, keeps, ignore = [], [], [], [], [], []
    for i, label in enumerate(labels):
        given = {k: torch.as_tensor(label[k], device=device) for k in KEYS if label.get(k) is not None}
        box = given["boxes"].float().reshape(-1, 4)
        n, positive, area = len(box), given["positive_map"], given.get("ignore_boxes")
        if positive.dim() != 2 or positive.shape[0] != n:
            raise ValueError(f"labels[{i}]: positive_map {tuple(positive.shape)} has not one row for each of {n} boxes")
        weight = given.get("weights", torch.ones(n, device=device)).float()
        teach = given.get("regress", torch.ones(n, device=device)).bool()
        if weight.shape != (n,) or teach.shape != (n,):
            raise ValueError(
                f"labels[{i}]: weights {tuple(weight.shape)} and regress {tuple(teach.shape)} must be ({n},)"
            )
        boxes.append(box)
        maps.append(_fit(positive > 0, tokens))
        weights.append(weight)
        regress.append(teach)
        skip = given.get("token_ignore", torch.zeros(tokens, device=device)).bool()
        keeps.append(~_fit(skip[None], tokens))
        ignore.append(None if area is None or area.numel() == 0 else area.float().reshape(-1, 4))
    return Targets(
        torch.cat(boxes),
        torch.arange(len(labels)).repeat_interleave(torch.tensor([len(b) for b in boxes])).to(device),
        torch.cat(maps).float(),
        torch.cat(weights),
        torch.cat(regress),
        torch.cat(keeps).float() if any(label.get("token_ignore") is not None for label in labels) else None,
        ignore,
    )


def _fit(x: Tensor, tokens: int) -> Tensor:
    return F.pad(x, (0, tokens - x.shape[1]))  # a negative pad cuts
