"""Frequencies of names in the training data, and annotations of LVIS that records do not hold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.keys import image_key
from pipeline.errors import InputError
from pipeline.evaluation.fixed_ap import GROUPS, frequency_group
from pipeline.io.hashing import digest_file
from pipeline.io.shard_patterns import expand_shards

WANTED = (
    "want training shards (.tar), LVIS' annotation JSON, or a JSON object of names to numbers of images, "
    '{"person": 1234}'
)


@dataclass(frozen=True)
class Frequencies:
    """Frequencies of class names or phrases in the training data.

    groups: name -> rare, common or frequent. counts: name -> number of training images with it.
    not_exhaustive: record key -> names not annotated exhaustively in the image. digest: of the
    input. counted: the groups come from counts, so that a name without a count is in no training
    image.
    """

    groups: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    not_exhaustive: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    digest: str = ""
    counted: bool = False

    def groups_of(self, names: Iterable[str]) -> dict[str, str]:
        """Name -> group; if the groups come from counts, names without a count are rare."""
        unseen = {normalise_name(n): frequency_group(0) for n in names} if self.counted else {}
        return unseen | dict(self.groups)


def read_frequencies(path: str) -> Frequencies:
    """Read LVIS' annotations or a JSON table of counts, or count the images of training shards.

    Raises:
        InputError: none of these; the message names the file.
    """
    if path.endswith(".json"):
        try:
            return _of_json(json.loads(Path(path).read_bytes()), digest_file(path))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: {WANTED} ({type(error).__name__}: {error})") from None
    from pipeline.data.training_shards import ShardSet

    shards = expand_shards(path)
    records = ShardSet(shards)
    counts: Counter[str] = Counter()
    for shard, rows in enumerate(records.counts):
        for row in range(rows):
            counts.update({normalise_name(r.phrase) for r in records.record(shard, row).regions if not r.ignore})
    return _counted(counts, " ".join(digest_file(s) for s in shards))


def normalise_name(phrase: str) -> str:
    """The name in lower case with single spaces, for comparison."""
    return " ".join(phrase.lower().split())


def _counted(counts: Mapping[str, int], digest: str) -> Frequencies:
    return Frequencies({n: frequency_group(c) for n, c in counts.items()}, dict(counts), {}, digest, counted=True)


def _of_json(data: Any, digest: str) -> Frequencies:
    if "categories" not in data:
        return _counted({normalise_name(name): int(count) for name, count in data.items()}, digest)
    initials = {group[0]: group for group in GROUPS}
    names = {c["id"]: c["name"] for c in data["categories"]}
    return Frequencies(
        groups={normalise_name(c["name"]): initials[c["frequency"]] for c in data["categories"]},
        counts={normalise_name(c["name"]): int(c["image_count"]) for c in data["categories"] if "image_count" in c},
        not_exhaustive={
            image_key(i["id"]): tuple(names[n] for n in i["not_exhaustive_category_ids"])
            for i in data.get("images", ())
            if i.get("not_exhaustive_category_ids")
        },
        digest=digest,
    )
