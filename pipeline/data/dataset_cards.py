"""The ``*dataset.json`` that lie beside training shards: what is true of a whole set."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from pipeline.data.records import DatasetCard
from pipeline.errors import InputError
from pipeline.io.files import listing, read_bytes
from pipeline.io.paths import is_url, join, parent

log = logging.getLogger("glip_self_train")


def read_cards(shards: Sequence[str]) -> Iterator[tuple[str, DatasetCard]]:
    """(folder, card) of the cards in the folders of ``shards``, local or behind a URL, folder by folder.

    A store that does not list its folders to us has none here; :func:`card_of` asks for one by its name.

    Raises:
        InputError: a dataset.json is not one.
    """
    for folder in sorted({parent(shard) for shard in shards}):
        try:
            paths = listing(folder, "dataset.json")
        except InputError as error:
            if not is_url(folder):
                raise
            log.info("%s: not listed to us (%s)", folder, error)
            continue
        for path in paths:
            yield folder, _card(path, read_bytes(path) or b"")


def card_of(shard: str, dataset: str) -> DatasetCard | None:
    """The card ``DATASET.dataset.json`` beside a shard; None if there is none.

    Raises:
        InputError: it is no card, or access to it is refused.
    """
    path = join(parent(shard), f"{dataset}.dataset.json")
    data = read_bytes(path)
    return None if data is None else _card(path, data)


def _card(path: str, data: bytes) -> DatasetCard:
    try:
        return DatasetCard.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
