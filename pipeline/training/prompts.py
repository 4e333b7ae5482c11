"""Records become prompts when they are loaded: class names joined for detection, captions for grounding.

GLIP paper section 3.1 and appendix C.1; GLIP spec 9.2 and 16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from model.grounding import clean_name
from pipeline.config import NoisyLabelConfig, PromptConfig
from pipeline.errors import InputError
from pipeline.records import GroundingRecord, Span

TokenCount = Callable[[str], int]
SEPARATOR = ". "


@dataclass
class Prompted:
    """One image's caption and targets: ``boxes`` (n, 4) xyxy pixels with ``spans``, ``weights``, ``regress`` per box.

    ``ignore_boxes`` (m, 4) are neither positive nor negative; ``uncertain`` spans are not taught as absent.
    ``lost`` counts boxes that had no room in the prompt.
    """

    caption: str
    boxes: np.ndarray
    spans: list[list[Span]]
    weights: np.ndarray
    regress: np.ndarray
    ignore_boxes: np.ndarray
    uncertain: list[Span] = field(default_factory=list)
    lost: int = 0


def detection_prompt(
    record: GroundingRecord,
    label_space: Sequence[str],
    config: PromptConfig,
    rng: np.random.Generator,
    *,
    token_count: TokenCount,
    max_tokens: int,
) -> Prompted:
    """A detection record with its present class names and drawn absent ones, shuffled, joined by ". ".

    Present names are placed first while they fit ``max_tokens`` (less [CLS] and [SEP]); absent ones fill what room
    is left. In a federated set only names verified absent are used as negatives.

    Raises:
        InputError: the record names a class that is not in its set's label space.
    """
    known = set(label_space)
    present = list(dict.fromkeys(r.phrase for r in record.regions if not r.ignore))
    for name in present:
        if name not in known:
            raise InputError(f"record {record.key}: class {name!r} is not among the {len(known)} of {record.dataset}")
    room = max_tokens - 2
    chosen: list[str] = []
    for i in rng.permutation(len(present)):
        cost = token_count(clean_name(present[i]) + SEPARATOR)
        if cost <= room:
            chosen.append(present[i])
            room -= cost
    for name in _negatives(record, present, label_space, config, rng):
        cost = token_count(clean_name(name) + SEPARATOR)
        if cost >= room:
            break
        chosen.append(name)
        room -= cost
    order = [chosen[i] for i in rng.permutation(len(chosen))]
    caption, spans = "", {}
    for name in order:
        caption += SEPARATOR if caption else ""
        text = clean_name(name)
        spans[name] = (len(caption), len(caption) + len(text))
        caption += text
    regions = [r for r in record.regions if not r.ignore and r.phrase in spans]
    lost = sum(not r.ignore and r.phrase not in spans for r in record.regions)
    return Prompted(
        caption=caption,
        boxes=_boxes([r.box for r in regions]),
        spans=[[spans[r.phrase]] for r in regions],
        weights=np.ones(len(regions), np.float32),
        regress=np.ones(len(regions), bool),
        ignore_boxes=_boxes([r.box for r in record.regions if r.ignore]),
        lost=lost,
    )


def _negatives(
    record: GroundingRecord,
    present: Sequence[str],
    label_space: Sequence[str],
    config: PromptConfig,
    rng: np.random.Generator,
) -> list[str]:
    if config.max_negatives == 0:
        return []
    full = rng.random() < config.full_negatives_share
    wanted = config.max_negatives if full else int(rng.integers(1, config.max_negatives + 1))
    pool = list(label_space) if record.verified_absent is None else list(record.verified_absent)
    if config.background_class:
        pool.append("__background__")
    taken = set(present)
    if not config.discard_after_drawing:
        pool = [name for name in pool if name not in taken]
    drawn = [pool[i] for i in rng.permutation(len(pool))[:wanted]]
    return [name for name in drawn if name not in taken]


def grounding_prompt(
    record: GroundingRecord,
    noisy: NoisyLabelConfig,
    rng: np.random.Generator,
    *,
    other_caption: Callable[[np.random.Generator], str] | None = None,
    token_count: TokenCount,
    max_tokens: int,
) -> Prompted:
    """A grounding record's caption and regions, human or pseudo; pseudo ones treated as ``noisy`` says.

    With ``other_caption`` and ``noisy.caption_negatives`` captions of other images are packed around the record's own
    (GLIP spec 16): names of things that are, most likely, not in this picture.
    """
    assert record.caption is not None
    kept = [r for r in record.regions if not r.ignore]
    scores = np.array([1.0 if r.score is None else r.score for r in kept], np.float32)
    weights = scores if noisy.score_weight else np.ones_like(scores)
    caption, shift = record.caption, 0
    pseudo = any(r.annotator for r in record.regions) or bool(record.uncertain)
    if pseudo and other_caption is not None and rng.random() < noisy.caption_negatives:
        caption, shift = _pack(record.caption, noisy, rng, other_caption, token_count, max_tokens)
    return Prompted(
        caption=caption,
        boxes=_boxes([r.box for r in kept]),
        spans=[[(s + shift, e + shift) for s, e in r.tokens_positive] for r in kept],
        weights=weights.astype(np.float32),
        regress=scores >= noisy.regress_above,
        ignore_boxes=_boxes([r.box for r in record.regions if r.ignore]),
        uncertain=[(s + shift, e + shift) for s, e in record.uncertain] if noisy.ignore_uncertain else [],
    )


def _pack(
    own: str,
    noisy: NoisyLabelConfig,
    rng: np.random.Generator,
    other_caption: Callable[[np.random.Generator], str],
    token_count: TokenCount,
    max_tokens: int,
) -> tuple[str, int]:
    room = max_tokens - 2 - token_count(_closed(own))
    pieces: list[str | None] = [None]
    for _ in range(int(rng.integers(1, noisy.max_caption_negatives + 1))):
        text = _closed(other_caption(rng))
        cost = token_count(text)
        if cost > room:
            break
        room -= cost
        pieces.append(text)
    caption, shift = "", 0
    for i in rng.permutation(len(pieces)):
        piece = pieces[i]
        if piece is None:
            shift = len(caption)
            piece = _closed(own)
        caption += piece
    return caption.rstrip(), shift


def _closed(caption: str) -> str:
    return caption if caption.endswith(". ") else (caption + " " if caption.endswith(".") else caption + ". ")


def _boxes(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    return np.asarray(boxes, np.float32).reshape(-1, 4)
