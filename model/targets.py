"""Labels of a batch as tensors: concatenated, checked, cut or padded to the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Shapes of a label's keys, for its n boxes
SHAPES: dict[str, tuple[int | str, ...]] = {
    "boxes": ("n", 4), "positive_map": ("n", "T"), "weights": ("n",), "regress": ("n",), "token_ignore": ("T",),
    "ignore_boxes": ("m", 4),
}  # fmt: skip
FLAGS = ("regress", "token_ignore")
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


def check_shape(name: str, value: Tensor, want: Sequence[int | str], note: str = "", least: int = 0) -> None:
    """Raise ValueError unless a tensor has the sizes `want`; a letter stands for any from `least`."""
    if value.dim() != len(want) or any(s < least if isinstance(w, str) else s != w for w, s in zip(want, value.shape)):
        wanted = f"({', '.join(map(str, want))}{',' * (len(want) == 1)})"
        raise ValueError(f"{name}: found {tuple(value.shape)}; want {wanted}{note and f', {note}'}")


def collect_targets(
    labels: Sequence[Mapping[str, Any]],
    tokens: int,
    device: torch.device,
    image_sizes: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Targets:
    """Collect a batch's labels (see `GlipForObjectDetection.forward`) over T = `tokens` tokens.

    image_sizes (B, 2): unpadded height, width; attention_mask (B, T). Raises ValueError that names
    the image when shapes within a label disagree, a box is not finite, reversed, normalised or for
    the most part outside its image, a weight is negative, or a box's tokens are padding.
    """
    if attention_mask is None:
        attention_mask = torch.ones(len(labels), tokens)
    rows: list[dict[str, Tensor]] = []
    stray = []
    for i, label in enumerate(labels):
        given = _tensors(i, label, device)
        n = len(given["boxes"])
        row = {
            "weights": torch.ones(n, device=device),
            "regress": torch.ones(n, device=device, dtype=torch.bool),
            "token_ignore": torch.zeros(tokens, device=device, dtype=torch.bool),
            "ignore_boxes": torch.zeros(0, 4, device=device),
            **given,
        }
        named, mask = row["positive_map"], attention_mask[i].to(device)
        # a caption that fills T may have been cut, and the tokens of its boxes with it
        mask = torch.cat([mask, mask[-1:].expand(max(named.shape[1] - tokens, 0))])[: named.shape[1]]
        stray.append(((named > 0) & (mask == 0)).any(1))
        row["token_ignore"] = _fit(row["token_ignore"][None], tokens)
        row["positive_map"] = _fit(named, tokens)
        rows.append(row)
    joined = {k: torch.cat([row[k] for row in rows]) for k in SHAPES}
    counts = {k: torch.tensor([len(row[k]) for row in rows]) for k in ("boxes", "ignore_boxes")}
    owners = {k: torch.arange(len(rows)).repeat_interleave(c).to(device) for k, c in counts.items()}
    maps, weights = joined["positive_map"], joined["weights"]
    wrong = {
        ("positive_map", "not 0 to 1"): ~((maps >= 0) & (maps <= 1)).all(1),
        ("positive_map", "at tokens of the caption's padding"): torch.cat(stray),
        ("weights", "negative"): weights < 0,  # those that are not finite end in a NonFiniteLossError
    }
    for name, sizes in (("boxes", image_sizes), ("ignore_boxes", None)):
        found = _wrong_boxes(joined[name], owners[name], len(labels), sizes)
        wrong |= {(name, why): rows for why, rows in found.items()}
    if torch.stack([rows.any() for rows in wrong.values()]).any():  # one wait for the device
        _refuse(wrong, joined, owners, image_sizes)
    return Targets(
        joined["boxes"],
        owners["boxes"],
        (maps > 0).float(),
        weights,
        joined["regress"],
        (~joined["token_ignore"]).float() if any(label.get("token_ignore") is not None for label in labels) else None,
        [row["ignore_boxes"] if len(row["ignore_boxes"]) else None for row in rows],
    )


def _tensors(image: int, label: Any, device: torch.device) -> dict[str, Tensor]:
    """Make the tensors of one label; raises ValueError for unsupported keys, types and shapes."""
    if not isinstance(label, Mapping):
        raise ValueError(f"labels[{image}]: found {type(label).__name__}; want a dict of {', '.join(SHAPES)}")
    if "class_labels" in label and label.get("positive_map") is None:
        raise ValueError(
            f"labels[{image}]: found class_labels; want positive_map: GLIP's classes are the caption's words, so a box "
            "names its tokens (model.grounding: phrase_tokens, positive_map)"
        )
    missing = [k for k in ("boxes", "positive_map") if label.get(k) is None]
    if missing or set(label) - {*SHAPES, *IGNORED_KEYS}:
        raise ValueError(f"labels[{image}]: found {', '.join(map(str, label)) or 'nothing'}; want {', '.join(SHAPES)}")
    given: dict[str, Tensor] = {}
    for key, shape in SHAPES.items():
        if (value := label.get(key)) is None:
            continue
        name = f"labels[{image}]: {key}"
        try:
            tensor = torch.as_tensor(value, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name}: found {type(value).__name__}, {error}; want numbers") from error
        n = len(given["boxes"]) if given else "n"
        want = [n if size == "n" else size for size in shape]
        if not tensor.numel() and (tensor.dim() == 1 or "boxes" in key) and want[0] in (0, "n", "m"):
            tensor = tensor.reshape(0, *(size if isinstance(size, int) else 0 for size in want[1:]))
        check_shape(name, tensor, want, f"for {n} boxes" if n in want else "")
        if key in FLAGS and tensor.dtype != torch.bool and tensor.numel():
            raise ValueError(f"{name}: found {tensor.dtype}; want torch.bool")
        given[key] = tensor.bool() if key in FLAGS else tensor.float()
    return given


def _wrong_boxes(boxes: Tensor, image: Tensor, images: int, image_sizes: Tensor | None) -> dict[str, Tensor]:
    """Find boxes (n, 4) that cannot be xyxy pixels of their image (n,): {why: (n,) bool}."""
    in_unit = ((boxes >= 0) & (boxes <= 1)).all(1).float()
    wrong = {
        "not finite": ~boxes.isfinite().all(1),
        "reversed": (boxes[:, 2:] < boxes[:, :2]).any(1),
        "normalised to the image": in_unit.new_ones(images).scatter_reduce(0, image, in_unit, "amin")[image] > 0,
    }
    if image_sizes is not None:
        size, sides = image_sizes.to(boxes.device)[image].flip(1), boxes[:, 2:] - boxes[:, :2]
        inside = (torch.minimum(boxes[:, 2:], size) - boxes[:, :2].clamp(min=0)).clamp(min=0)
        wrong["outside the image"] = ((boxes[:, :2] >= size) | (boxes[:, 2:] < 0)).any(1)
        large = (sides > _EDGE).all(1)  # the resize moves a thin box at the edge over it by up to a pixel
        wrong["mostly outside the image"] = large & (2 * inside.prod(1) < sides.prod(1))
    return wrong


_EDGE = 8
"""Pixels: boxes with a shorter side may lie across the image's edge."""


def _refuse(
    wrong: dict[tuple[str, str], Tensor],
    values: dict[str, Tensor],
    owners: dict[str, Tensor],
    image_sizes: Tensor | None,
) -> None:
    """Raise ValueError for the first row that is wrong, naming its image."""
    name, why = next(kind for kind, found in wrong.items() if found.any())
    row, owner_of = int(wrong[name, why].nonzero()[0]), owners.get(name, owners["boxes"])
    owner = int(owner_of[row])
    size = "" if image_sizes is None else f" of {int(image_sizes[owner][1])} x {int(image_sizes[owner][0])}"
    want = {
        "positive_map": "1 at the tokens of the box's words in its own caption, else 0",
        "weights": "a factor of the box's losses, 0 or more",
    }.get(name, f"x1, y1, x2, y2 in pixels of the resized image{size}")
    place = row - int((owner_of < owner).sum())
    raise ValueError(f"labels[{owner}]: {name}[{place}]: found {values[name][row].tolist()}, {why}; want {want}")


def _fit(x: Tensor, tokens: int) -> Tensor:
    return F.pad(x, (0, tokens - x.shape[1]))  # a negative pad cuts
