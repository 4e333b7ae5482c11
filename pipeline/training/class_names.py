"""Class names of the detection sets that a training reads: a prompt's negatives are drawn from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.dataset_cards import read_cards
from pipeline.errors import InputError
from pipeline.io.paths import parent, stem
from pipeline.records import GroundingRecord
from pipeline.training.shards import ShardSet

Names = tuple[str, ...]


def read_label_spaces(shards: Sequence[str]) -> dict[str, Names]:
    """Class names of all detection sets whose ``*dataset.json`` lies in a folder of ``shards``, local or behind a URL, by data set.

    Raises:
        InputError: a dataset.json is not one.
    """
    return {card.name: card.label_space for card in read_cards(shards) if card.label_space}


def needed_class_names(
    sources: Mapping[str, Sequence[str]], spaces: Mapping[str, Names] | None = None
) -> dict[str, Names]:
    """Class names of those detection sets that lie in the shards of ``sources``, by data set.

    Shards whose names differ in their number alone are one set's, and the first record of one of them tells which: what other sets lie
    in the same folders is none of a training's affair, and to look into thousands of shards behind a URL would take minutes.
    ``spaces``: what :func:`read_label_spaces` gave, if it was asked already.

    Raises:
        InputError: a detection set without class names.
    """
    if spaces is None:
        spaces = read_label_spaces([s for shards in sources.values() for s in shards])
    found: dict[str, Names] = {}
    seen: set[tuple[str, str]] = set()
    for source, shards in sorted(sources.items()):
        for shard in shards:
            alike = parent(shard), stem(shard).rstrip("0123456789")
            record = None if alike in seen else _first_record(shard)
            if record is None:
                continue
            seen.add(alike)
            if record.kind != "detection":
                continue
            if record.dataset not in spaces:
                raise InputError(
                    f"source {source}: {shard}: no class names for detection set {record.dataset!r}; want its "
                    f"{record.dataset}.dataset.json, with a label_space, beside the shards"
                )
            found[record.dataset] = spaces[record.dataset]
    return found


def _first_record(shard: str) -> GroundingRecord | None:
    """The first record of a shard, without its image; None if there is none, or one that the training will count as unusable."""
    records = ShardSet([shard])
    try:
        return records.record(0, 0) if records.counts[0] else None
    except InputError:
        return None
