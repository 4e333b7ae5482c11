"""Records become prompts when they are loaded: class names joined for detection, captions for grounding.

GLIP paper section 3.1 and appendix C.1; GLIP spec 9.2 and 16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from model.grounding import clean_name
from pipeline.config import NoisyLabelConfig, PromptConfig
from pipeline.data.records import GroundingRecord, Region, Span
from pipeline.errors import InputError

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
    is left. In a federated set only names verified absent are used as negatives, in others all but those of which more is there than is boxed.

    Raises:
        InputError: the record names a class that is not in its set's label space.
    """
    known = set(label_space)
    named = [(r, r.phrase) for r in record.regions if not r.ignore]
    for _, name in named:
        if name not in known:
            raise InputError(f"record {record.key}: class {name!r} is not among the {len(known)} of {record.dataset}")
    absent = _negatives(record, {name for _, name in named}, label_space, config, rng)
    return _class_prompt(record, named, absent, NoisyLabelConfig(), rng, token_count, max_tokens)


def names_prompt(
    record: GroundingRecord,
    config: PromptConfig,
    noisy: NoisyLabelConfig,
    rng: np.random.Generator,
    *,
    other_names: Iterable[str],
    token_count: TokenCount,
    max_tokens: int,
) -> Prompted:
    """A pseudo-labelled record as a detection prompt: the head nouns of its boxes, and absent ones of other images.

    Without the caption's attributes a word must be known by itself, and so will classes be asked for later (DetCLIP,
    arXiv 2209.09407: the parallel formulation). A name that stands anywhere in the record's own caption, boxed or not,
    is never a negative. A region without a root has no place in the prompt and is counted as ``lost``.
    """
    own, wanted = (record.caption or "").lower(), _wanted(config, rng)
    absent: dict[str, None] = {}
    for name in other_names:
        if len(absent) == wanted:
            break
        if name not in own:
            absent[name] = None
    named = [(r, r.root) for r in record.regions if not r.ignore]
    return _class_prompt(record, named, [*absent], noisy, rng, token_count, max_tokens)


def _class_prompt(
    record: GroundingRecord,
    named: Sequence[tuple[Region, str | None]],
    absent: Sequence[str],
    noisy: NoisyLabelConfig,
    rng: np.random.Generator,
    token_count: TokenCount,
    max_tokens: int,
) -> Prompted:
    """Regions with their names, and absent names while there is room, shuffled.

    Names that read alike ("bow (weapon)", "bow (decorative ribbons)") are one: the model could not tell them apart.
    """
    texts = [(region, clean_name(name) if name else None) for region, name in named]
    present = list(dict.fromkeys(text for _, text in texts if text))
    room = max_tokens - 2
    chosen: list[str] = []
    for i in rng.permutation(len(present)):
        cost = token_count(present[i] + SEPARATOR)
        if cost <= room:
            chosen.append(present[i])
            room -= cost
    for text in map(clean_name, absent):
        cost = token_count(text + SEPARATOR)
        if cost >= room:
            break
        if text not in present:
            chosen.append(text)
            room -= cost
    caption, spans = "", {}
    for i in rng.permutation(len(chosen)):
        caption += SEPARATOR if caption else ""
        spans[chosen[i]] = (len(caption), len(caption) + len(chosen[i]))
        caption += chosen[i]
    asked = [(region, spans[text]) for region, text in texts if text in spans]
    weights, regress = _trust([region for region, _ in asked], noisy)
    return Prompted(
        caption=caption,
        boxes=_boxes([region.box for region, _ in asked]),
        spans=[[span] for _, span in asked],
        weights=weights,
        regress=regress,
        ignore_boxes=_boxes([r.box for r in record.regions if r.ignore]),
        lost=len(named) - len(asked),
    )


def _trust(regions: Sequence[Region], noisy: NoisyLabelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the regions' losses, and whether their boxes are learnt; human labels count in full."""
    scores = np.array([1.0 if r.score is None else r.score for r in regions], np.float32)
    return scores if noisy.score_weight else np.ones_like(scores), scores >= noisy.regress_above


def _wanted(config: PromptConfig, rng: np.random.Generator) -> int:
    """How many negatives a prompt shall have."""
    if config.max_negatives == 0 or rng.random() < config.full_negatives_share:
        return config.max_negatives
    return int(rng.integers(1, config.max_negatives + 1))


def _negatives(
    record: GroundingRecord,
    present: Set[str],
    label_space: Sequence[str],
    config: PromptConfig,
    rng: np.random.Generator,
) -> list[str]:
    wanted = _wanted(config, rng)
    pool = list(label_space) if record.verified_absent is None else list(record.verified_absent)
    if record.not_exhaustive:
        open_ = set(record.not_exhaustive)
        pool = [name for name in pool if name not in open_]
    if config.background_class:
        pool.append("__background__")
    if not config.discard_after_drawing:
        pool = [name for name in pool if name not in present]
    drawn = [pool[i] for i in rng.permutation(len(pool))[:wanted]]
    return [name for name in drawn if name not in present]


def is_pseudo(record: GroundingRecord) -> bool:
    """Whether a teacher, not a human, labelled the record; human records have ``uncertain`` spans too (Flickr30k's scenes)."""
    return any(r.annotator for r in record.regions)


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
    weights, regress = _trust(kept, noisy)
    caption, shift = record.caption, 0
    if is_pseudo(record) and other_caption is not None and rng.random() < noisy.caption_negatives:
        caption, shift = _pack(record.caption, noisy, rng, other_caption, token_count, max_tokens)
    return Prompted(
        caption=caption,
        boxes=_boxes([r.box for r in kept]),
        spans=[[(s + shift, e + shift) for s, e in r.tokens_positive] for r in kept],
        weights=weights,
        regress=regress,
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
    wanted = noisy.max_caption_negatives
    if not (noisy.full_caption_share and rng.random() < noisy.full_caption_share):
        wanted = int(rng.integers(1, wanted + 1))
    for _ in range(wanted):
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
