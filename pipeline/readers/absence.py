"""Names and spans that must not be taught as absent, as their boxes were dropped or may be missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.data.records import Region, Span
from pipeline.readers.base import LabelledImage, Losses


def merged(one: LabelledImage, other: LabelledImage) -> LabelledImage:
    """One image of the labels of two rows of the same file."""
    regions = tuple(dict.fromkeys((*one.regions, *other.regions)))
    lost = Losses(one.lost)
    lost.update(other.lost)
    lost["same_box_again"] += len(one.regions) + len(other.regions) - len(regions)
    present = {region.phrase for region in regions}
    absent, incomplete = one.verified_absent, one.not_exhaustive
    if other.verified_absent is not None:
        absent = tuple(sorted({*(absent or ()), *other.verified_absent} - present))
    if other.not_exhaustive is not None:
        incomplete = tuple(sorted({*(incomplete or ()), *other.not_exhaustive}))
    return one._replace(
        size=one.size or other.size, regions=regions, boxless_names=(*one.boxless_names, *other.boxless_names),
        verified_absent=absent, not_exhaustive=incomplete, lost=lost,
    )  # fmt: skip


def unclear_names(present: Iterable[str], above: Mapping[str, Iterable[str]]) -> set[str]:
    """Names that must not be taught as absent beside those ``present``: the classes above them, and
    those below, as any of them may be meant. ``above``: class -> its superclasses.
    """
    present = set(present)
    upper = {name for lower in present for name in above.get(lower, ())}
    return (upper | {name for name, uppers in above.items() if present.intersection(uppers)}) - present


def uncertain_spans(item: LabelledImage, kept: Iterable[Region], outside: Iterable[Region] = ()) -> tuple[Span, ...]:
    """Spans that must not be trained as absent: stated ones, and those of dropped boxes that no
    kept region covers.

    Args:
        kept: the item's regions with a box in the image. Ignore regions cover nothing, as they are
            not trained on.
        outside: the item's regions whose box is outside the image.
    """
    dropped = dict.fromkeys([*item.boxless, *(span for region in outside for span in region.tokens_positive)])
    if not dropped:
        return item.uncertain
    spans = [span for region in kept if not region.ignore for span in region.tokens_positive]
    covered = {position for start, end in spans for position in range(start, end)}
    stated = set(item.uncertain)
    return item.uncertain + tuple(s for s in dropped if s not in stated and not covered.issuperset(range(*s)))


def presence_of(
    item: LabelledImage, outside: Iterable[Region] = ()
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """(verified_absent, not_exhaustive), corrected for classes of which a box was dropped.

    Such a class is not absent, and not all of its instances have boxes. ``outside``: the item's
    regions whose box is outside the image.
    """
    names = {*item.boxless_names, *(region.phrase for region in outside)}
    if item.caption is not None or not names:
        return item.verified_absent, item.not_exhaustive
    absent = item.verified_absent and tuple(name for name in item.verified_absent if name not in names)
    if absent is not None and item.not_exhaustive is None:  # a federated set that does not state not_exhaustive
        return absent, None
    return absent, tuple(sorted({*(item.not_exhaustive or ()), *names}))
