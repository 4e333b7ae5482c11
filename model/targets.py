"""Labels of a batch as tensors: concatenated, checked, cut or padded to the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

KEYS = ("boxes", "positive_map", "weights", "regress", "token_ignore", "ignore_boxes")
# Keys of transformers' detection labels that say nothing about the loss
IGNORED_KEYS = ("class_labels", "image_id", "area", "iscrowd", "orig_size", "size")


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


def collect_targets(
    labels: list[dict[str, Any]], tokens: int, device: torch.device, image_sizes: Tensor | None = None
) -> Targets:
    """Collect a batch's labels (see `GlipForObjectDetection.forward`) over T = `tokens` tokens.

    image_sizes (B, 2): unpadded height, width. Raises ValueError that names the image when shapes
    within a label disagree, or a box is not finite, reversed, normalised or outside its image.
    """
    boxes, maps, weights, regress, keeps, ignore = [], [], [], [], [], []
    for i, label in enumerate(labels):
        _check_keys(i, label)
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
    counts = [len(b) for b in boxes]
    targets = Targets(
        torch.cat(boxes),
        torch.arange(len(labels)).repeat_interleave(torch.tensor(counts)).to(device),
        torch.cat(maps).float(),
        torch.cat(weights),
        torch.cat(regress),
        torch.cat(keeps).float() if any(label.get("token_ignore") is not None for label in labels) else None,
        ignore,
    )
    _check_boxes(targets, counts, image_sizes)
    return targets


def _check_keys(image: int, label: dict[str, Any]) -> None:
    if "class_labels" in label and label.get("positive_map") is None:
        raise ValueError(
            f"labels[{image}]: found class_labels; want positive_map: GLIP's classes are the caption's words, so a box "
            "names its tokens (model.grounding: phrase_tokens, positive_map)"
        )
    missing = [k for k in KEYS[:2] if label.get(k) is None]
    unknown = sorted(set(label) - {*KEYS, *IGNORED_KEYS})
    if missing or unknown:
        raise ValueError(f"labels[{image}]: found {', '.join(map(str, label)) or 'nothing'}; want {', '.join(KEYS)}")


def _check_boxes(targets: Targets, counts: list[int], image_sizes: Tensor | None) -> None:
    """Raise ValueError for boxes that cannot be xyxy pixels of their image; one wait for the device."""
    boxes, image = targets.boxes, targets.image_index
    if not len(boxes):
        return
    in_unit = ((boxes >= 0) & (boxes <= 1)).all(1).float()
    normalised = in_unit.new_ones(len(counts)).scatter_reduce(0, image, in_unit, "amin")[image] > 0
    bad = [~boxes.isfinite().all(1), (boxes[:, 2:] < boxes[:, :2]).any(1), normalised]
    if image_sizes is not None:
        size = image_sizes.to(boxes.device)[image].flip(1)
        bad.append((boxes[:, :2] >= size).any(1) | (boxes[:, 2:] < 0).any(1))
    table = torch.stack(bad)
    if not table.any():
        return
    kind, row = (int(x[0]) for x in table.nonzero(as_tuple=True))
    why = ("not finite", "reversed", "normalised to the image", "outside the image")[kind]
    owner = int(image[row])
    within = "" if image_sizes is None else f" of {int(image_sizes[owner][1])} x {int(image_sizes[owner][0])}"
    raise ValueError(
        f"labels[{owner}]: boxes[{row - sum(counts[:owner])}]: found {boxes[row].tolist()}, {why}; want x1, y1, x2, y2 "
        f"in pixels of the resized image{within}"
    )


def _fit(x: Tensor, tokens: int) -> Tensor:
    return F.pad(x, (0, tokens - x.shape[1]))  # a negative pad cuts
