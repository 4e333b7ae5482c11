"""Builds prompts from records: joined class names for detection, captions for grounding.

GLIP paper section 3.1 and appendix C.1; GLIP spec 9.2 and 16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np

from model.grounding import clean_name
from pipeline.config import NoisyLabelConfig, PromptConfig
from pipeline.data.records import GroundingRecord, Region, Span
from pipeline.errors import InputError
from pipeline.training.hard_negatives import hard_negatives

TokenCount = Callable[[str], int]
SEPARATOR = ". "


@dataclass
class Prompted:
    """One image's caption and targets.

    ``boxes`` (n, 4) xyxy in pixels; ``spans``: of the caption, by box; ``weights`` (n,): factors of
    the losses; ``regress`` (n,) bool: whether to train box regression. ``ignore_boxes`` (m, 4) are
    neither positive nor negative. ``uncertain`` spans are not negatives either. ``lost`` counts
    boxes whose name did not fit into the prompt.
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
    noisy: NoisyLabelConfig = NoisyLabelConfig(),
) -> Prompted:
    """A detection record's prompt: its classes and sampled absent ones, shuffled, joined by ". ".

    Present names are added first while they fit into ``max_tokens`` (less [CLS] and [SEP]); absent
    ones fill the rest. Negatives of a federated set are names verified absent; of other sets, all
    names but those not annotated exhaustively, which include a teacher's uncertain ones (unless
    ``noisy.ignore_uncertain`` is off).

    Raises:
        InputError: a class of the record is not in its set's label space.
    """
    known = set(label_space)
    regions = [(r, r.phrase) for r in record.regions if not r.ignore]
    for _, name in regions:
        if name not in known:
            raise InputError(f"record {record.key}: class {name!r} is not among the {len(known)} of {record.dataset}")
    given = record
    if is_pseudo(record) and not noisy.ignore_uncertain:
        given = record.model_copy(update={"not_exhaustive": None})
    absent = _negatives(given, {name for _, name in regions}, label_space, config, rng)
    return _class_prompt(record, regions, absent, noisy, rng, token_count, max_tokens)


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
    """A pseudo-labelled record's detection prompt: its head nouns, and those of other images.

    Without the caption's attributes the noun must be grounded by itself, as class names will be at
    test time (the parallel formulation of DetCLIP, arXiv 2209.09407). A noun that occurs anywhere
    in the record's own caption, boxed or not, is never a negative. Regions without a root count as
    ``lost``.
    """
    caption, limit = (record.caption or "").lower(), _negative_count(config, rng)
    absent: dict[str, None] = {}
    for name in other_names:
        if len(absent) == limit:
            break
        if name not in caption:
            absent[name] = None
    regions = [(r, r.root) for r in record.regions if not r.ignore]
    return _class_prompt(record, regions, [*absent], noisy, rng, token_count, max_tokens)


def phrases_prompt(
    record: GroundingRecord,
    config: PromptConfig,
    noisy: NoisyLabelConfig,
    rng: np.random.Generator,
    *,
    other_nouns: Iterable[str],
    token_count: TokenCount,
    max_tokens: int,
) -> Prompted:
    """A grounding record's prompt made of its phrases and of hard negatives, shuffled, joined by ". "."""
    regions = [(r, r.phrase) for r in record.regions if not r.ignore]
    absent = hard_negatives(record, other_nouns, config.hard_negatives, rng)
    return _class_prompt(record, regions, absent, noisy, rng, token_count, max_tokens)


def _class_prompt(
    record: GroundingRecord,
    regions: Sequence[tuple[Region, str | None]],
    absent: Sequence[str],
    noisy: NoisyLabelConfig,
    rng: np.random.Generator,
    token_count: TokenCount,
    max_tokens: int,
) -> Prompted:
    """Prompt of the regions' names, and of absent names while they fit, shuffled.

    Names with the same text ("bow (weapon)", "bow (decorative ribbons)") are merged: the model
    could not distinguish them.
    """
    texts = [(region, clean_name(name) if name else None) for region, name in regions]
    present = list(dict.fromkeys(text for _, text in texts if text))
    tokens_left = max_tokens - 2
    chosen: list[str] = []
    for i in rng.permutation(len(present)):
        cost = token_count(present[i] + SEPARATOR)
        if cost <= tokens_left:
            chosen.append(present[i])
            tokens_left -= cost
    for text in map(clean_name, absent):
        cost = token_count(text + SEPARATOR)
        if cost >= tokens_left:
            break
        if text not in present:
            chosen.append(text)
            tokens_left -= cost
    caption, spans = "", {}
    for i in rng.permutation(len(chosen)):
        caption += SEPARATOR if caption else ""
        spans[chosen[i]] = (len(caption), len(caption) + len(chosen[i]))
        caption += chosen[i]
    prompted = [(region, [spans[text]]) for region, text in texts if text in spans]
    return replace(_prompted(record, caption, prompted, noisy), lost=len(regions) - len(prompted))


def _prompted(
    record: GroundingRecord,
    caption: str,
    regions: Sequence[tuple[Region, list[Span]]],
    noisy: NoisyLabelConfig,
) -> Prompted:
    """Prompt with labelled regions and their spans; human labels have score 1."""
    scores = np.array([1.0 if r.score is None else r.score for r, _ in regions], np.float32)
    return Prompted(
        caption=caption,
        boxes=_boxes([region.box for region, _ in regions]),
        spans=[spans for _, spans in regions],
        weights=scores if noisy.score_weight else np.ones_like(scores),
        regress=scores >= noisy.regress_above,
        ignore_boxes=_boxes([r.box for r in record.regions if r.ignore]),
    )


def _negative_count(config: PromptConfig, rng: np.random.Generator) -> int:
    """Random number of negatives of a prompt."""
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
    count = _negative_count(config, rng)
    pool = list(label_space if record.verified_absent is None else record.verified_absent)
    if record.not_exhaustive:
        unverified = set(record.not_exhaustive)
        pool = [name for name in pool if name not in unverified]
    if config.background_class:
        pool.append("__background__")
    if not config.discard_after_drawing:
        pool = [name for name in pool if name not in present]
    drawn = [pool[i] for i in rng.permutation(len(pool))[:count]]
    return [name for name in drawn if name not in present]


def is_pseudo(record: GroundingRecord) -> bool:
    """Whether a teacher labelled the record; ``uncertain`` does not say, Flickr30k has it too."""
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
    """A grounding record's prompt: its caption; pseudo-labels are treated as set by ``noisy``.

    With ``other_caption`` and ``noisy.caption_negatives``, captions of other images are packed
    around the record's own (GLIP spec 16): phrases that are most likely absent from this image.
    """
    assert record.caption is not None
    caption, shift = record.caption, 0
    if is_pseudo(record) and other_caption is not None and rng.random() < noisy.caption_negatives:
        caption, shift = _pack_captions(record.caption, noisy, rng, other_caption, token_count, max_tokens)

    def shifted(spans: Iterable[Span]) -> list[Span]:
        return [(start + shift, end + shift) for start, end in spans]

    regions = [(r, shifted(r.tokens_positive)) for r in record.regions if not r.ignore]
    uncertain = shifted(record.uncertain) if noisy.ignore_uncertain else []
    return replace(_prompted(record, caption, regions, noisy), uncertain=uncertain)


def _pack_captions(
    own: str,
    noisy: NoisyLabelConfig,
    rng: np.random.Generator,
    other_caption: Callable[[np.random.Generator], str],
    token_count: TokenCount,
    max_tokens: int,
) -> tuple[str, int]:
    """(captions of other images around ``own``, offset of ``own``).

    Those that do not fit are left out, and the rest are still tried.
    """
    captions = [_terminated(own)]
    tokens_left = max_tokens - 2 - token_count(captions[0])
    count = noisy.max_caption_negatives
    if not (noisy.full_caption_share and rng.random() < noisy.full_caption_share):
        count = int(rng.integers(1, count + 1))
    for _ in range(count):
        text = _terminated(other_caption(rng))
        cost = token_count(text)
        if cost <= tokens_left and text != captions[0]:  # its own phrases are not absent
            tokens_left -= cost
            captions.append(text)
    packed, shift = "", 0
    for i in rng.permutation(len(captions)):
        if i == 0:
            shift = len(packed)
        packed += captions[i]
    return packed.rstrip(), shift


def _terminated(caption: str) -> str:
    """The caption with ". " at its end."""
    return caption if caption.endswith(". ") else (caption + " " if caption.endswith(".") else caption + ". ")


def _boxes(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    return np.asarray(boxes, np.float32).reshape(-1, 4)
