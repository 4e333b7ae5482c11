"""The ``*dataset.json`` that lie beside training shards: what is true of a whole set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.io.files import listing, read_bytes
from pipeline.io.paths import parent
from pipeline.records import DatasetCard


def read_cards(shards: Sequence[str]) -> Iterator[DatasetCard]:
    """The cards in the folders of ``shards``, local or behind a URL, folder by folder.

    Raises:
        InputError: a dataset.json is not one.
    """
    for folder in sorted({parent(shard) for shard in shards}):
        for path in listing(folder, "dataset.json"):
            try:
                yield DatasetCard.model_validate_json(read_bytes(path) or b"")
            except ValidationError as error:
                first = error.errors()[0]
                raise InputError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
