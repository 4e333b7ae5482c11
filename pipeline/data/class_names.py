"""Class names of the detection sets that a training reads: a prompt's negatives are drawn from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.data.dataset_cards import card_of, read_cards
from pipeline.data.records import GroundingRecord
from pipeline.data.training_shards import ShardSet
from pipeline.errors import InputError
from pipeline.io.hashing import digest_json
from pipeline.io.paths import is_url, parent, stem

Names = tuple[str, ...]


class LabelSpaces:
    """Class names of all detection sets whose ``*dataset.json`` lies in a folder of ``shards``, local or behind a URL.

    Two folders may hold sets of one name ("train"): what counts for a shard is the card beside it.

    Raises:
        InputError: a dataset.json is not one.
    """

    def __init__(self, shards: Sequence[str]) -> None:
        self._found: dict[tuple[str, str], Names | None] = {
            (folder, card.name): card.label_space for folder, card in read_cards(shards)
        }

    def of(self, shard: str, dataset: str) -> Names | None:
        """The class names of a set's records in a shard; None if there are none.

        From the card beside the shard; where that folder has none, from other folders' if they agree.
        """
        place = parent(shard), dataset
        if place not in self._found:
            card = card_of(shard, dataset) if is_url(shard) else None  # a web server may have no list of its folder
            others = {names for (_, name), names in self._found.items() if name == dataset and names}
            self._found[place] = card.label_space if card else others.pop() if len(others) == 1 else None
        return self._found[place]


def needed_class_names(
    sources: Mapping[str, Sequence[str]], spaces: LabelSpaces | None = None
) -> dict[str, tuple[Names, ...]]:
    """Class names of those detection sets that lie in the shards of ``sources``, by data set: more than one tuple where sets of one name differ.

    Shards whose names differ in their number alone are one set's, and the first record of one of them tells which: what other sets lie
    in the same folders is none of a training's affair, and to look into thousands of shards behind a URL would take minutes.
    ``spaces``: those of all the shards, if they were read already.

    Raises:
        InputError: a detection set without class names.
    """
    spaces = spaces or LabelSpaces([s for shards in sources.values() for s in shards])
    found: dict[str, dict[Names, None]] = {}
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
            names = spaces.of(shard, record.dataset)
            if not names:
                raise InputError(
                    f"source {source}: {shard}: no class names for detection set {record.dataset!r}; want its "
                    f"{record.dataset}.dataset.json, with a label_space, beside the shards"
                )
            found.setdefault(record.dataset, {})[names] = None
    return {name: tuple(tuples) for name, tuples in found.items()}


def digests(sources: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """A digest of the class names of each data set in ``sources``.

    Raises:
        InputError: a detection set without class names.
    """
    return {
        name: digest_json(list(tuples[0]) if len(tuples) == 1 else [list(names) for names in tuples])
        for name, tuples in needed_class_names(sources).items()
    }


def _first_record(shard: str) -> GroundingRecord | None:
    """The first record of a shard, without its image; None if there is none, or one that the training will count as unusable."""
    records = ShardSet([shard])
    try:
        return records.record(0, 0) if records.counts[0] else None
    except InputError:
        return None
