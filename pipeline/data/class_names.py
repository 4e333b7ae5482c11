"""Class names of detection data sets, from which a prompt's negatives are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.data.dataset_cards import card_of, read_cards
from pipeline.data.records import ClassPrompt, GroundingRecord
from pipeline.data.training_shards import ShardSet
from pipeline.errors import InputError
from pipeline.io.hashing import digest_json
from pipeline.io.paths import is_url, join, parent, stem

Names = tuple[str, ...]


class LabelSpaces:
    """Class names of the detection sets with a ``*dataset.json`` beside ``shards``, local or remote.

    Sets in different folders may share a name ("train"), so names are looked up by folder and set.

    Raises:
        InputError: a dataset.json is invalid.
    """

    def __init__(self, shards: Sequence[str]) -> None:
        self._names: dict[tuple[str, str], Names | None] = {
            (folder, card.name): card.label_space for folder, card in read_cards(shards)
        }

    def of(self, shard: str, dataset: str) -> Names | None:
        """Class names of a data set's records in a shard; None if there are none.

        They are from the card in the shard's folder or, without one, from the cards in other
        folders if these agree.
        """
        folder_and_set = parent(shard), dataset
        if folder_and_set not in self._names:
            card = card_of(shard, dataset) if is_url(shard) else None  # web servers may not list folders
            others = {names for (_, name), names in self._names.items() if name == dataset and names}
            self._names[folder_and_set] = card.label_space if card else others.pop() if len(others) == 1 else None
        return self._names[folder_and_set]


def needed_class_names(
    sources: Mapping[str, Sequence[str]], spaces: LabelSpaces | None = None
) -> dict[str, tuple[Names, ...]]:
    """Class names of the detection sets in the shards of ``sources``, by data set.

    Shards whose names differ only in their number belong to one set, identified by the first record
    of one of them: opening thousands of remote shards would take minutes.

    Args:
        sources: source -> its shards.
        spaces: label spaces of all the shards, if already read.

    Returns:
        data set -> class names; more than one tuple if sets of the same name differ.

    Raises:
        InputError: a detection set has no class names.
    """
    spaces = spaces or LabelSpaces([s for shards in sources.values() for s in shards])
    by_set: dict[str, dict[Names, None]] = {}
    seen: set[tuple[str, str]] = set()
    for source, shards in sorted(sources.items()):
        for shard in shards:
            series = parent(shard), stem(shard).rstrip("0123456789")
            record = None if series in seen else _first_record(shard)
            if record is None:
                continue
            seen.add(series)
            if record.kind != "detection":
                continue
            names = spaces.of(shard, record.dataset)
            if not names:
                raise InputError(
                    f"source {source}: {shard}: no class names for detection set {record.dataset!r}; want its "
                    f"{record.dataset}.dataset.json, with a label_space, beside the shards"
                )
            by_set.setdefault(record.dataset, {})[names] = None
    return {name: tuple(tuples) for name, tuples in by_set.items()}


def class_prompts(shards: Sequence[str], dataset: str) -> dict[str, ClassPrompt]:
    """Prompts of a detection set's classes, from its cards beside ``shards``.

    Raises:
        InputError: the cards differ, or one has a prompt of a class that is not in its label space.
    """
    prompts: list[dict[str, ClassPrompt]] = []
    for shard in {parent(shard): shard for shard in shards}.values():
        card = card_of(shard, dataset)
        own = (card.class_prompts if card else None) or {}
        for name in own.keys() - {*((card.label_space if card else None) or ())}:
            raise InputError(
                f"{join(parent(shard), dataset)}.dataset.json: class_prompts: found {name!r}; want names of its "
                "label_space"
            )
        prompts.append(own)
    if any(one != prompts[0] for one in prompts):
        raise InputError(f"the {dataset}.dataset.json beside the shards differ in class_prompts; want one")
    return prompts[0]


def digests(sources: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Digest of the class names of each detection set in ``sources``.

    Raises:
        InputError: a detection set has no class names.
    """
    return {
        name: digest_json(list(tuples[0]) if len(tuples) == 1 else [list(names) for names in tuples])
        for name, tuples in needed_class_names(sources).items()
    }


def _first_record(shard: str) -> GroundingRecord | None:
    """First record of a shard, without its image; None if there is none or it is invalid."""
    records = ShardSet([shard])
    try:
        return records.record(0, 0) if records.counts[0] else None
    except InputError:
        return None
